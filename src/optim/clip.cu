// Three stages, each in a fixed order: squares of a chunk, chunks of a tensor, tensors.
#include <vector>

#include "core/cuda_vector.cuh"
#include "optim/cuda_forms.h"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 16384;  // elements
constexpr int kTensors = 64;       // of a launch: their table is an argument

struct Gradients {
    const void* data[kTensors];
    int64_t count[kTensors];
    int64_t first_chunk[kTensors + 1];  // among the chunks of all launches
    bool narrow[kTensors];              // of BF16, not of F32
    int tensors;
};

int64_t chunks_of(const Tensor& tensor) { return divide_up(tensor.count(), kChunk); }

// A thread's part of the sum of the squares of a chunk.
template <typename Element>
__device__ double squares_of(const Element* x, int count) {
    const int pieces = reinterpret_cast<uintptr_t>(x) % (4 * sizeof(Element)) == 0 ? count / 4 : 0;
    double lanes[4] = {};
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < pieces; i += kThreads) {
        float values[4];
        load_floats(x + i * 4, values);
        // The square of a float is exact in a double.
        for (int j = 0; j < 4; ++j) lanes[j] = fma(double{values[j]}, double{values[j]}, lanes[j]);
    }
    for (int i = pieces * 4 + static_cast<int>(threadIdx.x); i < count; i += kThreads) {
        const double value = to_float(x[i]);
        lanes[0] = fma(value, value, lanes[0]);
    }
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

__global__ void __launch_bounds__(kThreads)
    squares_kernel(const __grid_constant__ Gradients g, double* sums) {
    __shared__ double warp_sums[kWarp];
    const int64_t chunk = g.first_chunk[0] + blockIdx.x;
    int t = 0;
    while (chunk >= g.first_chunk[t + 1]) ++t;
    const int64_t begin = (chunk - g.first_chunk[t]) * kChunk;
    const int count = static_cast<int>(min(kChunk, g.count[t] - begin));
    const double squares = g.narrow[t] ? squares_of(static_cast<const Bf16*>(g.data[t]) + begin, count)
                                       : squares_of(static_cast<const float*>(g.data[t]) + begin, count);
    const double sum = block_sum(squares, warp_sums);
    if (threadIdx.x == 0) sums[chunk] = sum;
}

// A block adds the chunks of one tensor.
__global__ void __launch_bounds__(kThreads)
    tensors_kernel(const __grid_constant__ Gradients g, const double* sums, double* tensor_sums) {
    __shared__ double warp_sums[kWarp];
    double sum = 0;
#pragma unroll 4
    for (int64_t i = g.first_chunk[blockIdx.x] + threadIdx.x; i < g.first_chunk[blockIdx.x + 1];
         i += kThreads)
        sum += sums[i];
    sum = block_sum(sum, warp_sums);
    if (threadIdx.x == 0) tensor_sums[blockIdx.x] = sum;
}

// result: the norm, then the index of the first tensor whose sum is not finite, or -1.
__global__ void __launch_bounds__(kThreads)
    norm_kernel(int count, const double* tensor_sums, double* result) {
    __shared__ double held[kThreads];
    double total = 0;
    int first = -1;
    for (int begin = 0; begin < count; begin += kThreads) {
        __syncthreads();
        if (begin + static_cast<int>(threadIdx.x) < count)
            held[threadIdx.x] = tensor_sums[begin + threadIdx.x];
        __syncthreads();
        for (int t = 0; t < min(kThreads, count - begin); ++t) {
            // Squares of finite floats cannot overflow a double, so only a NaN or an infinity gets here.
            if (!isfinite(held[t]) && first < 0) first = begin + t;
            total += held[t];
        }
    }
    if (threadIdx.x != 0) return;
    result[0] = sqrt(total);
    result[1] = first;
}

// nibble::clip_factor().
__global__ void factor_kernel(const double* norm, const double* loss, const uint32_t* fault, double limit,
                              float* factor) {
    const bool is_good = isfinite(*norm) && isfinite(*loss) && (fault == nullptr || *fault == 0);
    *factor = !is_good ? NAN : limit > 0 && *norm > limit ? static_cast<float>(limit / *norm) : 1.0f;
}

}  // namespace

void global_norm(Context& context, std::span<const Tensor> gradients, const Tensor& result) {
    const auto count = static_cast<int64_t>(gradients.size());
    int64_t all_chunks = 0;
    for (const Tensor& gradient : gradients) all_chunks += chunks_of(gradient);
    const ArenaScope scope(context.arena);
    const Tensor sums = context.arena.allocate(DType::f64, {all_chunks});
    const Tensor tensor_sums = context.arena.allocate(DType::f64, {count});
    if (context.planning()) return;
    int64_t chunk = 0;
    for (int64_t begin = 0; begin < count; begin += kTensors) {
        Gradients table{};
        table.tensors = static_cast<int>(std::min<int64_t>(kTensors, count - begin));
        table.first_chunk[0] = chunk;
        for (int t = 0; t < table.tensors; ++t) {
            const Tensor& gradient = gradients[static_cast<size_t>(begin + t)];
            table.data[t] = gradient.data;
            table.narrow[t] = gradient.dtype == DType::bf16;
            table.count[t] = gradient.count();
            table.first_chunk[t + 1] = chunk += chunks_of(gradient);
        }
        launch(context, squares_kernel, static_cast<unsigned>(chunk - table.first_chunk[0]), kThreads, 0,
               table, sums.as<double>());
        launch(context, tensors_kernel, static_cast<unsigned>(table.tensors), kThreads, 0, table,
               sums.as<double>(), tensor_sums.as<double>() + begin);
    }
    launch(context, norm_kernel, 1, kThreads, 0, static_cast<int>(count), tensor_sums.as<double>(),
           result.as<double>());
}

void clip_factor(const Context& context, const Tensor& norm, const Tensor& losses, double limit,
                 const Tensor& factor) {
    launch(context, factor_kernel, 1, 1, 0, static_cast<const double*>(norm.as<double>()),
           static_cast<const double*>(losses.as<double>()), static_cast<const uint32_t*>(context.fault),
           limit, factor.as<float>());
}

}  // namespace nibble::cuda
