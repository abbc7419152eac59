#include "core/cuda_vector.cuh"
#include "nn/cuda_forms.h"
#include "nn/dge.h"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 256;

// A block has a row. kWidth: elements of an access.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    slope_kernel(DgeSlope dge, const float* w, int64_t cols, float* gradient, int64_t stride) {
    __shared__ float of_warp[kThreads / kWarp];
    const float* const row = w + int64_t{blockIdx.x} * cols;
    float* const g = gradient + int64_t{blockIdx.x} * stride;
    const int64_t first = int64_t{threadIdx.x} * kWidth;
    float amax = 0.0f;
    for (int64_t c = first; c < cols; c += kThreads * kWidth) {
        float x[kWidth];
        load_floats(row + c, x);
        for (const float v : x) amax = fmaxf(amax, fabsf(v));
    }
    amax = lanes_max(amax);
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = amax;
    __syncthreads();
    for (const float v : of_warp) amax = fmaxf(amax, v);
    if (amax == 0.0f) amax = 1.0f;
    for (int64_t c = first; c < cols; c += kThreads * kWidth) {
        float x[kWidth], y[kWidth];
        load_floats(row + c, x);
        load_floats(g + c, y);
        for (int i = 0; i < kWidth; ++i) y[i] *= dge_slope_reference(dge, kDgeLargest * (x[i] / amax));
        store_floats(y, g + c);
    }
}

}  // namespace

void multiply_by_dge_slope(Context& context, const Dge& dge, const Tensor& w, const Tensor& gradient) {
    const int64_t cols = w.cols(), stride = gradient.cols();
    const auto* const weights = w.as<float>();
    auto* const g = gradient.as<float>();
    const bool wide = fits_width<float>(4, cols, {weights}) && fits_width<float>(4, stride, {g});
    with_width<float>(wide, [&](auto width) {
        launch(context, slope_kernel<width()>, dim3(static_cast<unsigned>(w.rows())), dim3(kThreads), 0,
               dge_constants(dge), weights, cols, g, stride);
    });
}

}  // namespace nibble::cuda
