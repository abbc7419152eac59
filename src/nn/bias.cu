// A thread has some columns for itself and goes down the rows.
#include "core/cuda_vector.cuh"
#include "nn/add_parts.cuh"
#include "nn/cuda_forms.h"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int64_t kRows = 32;  // of a thread of add_kernel
constexpr int kInFlight = 4;   // of them at a time

template <int kWidth, typename Element>
__global__ void __launch_bounds__(kThreads)
    add_kernel(int64_t rows, int64_t cols, const float* bias, Element* y) {
    const int64_t c = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
    if (c >= cols) return;
    float b[kWidth];
    load_floats(bias + c, b);
    const int64_t end = min(rows, (blockIdx.y + 1) * kRows);
    for (int64_t r = blockIdx.y * kRows; r < end; r += kInFlight) {
        Piece<Element, kWidth> held[kInFlight];
#pragma unroll
        for (int i = 0; i < kInFlight; ++i)
            if (r + i < end) held[i] = Piece<Element, kWidth>::load(y + (r + i) * cols + c);
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) {
            if (r + i >= end) break;
            float values[kWidth];
            for (int j = 0; j < kWidth; ++j) values[j] = held[i][j] + b[j];
            store_floats(values, y + (r + i) * cols + c);
        }
    }
}

constexpr int kWarps = 8;              // of a block of sum_kernel: they share its columns, and part its rows
constexpr int64_t kRowsOfBlock = 256;  // fixed, so that the sums do not depend on the GPU

template <int kWidth, typename Element>
__global__ void __launch_bounds__(kWarps* kWarp)
    sum_kernel(int64_t rows, int64_t cols, const Element* dy, double* parts) {
    __shared__ double shared[kWarps][kWarp * kWidth];
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int64_t first_column = int64_t{blockIdx.x} * kWarp * kWidth, c = first_column + lane * kWidth;
    const int64_t end = min(rows, (blockIdx.y + 1) * kRowsOfBlock);
    double sums[kWidth] = {};
    for (int64_t r = blockIdx.y * kRowsOfBlock + warp; r < end && c < cols; r += kWarps * kInFlight) {
        Piece<Element, kWidth> held[kInFlight];
#pragma unroll
        for (int i = 0; i < kInFlight; ++i) {
            held[i] = {};
            if (r + i * kWarps < end)
                held[i] = Piece<Element, kWidth>::load(dy + (r + i * kWarps) * cols + c);
        }
#pragma unroll
        for (int i = 0; i < kInFlight; ++i)
            for (int j = 0; j < kWidth; ++j) sums[j] += double{held[i][j]};
    }
    for (int j = 0; j < kWidth; ++j) shared[warp][lane * kWidth + j] = sums[j];
    __syncthreads();
    for (int64_t i = threadIdx.x; i < kWarp * kWidth && first_column + i < cols; i += kWarps * kWarp) {
        double sum = 0;
        for (int w = 0; w < kWarps; ++w) sum += shared[w][i];
        parts[blockIdx.y * cols + first_column + i] = sum;
    }
}

// Calls body(Constant<width>(), grid) for blocks of `threads` columns' pieces and `chunk` rows.
template <typename Element, typename Body>
void with_grid(const Tensor& t, std::initializer_list<const Element*> rows, int threads, int64_t chunk,
               Body&& body) {
    const int64_t chunks = divide_up(t.rows(), chunk);
    require(chunks < 65536, "a bias of {} rows is too large for the GPU", t.rows());
    with_width<Element>(fits_width<Element>(kPerAccess<Element>, t.cols(), rows), [&](auto width) {
        body(width, dim3(static_cast<unsigned>(divide_up<int64_t>(t.cols(), threads * width())),
                         static_cast<unsigned>(chunks)));
    });
}

}  // namespace

void add_bias(Context& context, const Tensor& y, const Tensor& bias) {
    const float* const b = bias.as<float>();
    require(fits_width<float>(4, 4, {b}), "add_bias: tensors on the GPU begin at multiples of 16 bytes");
    with_elements(y, [&]<typename Element>(Element* values) {
        with_grid<Element>(y, {values}, kThreads, kRows, [&](auto width, dim3 grid) {
            launch(context, add_kernel<width(), Element>, grid, kThreads, 0, y.rows(), y.cols(), b, values);
        });
    });
}

void bias_backward(Context& context, const Tensor& dy, const Tensor& dbias) {
    const int64_t chunks = divide_up(dy.rows(), kRowsOfBlock), cols = dy.cols();
    const ArenaScope scope(context.arena);
    const Tensor parts = context.arena.allocate(DType::f64, {chunks, cols});
    if (context.planning()) return;
    auto* const sums = parts.as<double>();
    with_elements(dy, [&]<typename Element>(Element* values) {
        with_grid<Element>(dy, {values}, kWarp, kRowsOfBlock, [&](auto width, dim3 grid) {
            launch(context, sum_kernel<width(), Element>, grid, kWarps * kWarp, 0, dy.rows(), cols, values,
                   sums);
        });
    });
    add_parts(context, chunks, cols, cols, sums, dbias.as<float>());
}

}  // namespace nibble::cuda
