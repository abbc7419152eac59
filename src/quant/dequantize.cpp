#include <algorithm>
#include <array>

#include "quant/internal.h"
#include "quant/kernels.h"

namespace nibble {
namespace {

float decode_scale(Format format, uint8_t byte) {
    return format == Format::mxfp4 ? e8m0_decode(byte) : e4m3_decode(byte);
}

// The values of 16 codes.
constexpr int kCodes = 16;
std::array<float, kCodes> code_values() {
    std::array<float, kCodes> values{};
    for (int code = 0; code < kCodes; ++code) values[code] = e2m1_decode(static_cast<uint8_t>(code));
    return values;
}

// code * scale is exact in BF16: what it drops is zero.
void store(float value, Bf16& to) { to = {static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16)}; }
void store(float value, float& to) { to = value; }

// Calls body(row, first column, values, count) for every block of every row; values = code * scale.
template <typename Body>
void for_each_block(const QuantizedMatrix& q, Body&& body) {
    const auto values = code_values();
    const int block = q.spec.block_size();
    const int64_t blocks = q.padded_cols / block;
    const int64_t grain = std::max<int64_t>(rows_per_task(q.padded_cols), 16);
    parallel_for(q.rows, grain, [&](int64_t begin, int64_t end) {
        float operand[32];
        for (int64_t row = begin; row < end; ++row) {
            const uint8_t* codes = q.codes.as<uint8_t>() + row * q.padded_cols / 2;
            const uint8_t* scales = q.scales.as<uint8_t>() + row * blocks;
            for (int64_t b = 0; b < blocks; ++b, codes += block / 2) {
                const float scale = decode_scale(q.spec.format, scales[b]);
                for (int i = 0; i < block / 2; ++i) {
                    operand[2 * i] = values[codes[i] & 15] * scale;
                    operand[2 * i + 1] = values[codes[i] >> 4] * scale;
                }
                body(row, b * block, operand, block);
            }
        }
    });
}

void check_output(const QuantizedMatrix& q, const Tensor& out, int64_t rows, int64_t cols) {
    require(q.spec.is_quantized(), "a {} matrix has no codes to read", to_string(q.spec));
    require(out.count() == rows * cols && (out.count() == 0 || out.cols() == cols),
            "dequantised values of [{}, {}] do not fit a tensor of shape {}", rows, cols, out.shape.str());
}

template <typename T>
void dequantize_rows(const QuantizedMatrix& q, T* out) {
    for_each_block(q, [&](int64_t row, int64_t col, const float* values, int count) {
        T* to = out + row * q.padded_cols + col;
        for (int i = 0; i < count; ++i) store(values[i], to[i]);
    });
}

template <typename T>
void dequantize_columns(const QuantizedMatrix& q, T* out) {
    for_each_block(q, [&](int64_t row, int64_t col, const float* values, int count) {
        for (int i = 0; i < count; ++i) store(values[i], out[(col + i) * q.rows + row]);
    });
}

constexpr int64_t kGrain = 32;  // rows; a kernel's block has at most as many

// False where there is no kernel.
bool dequantize_fast(const QuantizedMatrix& q, const Tensor& out, bool transposed) {
    const DequantizeKernel kernel = dequantize_kernel(transposed);
    if (kernel == nullptr || (out.dtype != DType::bf16 && out.dtype != DType::f32)) return false;
    parallel_for(q.rows, kGrain, [&](int64_t begin, int64_t end) { kernel(q, out, begin, end); });
    return true;
}

}  // namespace

void dequantize_operand(Context& context, const QuantizedMatrix& q, const Tensor& out) {
    check_output(q, out, q.rows, q.padded_cols);
    if (context.planning() || dequantize_fast(q, out, false)) return;
    out.dtype == DType::bf16 ? dequantize_rows(q, out.as<Bf16>()) : dequantize_rows(q, out.as<float>());
}

void dequantize_operand_transposed(Context& context, const QuantizedMatrix& q, const Tensor& out) {
    check_output(q, out, q.padded_cols, q.rows);
    if (context.planning() || dequantize_fast(q, out, true)) return;
    out.dtype == DType::bf16 ? dequantize_columns(q, out.as<Bf16>()) : dequantize_columns(q, out.as<float>());
}

void dequantize(Context& context, const QuantizedMatrix& q, const Tensor& out) {
    check_output(q, out, q.rows, q.padded_cols);
    if (context.planning()) return;
    const float tensor_scale = *q.tensor_scale_ptr();
    float* values = out.as<float>();
    for_each_block(q, [&](int64_t row, int64_t col, const float* operand, int count) {
        float* to = values + row * q.padded_cols + col;
        for (int i = 0; i < count; ++i) to[i] = operand[i] * tensor_scale;
    });
}

}  // namespace nibble
