#include "core/cuda_check.cuh"

namespace nibble::cuda {

namespace {

int driver_version() {
    int version = 0;
    check(cudaDriverGetVersion(&version), "version of the GPU's driver");
    return version;
}

// Stands for all: they are compiled for the same GPUs.
__global__ void empty_kernel() {}

}  // namespace

std::vector<CudaDevice> devices() {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) return {};
    std::vector<CudaDevice> result;
    for (int i = 0; i < count; ++i) {
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, i), "properties of a GPU");
        CudaDevice device{properties.name,           properties.major,
                          properties.minor,          properties.multiProcessorCount,
                          properties.totalGlobalMem, 0};
        int current = 0;
        check(cudaGetDevice(&current), "the GPU in use");
        check(cudaSetDevice(i), "choice of a GPU");
        size_t total = 0;
        check(cudaMemGetInfo(&device.available_memory, &total), "memory of a GPU");
        check(cudaSetDevice(current), "choice of a GPU");
        result.push_back(std::move(device));
    }
    return result;
}

std::string version() {
    int runtime = 0;
    check(cudaRuntimeGetVersion(&runtime), "version of the CUDA runtime");
    return fmt::format("{}, driver {}", cuda_version_text(runtime),
                       driver_version() == 0 ? "none" : cuda_version_text(driver_version()));
}

CudaState machine_state() {
    CudaState state{.driver = driver_version(), .built_with = CUDART_VERSION};
    if (state.driver == 0) return state;
    const cudaError_t status = cudaGetDeviceCount(&state.gpus);
    state.driver_is_too_old = status == cudaErrorInsufficientDriver;
    if (state.driver_is_too_old || status == cudaErrorNoDevice) return state;
    check(status, "search for GPUs");
    if (state.gpus == 0) return state;
    state.first = devices().front();
    cudaFuncAttributes attributes;
    const cudaError_t found = cudaFuncGetAttributes(&attributes, empty_kernel);
    cudaGetLastError();  // or the next launch would report it
    state.has_kernels = found != cudaErrorNoKernelImageForDevice && found != cudaErrorInvalidDeviceFunction;
    if (state.has_kernels) check(found, "search for kernels");
    return state;
}

std::byte* allocate_zeroed(size_t bytes) {
    void* memory = nullptr;
    const cudaError_t status = cudaMalloc(&memory, bytes);
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();  // or the next launch would report it
        size_t available = 0, total = 0;
        check(cudaMemGetInfo(&available, &total), "memory of the GPU");
        fail("no memory for {} bytes on the GPU, {} of {} are free; make the batch or the model smaller",
             bytes, available, total);
    }
    check(status, "allocation on the GPU");
    check(cudaMemset(memory, 0, bytes), "clearing memory of the GPU");
    return static_cast<std::byte*>(memory);
}

// In a destructor: what failed before has been reported by its own call.
void free(std::byte* p) { cudaFree(p); }

void queue_copy(const Context& context, const Tensor& from, const Tensor& to) {
    if (from.bytes() == 0) return;
    check(cudaMemcpyAsync(to.data, from.data, from.bytes(), cudaMemcpyDefault, context.stream),
          "copy to or from the GPU");
}

void copy(const Context& context, const Tensor& from, const Tensor& to) {
    cuda::queue_copy(context, from, to);
    if (from.device == Device::cpu || to.device == Device::cpu) cuda::synchronize(context);
}

void fill_zero(const Context& context, const Tensor& tensor) {
    if (tensor.bytes() == 0) return;
    check(cudaMemsetAsync(tensor.data, 0, tensor.bytes(), context.stream), "clearing memory of the GPU");
}

void synchronize(const Context& context) { check(cudaStreamSynchronize(context.stream), "work on the GPU"); }

}  // namespace nibble::cuda
