#include "core/cuda_vector.cuh"
#include "nn/cuda_forms.h"
#include "nn/smooth_swiglu.h"
#include "nn/smooth_swiglu_reference.h"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kRows = 32;  // of a block: a thread has its columns of them

// Calls body(first element of the thread's columns) for each of its rows.
template <typename Body>
__device__ void each_row(int64_t rows, int64_t cols, int64_t col, Body&& body) {
    const int64_t begin = int64_t{blockIdx.y} * kRows, end = min(begin + kRows, rows);
#pragma unroll 4
    for (int64_t r = begin; r < end; ++r) body(r * cols + col);
}
template <int kWidth>
__device__ int64_t first_column() {
    return (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
}

// maxima, of every column; 0 at first.
template <int kWidth, typename Element>
__global__ void __launch_bounds__(kThreads)
    maxima_kernel(const Element* x, int64_t rows, int64_t cols, float* maxima) {
    const int64_t col = first_column<kWidth>();
    if (col >= cols) return;
    float largest[kWidth] = {};
    each_row(rows, cols, col, [&](int64_t i) {
        float v[kWidth];
        load_floats(x + i, v);
        for (int j = 0; j < kWidth; ++j) largest[j] = fmaxf(largest[j], fabsf(v[j]));
    });
    for (int j = 0; j < kWidth; ++j)
        atomicMax(reinterpret_cast<unsigned*>(maxima) + col + j, __float_as_uint(largest[j]));
}

// One block: scales <- channel_scale() of the maxima that they hold.
constexpr int kChannelThreads = 1024;
__global__ void __launch_bounds__(kChannelThreads)
    scales_kernel(double strength, bool is_exact, int64_t channels, float* scales) {
    __shared__ float of_warp[kChannelThreads / kWarp];
    float amax = 0.0f;
    for (int64_t c = threadIdx.x; c < channels; c += kChannelThreads) amax = fmaxf(amax, scales[c]);
    amax = lanes_max(amax);
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = amax;
    __syncthreads();
    for (const float v : of_warp) amax = fmaxf(amax, v);
    for (int64_t c = threadIdx.x; c < channels; c += kChannelThreads)
        scales[c] = channel_scale(strength, is_exact, amax, scales[c]);
}

// to <- from, after change(index, scales, values) of the thread's columns of each row.
template <int kWidth, typename Element, typename Change>
__device__ void change_columns(const Element* from, int64_t rows, int64_t cols, const float* scales,
                               Element* to, Change&& change) {
    const int64_t col = first_column<kWidth>();
    if (col >= cols) return;
    float s[kWidth];
    load_floats(scales + col, s);
    each_row(rows, cols, col, [&](int64_t i) {
        float v[kWidth];
        load_floats(from + i, v);
        change(i, s, v);
        store_floats(v, to + i);
    });
}

template <int kWidth, typename Element>
__global__ void __launch_bounds__(kThreads)
    multiply_kernel(Element* x, int64_t rows, int64_t cols, const float* scales) {
    change_columns<kWidth>(x, rows, cols, scales, x, [](int64_t, const float(&s)[kWidth], float(&v)[kWidth]) {
        for (int j = 0; j < kWidth; ++j) v[j] *= s[j];
    });
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads) divide_kernel(const float* x, int64_t rows, int64_t cols,
                                                          const float* scales, bool accumulate, float* out) {
    change_columns<kWidth>(x, rows, cols, scales, out,
                           [&](int64_t i, const float(&s)[kWidth], float(&v)[kWidth]) {
                               for (int j = 0; j < kWidth; ++j) v[j] = v[j] / s[j];
                               if (!accumulate) return;
                               float before[kWidth];
                               load_floats(out + i, before);
                               for (int j = 0; j < kWidth; ++j) v[j] = before[j] + v[j];
                           });
}

// Calls body(Constant<width>(), grid) for pieces of the columns of x that all of `rows` can be accessed in.
template <typename Element, typename Body>
void with_grid(const Tensor& x, const Tensor& scales, std::initializer_list<const Element*> rows,
               Body&& body) {
    constexpr int kWidest = kPerAccess<Element>;
    const bool wide =
        fits_width<Element>(kWidest, x.cols(), rows) && fits_width<float>(4, 4, {scales.as<float>()});
    const int64_t chunks = divide_up(x.rows(), kRows);
    require(chunks < 65536, "the channels of {} rows are too long for the GPU", x.rows());
    with_width<Element>(wide, [&](auto width) {
        body(width, dim3(static_cast<unsigned>(divide_up<int64_t>(x.cols(), kThreads * width())),
                         static_cast<unsigned>(chunks)));
    });
}

}  // namespace

void channel_scales(Context& context, const SmoothSwiglu& options, const Tensor& h, const Tensor& scales) {
    cuda::fill_zero(context, scales);
    auto* const s = scales.as<float>();
    with_elements(h, [&]<typename Element>(const Element* values) {
        with_grid<Element>(h, scales, {values}, [&](auto width, dim3 grid) {
            launch(context, maxima_kernel<width(), Element>, grid, kThreads, 0, values, h.rows(), h.cols(),
                   s);
        });
    });
    launch(context, scales_kernel, 1, kChannelThreads, 0, options.strength, options.scale == "exact",
           h.cols(), s);
}

void multiply_columns(Context& context, const Tensor& x, const Tensor& scales) {
    const auto* const s = scales.as<float>();
    with_elements(x, [&]<typename Element>(Element* values) {
        with_grid<Element>(x, scales, {values}, [&](auto width, dim3 grid) {
            launch(context, multiply_kernel<width(), Element>, grid, kThreads, 0, values, x.rows(), x.cols(),
                   s);
        });
    });
}

void divide_columns(Context& context, const Tensor& x, const Tensor& scales, const Tensor& out,
                    bool accumulate) {
    const auto *const from = x.as<float>(), *const s = scales.as<float>();
    auto* const to = out.as<float>();
    with_grid<float>(x, scales, {from, to}, [&](auto width, dim3 grid) {
        launch(context, divide_kernel<width()>, grid, kThreads, 0, from, x.rows(), x.cols(), s, accumulate,
               to);
    });
}

}  // namespace nibble::cuda
