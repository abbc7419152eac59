#include <cmath>

#include "quant/cuda_forms.h"
#include "quant/internal.h"
#include "quant/quantize_both.h"
#include "quant/quantize_simd.h"

namespace nibble {

bool has_exact_operand(const QuantSpec& spec) {
    return !spec.has_fp32_groups() && spec.tensor != TensorScale::posthoc;
}

QuantizedMatrix allocate_quantized(Arena& arena, const QuantSpec& spec, int64_t rows, int64_t cols,
                                   Keep keep) {
    require(spec.is_quantized(), "a {} tensor has no codes to allocate", to_string(spec));
    validate_spec(spec);
    QuantizedMatrix q;
    q.spec = spec;
    q.rows = spec.padded_rows(rows);
    q.cols = cols;
    q.padded_cols = spec.padded(cols);
    if (!has_exact_operand(spec)) keep = Keep::bytes;
    const bool keeps_bytes = keep != Keep::operand;
    if (keep != Keep::bytes) q.operand = arena.allocate(DType::bf16, {q.rows, q.padded_cols});
    if (keeps_bytes) q.codes = arena.allocate(DType::u8, {q.rows, q.padded_cols * spec.code_bits() / 8});
    if (keeps_bytes && spec.has_scale_bytes()) {
        q.scales = arena.allocate(DType::u8, {q.rows, q.padded_cols / spec.block_size()});
    }
    if (spec.has_fp32_scales()) {
        const int64_t in_a_row = spec.has_row_scales() ? 1 : q.padded_cols / spec.fp32_block_size();
        q.fp32_scales = arena.allocate(DType::f32, {q.rows, in_a_row});
    }
    if (spec.mask_clip) q.mask = arena.allocate(DType::u8, {q.rows, q.padded_cols / 8});
    q.tensor_scale = arena.allocate(DType::f32, {1});
    return q;
}

SignsDepend signs_depend(const QuantSpec& spec, Gemm gemm) {
    if (!spec.has_signs() || spec.signs == Signs::te) return {};
    Signs signs = spec.signs;
    if (signs == Signs::by_gemm) signs = gemm == Gemm::wgrad ? Signs::call : Signs::step;
    return {true, signs != Signs::run, signs == Signs::call};
}

SignBits rotation_signs(const QuantSpec& spec, const RandomKey& key) {
    const SignsDepend depend = signs_depend(spec, key.gemm);
    if (!spec.has_signs()) return {};
    if (!depend.on_seed) return SignBits(0xd7e8);  // the fixed signs of TransformerEngine
    const uint32_t step = depend.on_step ? key.step : 0;
    const uint8_t micro_step = depend.on_micro_step ? key.micro_step : uint8_t{0};
    SignBits result;
    for (int round = 0; round < spec.rotation_rounds(); ++round) {
        const Philox bits = sign_draw(key, round, step, micro_step);
        for (int j = 0; j < spec.rotation_size; ++j) {
            result[round * kMaxRotation + j] = (bits.word[j / 32] >> (j % 32) & 1u) != 0;
        }
    }
    return result;
}

void fail_not_finite(const Tensor& x, std::string_view name) {
    const int64_t count = x.count(), cols = x.cols();
    for (int64_t i = 0; i < count; ++i) {
        const float value = x.dtype == DType::bf16 ? bf16_decode(x.as<Bf16>()[i]) : x.as<float>()[i];
        if (std::isfinite(value)) continue;
        fail("{}: element [{}, {}] is {}; a quantised format has no code for it", name, i / cols, i % cols,
             std::isnan(value) ? "NaN"
             : value > 0       ? "infinity"
                               : "-infinity");
    }
    fail("{}: its values are too large to rotate: the sums of the Hadamard transform overflow FP32", name);
}

void check_quantize_arguments(const QuantSpec& spec, const Tensor& x, const QuantizedMatrix& out,
                              const QuantizeOptions& options) {
    require(spec.is_quantized(), "{}: a {} operand is not quantised", options.name, to_string(spec));
    require(x.dtype == DType::f32 || x.dtype == DType::bf16, "{}: cannot quantise {}; F32 and BF16 can be",
            options.name, name_of(x.dtype));
    require(out.spec == spec, "{}: the output was allocated for \"{}\", not for \"{}\"", options.name,
            to_string(out.spec), to_string(spec));
    const bool adds_rows = spec.rotates_rows();
    const bool fits = options.transposed
                          ? (adds_rows || x.cols() >= out.rows) && x.rows() <= out.cols
                          : (x.count() == 0 || x.cols() == out.cols) &&
                                (adds_rows ? x.rows() <= out.rows : x.count() == out.rows * out.cols);
    require(fits, "{}: shape {} does not fit an output of [{}, {}]{}", options.name, x.shape.str(), out.rows,
            out.cols, options.transposed ? ", transposed" : "");
}

void quantize(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
              QuantizedMatrix& out, const QuantizeOptions& options) {
    check_quantize_arguments(spec, x, out, options);
    if (spec.rotates_rows()) return quantize_rotated_rows(context, spec, x, key, out, options, false);
    NIBBLE_ON_CUDA(context, quantize(context, spec, x, key, out, options));
    if (context.planning()) return;
    require(out.codes.shape.rank() > 0, "{}: on a cpu the operand is kept beside its bytes, not without them",
            options.name);
    if (quantize_simd(context, spec, x, key, out, options)) {
        apply_scale(out, options);
    } else {
        quantize_reference(context, spec, x, key, out, options);
    }
    if (out.operand.data != nullptr) dequantize_operand(context, out, out.operand);
}

bool can_quantize_both(const Context& context, DType dtype, const QuantSpec& rows, const QuantSpec& columns) {
    NIBBLE_ON_CUDA(context, can_quantize_both(dtype, rows, columns));
    return false;
}

void quantize_both(Context& context, const Tensor& x, const OperandOfBoth& rows,
                   const OperandOfBoth& columns) {
    const QuantizedMatrix &of_rows = *rows.out, &of_columns = *columns.out;
    require(can_quantize_both(context, x.dtype, of_rows.spec, of_columns.spec),
            "{}: there is no kernel for \"{}\" along the rows and \"{}\" along the columns of {}",
            rows.options.name, to_string(of_rows.spec), to_string(of_columns.spec), name_of(x.dtype));
    require(of_rows.rows == of_rows.spec.padded_rows(x.rows()) && of_rows.cols >= x.cols() &&
                of_columns.rows == of_columns.spec.padded_rows(x.cols()) && of_columns.cols >= x.rows(),
            "{}: shape {} does not fit outputs of [{}, {}] and [{}, {}]", rows.options.name, x.shape.str(),
            of_rows.rows, of_rows.cols, of_columns.rows, of_columns.cols);
    NIBBLE_ON_CUDA(context, quantize_both(context, x, rows, columns));
}

void requantize_transposed(Context& context, const QuantizedMatrix& forward, const RandomKey& key,
                           QuantizedMatrix& out, const QuantizeOptions& options) {
    require(!forward.spec.has_fp32_scales() && out.cols == forward.rows && out.rows <= forward.padded_cols &&
                !options.transposed && options.scale == nullptr,
            "{}: \"{}\" [{}, {}] cannot be quantised along its rows to [{}, {}]", options.name,
            to_string(forward.spec), forward.rows, forward.cols, out.rows, out.cols);
    QuantizeOptions scaled = options;
    scaled.scale = forward.tensor_scale_ptr();
    if constexpr (kHasCuda) {
        if (context.device == Device::cuda && !out.spec.rotates_rows() &&
            cuda::requantize_transposed(context, forward, key, out, scaled))
            return;
    }
    const ArenaScope scope(context.arena);
    const Tensor values = context.arena.allocate(DType::bf16, {forward.padded_cols, forward.rows});
    dequantize_operand_transposed(context, forward, values);
    quantize(context, out.spec, values.slice(0, out.rows), key, out, scaled);
}

}  // namespace nibble
