#include "quant/cuda_forms.h"
#include "quant/round_towards_reference.h"
#include "quant/tiles.cuh"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 256;

struct Choice {
    const float *x, *target;
    int64_t rows, cols, padded_cols;
    uint8_t* codes;
    const uint8_t* scales;
    const float* tensor_scale;
    Format format;
    int block_cols;
};

// A thread has the two columns of one byte.
__global__ void __launch_bounds__(kThreads) choose_kernel(const __grid_constant__ Choice c) {
    const int64_t in_row = divide_up<int64_t>(c.cols, 2);
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (i >= c.rows * in_row) return;
    const int64_t row = i / in_row, k = (i - row * in_row) * 2;
    const int64_t place = row * c.padded_cols + k;
    const uint8_t byte = c.scales[place / c.block_cols];
    const float scale = c.format == Format::nvfp4 ? e4m3_decode(byte) : e8m0_decode(byte);
    if (scale == 0.0f) return;  // all its codes are 0
    const BlockValues values = block_values(scale, *c.tensor_scale);
    const float *const x = c.x + row * c.cols + k, *const target = c.target + row * c.cols + k;
    uint8_t& pair = c.codes[place / 2];
    if (k + 1 < c.cols) {
        pair = codes_near(values, x[0], target[0], x[1], target[1], pair);
    } else {  // the padding's code stays
        pair = static_cast<uint8_t>((pair & 0xf0) | neighbour_near(values, x[0], target[0], pair & 15));
    }
}

}  // namespace

void choose_codes(Context& context, const Tensor& x, const Tensor& target, QuantizedMatrix& q) {
    Choice choice{};
    choice.x = x.as<float>();
    choice.target = target.as<float>();
    choice.rows = q.rows;
    choice.cols = x.cols();
    choice.padded_cols = q.padded_cols;
    choice.codes = q.codes.as<uint8_t>();
    choice.scales = q.scales.as<uint8_t>();
    choice.tensor_scale = q.tensor_scale_ptr();
    choice.format = q.spec.format;
    choice.block_cols = q.spec.block_size();
    const int64_t bytes = q.rows * divide_up<int64_t>(x.cols(), 2);
    launch(context, choose_kernel, dim3(static_cast<unsigned>(divide_up<int64_t>(bytes, kThreads))),
           dim3(kThreads), 0, choice);
}

}  // namespace nibble::cuda
