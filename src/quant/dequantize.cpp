#include <algorithm>
#include <array>

#include "quant/cuda_forms.h"
#include "quant/internal.h"
#include "quant/kernels.h"

namespace nibble {
namespace {

// The values of all codes of an element.
constexpr int kCodes = 256;
std::array<float, kCodes> code_values(Element element) {
    std::array<float, kCodes> values{};
    for (int code = 0; code < 1 << bits_of(element); ++code) {
        values[code] = element_decode(element, static_cast<uint8_t>(code));
    }
    return values;
}

// code * scale is exact in BF16: what it drops is zero.
void store(float value, Bf16& to) { to = {static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16)}; }
void store(float value, float& to) { to = value; }

// Which FP32 scales are in the values: none, those that vary along the columns, or those of rows, too.
enum class Fp32Scales : uint8_t { none, groups, all };

// Calls body(row, first column, values, count) for every block of every row; values = code * scale.
template <typename Body>
void for_each_block(const QuantizedMatrix& q, Fp32Scales which, Body&& body) {
    const auto values = code_values(q.spec.element);
    const int block = q.spec.block_size(), bits = q.spec.code_bits();
    const bool with_fp32 = (which != Fp32Scales::none && q.spec.has_fp32_groups()) ||
                           (which == Fp32Scales::all && q.spec.has_row_scales());
    const int64_t grain = std::max<int64_t>(rows_per_task(q.padded_cols), 16);
    parallel_for(q.rows, grain, [&](int64_t begin, int64_t end) {
        float operand[128];
        for (int64_t row = begin; row < end; ++row) {
            const uint8_t* codes = q.codes.as<uint8_t>() + row * q.padded_cols * bits / 8;
            for (int64_t col = 0; col < q.padded_cols; col += block, codes += block * bits / 8) {
                const float scale = byte_scale(q, row, col);
                for (int i = 0; i < block && bits == 8; ++i) operand[i] = values[codes[i]] * scale;
                for (int i = 0; i < block / 2 && bits == 4; ++i) {
                    operand[2 * i] = values[codes[i] & 15] * scale;
                    operand[2 * i + 1] = values[codes[i] >> 4] * scale;
                }
                const float wide = with_fp32 ? fp32_scale_at(q, row, col) : 1.0f;
                for (int i = 0; i < block && with_fp32; ++i) operand[i] *= wide;
                body(row, col, operand, block);
            }
        }
    });
}

void check_output(const QuantizedMatrix& q, const Tensor& out, int64_t rows, int64_t cols,
                  bool has_fp32_scales) {
    require(q.spec.is_quantized(), "a {} matrix has no codes to read", to_string(q.spec));
    require(out.count() == rows * cols && (out.count() == 0 || out.cols() == cols),
            "dequantised values of [{}, {}] do not fit a tensor of shape {}", rows, cols, out.shape.str());
    require(out.dtype == DType::f32 || !has_fp32_scales, "values with FP32 scales do not fit {}",
            name_of(out.dtype));
}

template <typename T>
void dequantize_rows(const QuantizedMatrix& q, Fp32Scales which, T* out) {
    for_each_block(q, which, [&](int64_t row, int64_t col, const float* values, int count) {
        T* to = out + row * q.padded_cols + col;
        for (int i = 0; i < count; ++i) store(values[i], to[i]);
    });
}

// The same where no scale is in the values. One look-up gives all values of a byte.
template <typename T>
void dequantize_elements(const QuantizedMatrix& q, T* out) {
    const auto values = code_values(q.spec.element);
    const uint8_t* const codes = q.codes.as<uint8_t>();
    const auto look_up = [&]<int kPerByte>() {
        std::array<std::array<T, kPerByte>, kCodes> table;
        for (int byte = 0; byte < kCodes; ++byte) {
            for (int i = 0; i < kPerByte; ++i)
                store(values[kPerByte == 1 ? byte : byte >> 4 * i & 15], table[byte][i]);
        }
        parallel_for(q.codes.count(), 1 << 14, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                for (int j = 0; j < kPerByte; ++j) out[i * kPerByte + j] = table[codes[i]][j];
        });
    };
    q.spec.code_bits() == 8 ? look_up.template operator()<1>() : look_up.template operator()<2>();
}

// out: [padded_cols, stride], of which q.rows columns are written.
template <typename T>
void dequantize_columns(const QuantizedMatrix& q, Fp32Scales which, int64_t stride, T* out) {
    for_each_block(q, which, [&](int64_t row, int64_t col, const float* values, int count) {
        for (int i = 0; i < count; ++i) store(values[i], out[(col + i) * stride + row]);
    });
}

