#include "study/quantizer_study.h"

#include <cmath>
#include <vector>

#include "numerics/numerics.h"

namespace nibble {

namespace {

// x as the quantiser meets it: F32, padded with zeros, rotated.
std::vector<float> as_quantized(const QuantSpec& spec, const Tensor& x, const RandomKey& key) {
    const int64_t rows = x.rows(), cols = x.cols(), padded = spec.padded(cols);
    std::vector<float> values(static_cast<size_t>(rows * padded), 0.0f);
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
        rotate(context, spec.rotation_size, rotation_signs(spec, key), view_of(values, {rows, padded}),
               spec.rotation_rounds());
    }
    return values;
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
    const int block = spec.block_size();
    double error = 0, power = 0, along = 0;
    int64_t clipped = 0, flushed = 0;
    for (int64_t i = 0; i < values.count(); ++i) {
        const double v = expected[static_cast<size_t>(i)], d = values.as<float>()[i] - v;
        error += d * d;
        power += v * v;
        along += values.as<float>()[i] * v;
        const uint8_t byte = q.scales.as<uint8_t>()[i / block];
        const float scale = spec.format == Format::nvfp4 ? e4m3_decode(byte) : e8m0_decode(byte);
        clipped += std::fabs(v) > 6.0 * double{scale} * double{*q.tensor_scale_ptr()};
        flushed += v != 0 && values.as<float>()[i] == 0;
    }
    // Padding holds no elements, unless a rotation has filled it.
    const bool is_padded = spec.rotation == Rotation::none;
    const auto count = static_cast<double>(is_padded ? x.count() : values.count());
    QuantizerFigures figures;
    figures.relative_mse = power > 0 ? error / power : 0;
    figures.effective_bits = error > 0 ? -0.5 * std::log2(figures.relative_mse) : INFINITY;
    figures.misalignment = power > 0 ? 1 - along / power : 0;
    figures.clipped = static_cast<double>(clipped) / count;
    figures.flushed = static_cast<double>(flushed) / count;
    figures.bits = 4 + 8.0 / block;
    return figures;
}

}  // namespace nibble
