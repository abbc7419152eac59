#include "quant/fp8_codes.h"

#include <algorithm>
#include <atomic>

#include "quant/cuda_forms.h"

namespace nibble {

namespace {

QuantSpec spec_of_fp8(Element element, std::string_view block) {
    return parse_spec(fmt::format("fp8:{} {}", element == Element::e5m2 ? "e5m2" : "e4m3", block));
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

void fold_to_fp8(Context& context, const QuantizedMatrix& q, const FoldedMatrix& out) {
    NIBBLE_ON_CUDA(context, fold_to_fp8(context, q, out));
    const Element element = out.codes.spec.element;
    const int top = fold_range(element).top;
    const int64_t blocks = q.padded_cols / kMxfp4Block;
    const auto *const codes = q.codes.as<uint8_t>(), *const scales = q.scales.as<uint8_t>();
    auto* const to = out.codes.codes.as<uint8_t>();
    std::atomic<uint32_t> rounded{0};
    parallel_for(q.rows, rows_per_task(q.padded_cols), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const std::span of_row(scales + row * blocks, static_cast<size_t>(blocks));
            const int largest =
                std::max<int>(of_row.empty() ? 0 : *std::ranges::max_element(of_row), top + 1);
            out.codes.fp32_scales.as<float>()[row] = power_of_two(largest - 127 - top);
            for (int64_t block = row * blocks; block < (row + 1) * blocks; ++block) {
                const int below = largest - scales[block];
                bool is_exact = true;
                for (int64_t i = block * kMxfp4Block; i < (block + 1) * kMxfp4Block; ++i) {
                    const auto code = static_cast<uint8_t>(codes[i / 2] >> (i % 2 * 4) & 15);
                    to[i] = folded_code(element, code, below);
                    is_exact = is_exact && is_folded_exactly(element, code, below);
                }
                if (!is_exact) ++rounded;
            }
        }
    });
    *out.rounded.as<uint32_t>() = rounded;
}

}  // namespace

QuantizedMatrix allocate_transpose(Context& context, const QuantizedMatrix& q) {
    require(q.spec.code_bits() == 8 && !q.spec.has_scale_bytes() && !q.spec.has_fp32_scales() &&
                q.codes.shape.rank() > 0,
            "a {} matrix has no codes that can be transposed alone", to_string(q.spec));
    QuantizedMatrix out;
    out.spec = spec_of_fp8(q.spec.element, "tensor");
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

FoldedMatrix folded_to_fp8(Context& context, const QuantizedMatrix& q, Element element) {
    require(q.spec.format == Format::mxfp4 && q.codes.shape.rank() > 0,
            "a {} matrix has no codes whose scales fold into FP8", to_string(q.spec));
    require(element == Element::e4m3 || element == Element::e5m2, "scales fold into E4M3 or E5M2");
    FoldedMatrix out;
    // Where q rotates, its padding holds numbers.
    out.codes = allocate_quantized(context.arena, spec_of_fp8(element, "row"), q.rows, q.padded_cols);
    out.codes.tensor_scale = q.tensor_scale;
    out.rounded = context.arena.allocate(DType::u32, {1});
    if (!context.planning()) fold_to_fp8(context, q, out);
    return out;
}

}  // namespace nibble