void transpose_groups(Context& context, const QuantizedMatrix& q, const QuantizedMatrix& out) {
    NIBBLE_ON_CUDA(context, transpose_groups(context, q, out));
    fill_zero(context, out.operand);
    dequantize_columns(q, Fp32Scales::none, out.padded_cols, out.operand.as<Bf16>());
    const int64_t groups = out.fp32_scales.cols();
    for (int64_t i = 0; i < out.fp32_scales.count(); ++i)
        out.fp32_scales.as<float>()[i] = fp32_scale_at(q, i % groups * q.spec.fp32_block_size(), i / groups);
}

constexpr int64_t kGrain = 32;  // rows; a kernel's block has at most as many

// False where there is no kernel.
bool dequantize_fast(const QuantizedMatrix& q, const Tensor& out, bool transposed) {
    const bool has_kernel =
        (q.spec.format == Format::nvfp4 || q.spec.format == Format::mxfp4) && !q.spec.has_fp32_scales();
    const DequantizeKernel kernel = has_kernel ? dequantize_kernel(transposed) : nullptr;
    if (kernel == nullptr || (out.dtype != DType::bf16 && out.dtype != DType::f32)) return false;
    parallel_for(q.rows, kGrain, [&](int64_t begin, int64_t end) { kernel(q, out, begin, end); });
    return true;
}

}  // namespace

void dequantize_operand(Context& context, const QuantizedMatrix& q, const Tensor& out) {
    check_output(q, out, q.rows, q.padded_cols, q.spec.has_fp32_groups());
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, dequantize_operand(context, q, out));
    if (dequantize_fast(q, out, false)) return;
    const bool has_scales = q.spec.has_scale_bytes() || q.spec.has_fp32_groups();
    with_elements(out, [&](auto* values) {
        has_scales ? dequantize_rows(q, Fp32Scales::groups, values) : dequantize_elements(q, values);
    });
}

void dequantize_groups(Context& context, const QuantizedMatrix& q, const Tensor& out) {
    check_output(q, out, q.rows, q.padded_cols, false);
    require(out.dtype == DType::bf16 && q.spec.has_fp32_groups(),
            "values of \"{}\" in {} are not what dequantize_groups() makes", to_string(q.spec),
            name_of(out.dtype));
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, dequantize_groups(context, q, out));
    dequantize_rows(q, Fp32Scales::none, out.as<Bf16>());
}

QuantizedMatrix transposed_groups(Context& context, const QuantizedMatrix& q) {
    require(q.spec.has_fp32_groups() && q.spec.is_square() && q.codes.shape.rank() > 0,
            "a matrix of \"{}\" has no square tiles with FP32 scales to transpose", to_string(q.spec));
    const int64_t tile = q.spec.fp32_block_size();
    QuantizedMatrix out;
    out.spec = q.spec;
    out.spec.rotation = Rotation::none;  // along the other dimension
    out.rows = q.padded_cols;
    out.cols = q.rows;
    out.padded_cols = (q.rows + tile - 1) / tile * tile;
    out.tensor_scale = q.tensor_scale;
    out.operand = context.arena.allocate(DType::bf16, {out.rows, out.padded_cols});
    out.fp32_scales = context.arena.allocate(DType::f32, {out.rows, out.padded_cols / tile});
    if (!context.planning()) transpose_groups(context, q, out);
    return out;
}

void dequantize_operand_transposed(Context& context, const QuantizedMatrix& q, const Tensor& out) {
    check_output(q, out, q.padded_cols, q.rows, q.spec.has_fp32_scales());
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, dequantize_operand_transposed(context, q, out));
    if (dequantize_fast(q, out, true)) return;
    with_elements(out, [&](auto* values) { dequantize_columns(q, Fp32Scales::all, q.rows, values); });
}

void dequantize(Context& context, const QuantizedMatrix& q, const Tensor& out) {
    check_output(q, out, q.rows, q.padded_cols, true);
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, dequantize(context, q, out));
    const float tensor_scale = *q.tensor_scale_ptr();
    float* values = out.as<float>();
    for_each_block(q, Fp32Scales::all, [&](int64_t row, int64_t col, const float* operand, int count) {
        float* to = values + row * q.padded_cols + col;
        for (int i = 0; i < count; ++i) to[i] = operand[i] * tensor_scale;
    });
}

}  // namespace nibble
