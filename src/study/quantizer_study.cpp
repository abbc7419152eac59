#include "study/quantizer_study.h"

#include <cmath>
#include <vector>

#include "numerics/numerics.h"

namespace nibble {

namespace {

// x as the quantiser meets it: F32, padded with zeros, rotated.
std::vector<float> as_quantized(const QuantSpec& spec, const Tensor& x, const RandomKey& key) {
    const int64_t rows = x.rows(), cols = x.cols(), padded = spec.padded(cols);
    const int64_t padded_rows = spec.padded_rows(rows);
    std::vector<float> values(static_cast<size_t>(padded_rows * padded), 0.0f);
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t k = 0; k < cols; ++k) {
            const int64_t i = r * cols + k;
            values[static_cast<size_t>(r * padded + k)] =
                x.dtype == DType::bf16 ? bf16_decode(x.as<Bf16>()[i]) : x.as<float>()[i];
        }
    }
    if (spec.rotation != Rotation::none) {
        Arena none(0);
        Context context{none};
        (spec.rotates_rows() ? rotate_rows : rotate)(context, spec.rotation_size, rotation_signs(spec, key),
                                                     view_of(values, {padded_rows, padded}),
                                                     spec.rotation_rounds());
    }
    return values;
}

// What element i can at most be, given its scales.
double largest_value(const QuantizedMatrix& q, int64_t i) {
    const QuantSpec& spec = q.spec;
    double largest = double{largest_of(spec.element)} * double{*q.tensor_scale_ptr()};
    if (spec.has_scale_bytes()) {
        const uint8_t byte = q.scales.as<uint8_t>()[i / spec.block_size()];
        largest *= double{spec.is_mx() ? e8m0_decode(byte) : e4m3_decode(byte)};
    }
    if (spec.has_fp32_scales()) {
        const int64_t block = spec.has_row_scales() ? q.padded_cols : spec.fp32_block_size();
        largest *= double{q.fp32_scales.as<float>()[i / block]};
    }
    return largest;
}

// Of an element and its share of scales, as stored.
double bits_of(const QuantizedMatrix& q) {
    const auto count = static_cast<double>(q.rows * q.padded_cols);
    double bytes = static_cast<double>(q.codes.bytes());
    if (q.spec.has_scale_bytes()) bytes += static_cast<double>(q.scales.bytes());
    if (q.spec.has_fp32_scales()) bytes += static_cast<double>(q.fp32_scales.bytes());
    return count > 0 ? 8 * bytes / count : q.spec.code_bits();
}

}  // namespace

QuantizerFigures study_quantizer(const QuantSpec& spec, const Tensor& x, const RandomKey& key) {
    Arena arena;
    Context context{arena};
    QuantizedMatrix q;
    Tensor values;
    const auto run = [&] {
        q = allocate_quantized(arena, spec, x.rows(), x.cols());
        values = arena.allocate(DType::f32, {q.rows, q.padded_cols});
        quantize(context, spec, x, key, q);
        dequantize(context, q, values);
    };
    {
        const ArenaScope plan(arena);
        run();
    }
    arena.commit();
    run();

    const std::vector<float> expected = as_quantized(spec, x, key);
    double error = 0, power = 0, along = 0;
    int64_t clipped = 0, flushed = 0;
    for (int64_t i = 0; i < values.count(); ++i) {
        const double v = expected[static_cast<size_t>(i)], d = values.as<float>()[i] - v;
        error += d * d;
        power += v * v;
        along += values.as<float>()[i] * v;
        clipped += std::fabs(v) > largest_value(q, i);
        flushed += v != 0 && values.as<float>()[i] == 0;
    }
    // Padding holds no elements, unless a rotation has filled it.
    const auto count = static_cast<double>(q.rows * (spec.rotates_columns() ? q.padded_cols : q.cols));
    QuantizerFigures figures;
    figures.relative_mse = power > 0 ? error / power : 0;
    figures.effective_bits = error > 0 ? -0.5 * std::log2(figures.relative_mse) : INFINITY;
    figures.misalignment = power > 0 ? 1 - along / power : 0;
    figures.clipped = static_cast<double>(clipped) / count;
    figures.flushed = static_cast<double>(flushed) / count;
    figures.bits = bits_of(q);
    return figures;
}

}  // namespace nibble
