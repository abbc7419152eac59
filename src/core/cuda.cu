#include "core/cuda_check.cuh"

namespace nibble::cuda {

namespace {

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

int driver_version() {
    int version = 0;
    check(cudaDriverGetVersion(&version), "version of the GPU's driver");
    return version;
}

// Why this machine's GPU cannot be used; empty: it can.
std::string reason_against() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (driver_version() == 0) return "there is no NVIDIA driver on this machine; choose the device cpu";
    if (status == cudaErrorInsufficientDriver)
        return fmt::format(
            "the NVIDIA driver of this machine serves CUDA {}, nibble was built with CUDA {}; install a "
            "newer "
            "driver",
            version_text(driver_version()), version_text(CUDART_VERSION));
    if (status == cudaErrorNoDevice || count == 0)
        return "this machine shows no NVIDIA GPU to nibble; choose the device cpu";
    check(status, "search for GPUs");
    const CudaDevice device = devices().front();
    if (device.major >= 8) return {};
    return fmt::format("{} is an sm_{}{}; nibble needs sm_80 or newer (BF16); choose the device cpu",
                       device.name, device.major, device.minor);
}

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
    return fmt::format("{}, driver {}", version_text(runtime),
                       driver_version() == 0 ? "none" : version_text(driver_version()));
}

void require_usable() {
    static const std::string reason = reason_against();
    if (!reason.empty()) fail("{}", reason);
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
