#include "quant/fp8_codes.h"

#include <algorithm>
#include <atomic>

#include "quant/cuda_forms.h"

namespace nibble {

namespace {

QuantSpec spec_of_fp8(Element element) {
    return parse_spec(element == Element::e5m2 ? "fp8:e5m2 tensor" : "fp8:e4m3 tensor");
}

void transpose_codes(Context& context, const QuantizedMatrix& q, const QuantizedMatrix& out) {
    NIBBLE_ON_CUDA(context, transpose_codes(context, q, out));
    const auto* const from = q.codes.as<uint8_t>();
    auto* const to = out.codes.as<uint8_t>();
    parallel_for(out.rows, rows_per_task(out.padded_cols), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            for (int64_t c = 0; c < out.padded_cols; ++c) {
                to[r * out.padded_cols + c] = c < q.rows ? from[c * q.padded_cols + r] : uint8_t{0};
            }
        }
    });
}

void fold_to_fp8(Context& context, const QuantizedMatrix& q, const QuantizedMatrix& out,
                 uint32_t* rounded_blocks) {
    NIBBLE_ON_CUDA(context, fold_to_fp8(context, q, out, rounded_blocks));
    if (context.planning()) return;
    const std::span<const uint8_t> scales = q.scales.span<uint8_t>();
    const int top = fold_range(out.spec.element).top;
    const int largest = std::max<int>(scales.empty() ? 0 : *std::ranges::max_element(scales), top + 1);
    *out.tensor_scale_ptr() = *q.tensor_scale_ptr() * power_of_two(largest - 127 - top);
    std::atomic<uint32_t> rounded{0};
    const auto* const codes = q.codes.as<uint8_t>();
    auto* const to = out.codes.as<uint8_t>();
    parallel_for(q.scales.count(), 64, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            const int below = largest - scales[static_cast<size_t>(block)];
            bool is_exact = true;
            for (int64_t i = block * kMxfp4Block; i < (block + 1) * kMxfp4Block; ++i) {
                const auto code = static_cast<uint8_t>(codes[i / 2] >> (i % 2 * 4) & 15);
                to[i] = folded_code(out.spec.element, code, below);
                is_exact = is_exact && is_folded_exactly(out.spec.element, code, below);
            }
            if (!is_exact) ++rounded;
        }
    });
    if (rounded_blocks != nullptr) *rounded_blocks += rounded;
}

}  // namespace

QuantizedMatrix allocate_transpose(Context& context, const QuantizedMatrix& q) {
    require(q.spec.code_bits() == 8 && !q.spec.has_scale_bytes() && !q.spec.has_fp32_scales() &&
                q.codes.shape.rank() > 0,
            "a {} matrix has no codes that can be transposed alone", to_string(q.spec));
    QuantizedMatrix out;
    out.spec = spec_of_fp8(q.spec.element);
    out.rows = q.padded_cols;
    out.cols = q.rows;
    out.padded_cols = out.spec.padded(q.rows);
    out.codes = context.arena.allocate(DType::u8, {out.rows, out.padded_cols});
    out.tensor_scale = context.arena.allocate(DType::f32, {1});
    return out;
}

QuantizedMatrix transposed_codes(Context& context, const QuantizedMatrix& q) {
    QuantizedMatrix out = allocate_transpose(context, q);
    out.tensor_scale = q.tensor_scale;
    if (!context.planning()) transpose_codes(context, q, out);
    return out;
}

void quantize_with_transpose(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                             QuantizedMatrix& out, const QuantizedMatrix& transpose,
                             const QuantizeOptions& options) {
    require(transpose.rows == out.padded_cols && transpose.cols == out.rows,
            "{}: a transpose of [{}, {}] is not that of [{}, {}]", options.name, transpose.rows,
            transpose.cols, out.rows, out.padded_cols);
    out.tensor_scale = transpose.tensor_scale;
    if constexpr (kHasCuda) {
        if (context.device == Device::cuda &&
            cuda::quantize_with_transpose(context, spec, x, key, out, transpose, options))
            return;
    }
    quantize(context, spec, x, key, out, options);
    if (!context.planning()) transpose_codes(context, out, transpose);
}

QuantizedMatrix folded_to_fp8(Context& context, const QuantizedMatrix& q, Element element,
                              uint32_t* rounded_blocks) {
    require(q.spec.format == Format::mxfp4 && q.codes.shape.rank() > 0,
            "a {} matrix has no codes whose scales fold into FP8", to_string(q.spec));
    require(element == Element::e4m3 || element == Element::e5m2, "scales fold into E4M3 or E5M2");
    QuantizedMatrix out;
    out.spec = spec_of_fp8(element);
    out.rows = q.rows;
    out.cols = out.padded_cols = q.padded_cols;  // where q rotates, its padding holds numbers
    out.codes = context.arena.allocate(DType::u8, {out.rows, out.padded_cols});
    out.tensor_scale = context.arena.allocate(DType::f32, {1});
    fold_to_fp8(context, q, out, rounded_blocks);
    return out;
}

}  // namespace nibble
