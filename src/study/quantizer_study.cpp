#include "study/quantizer_study.h"

#include <cmath>

#include "quant/statistics.h"

namespace nibble {

namespace {

// Of an element and its share of scales, as stored.
double stored_bits(const QuantizedMatrix& q) {
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
    const SignBits signs = rotation_signs(spec, key);
    StatisticsOptions options;
    options.signs = &signs;
    QuantStatistics s;
    double bits = 0;
    const auto run = [&] {
        const ArenaScope scope(arena);
        QuantizedMatrix q = allocate_quantized(arena, spec, x.rows(), x.cols());
        quantize(context, spec, x, key, q);
        s = measure_quantized(context, q, x, options);
        bits = stored_bits(q);
    };
    run();
    arena.commit();
    run();
    QuantizerFigures figures;
    figures.relative_mse = s.relative_mse();
    figures.effective_bits = s.error > 0 ? -0.5 * std::log2(figures.relative_mse) : INFINITY;
    figures.misalignment = s.power > 0 ? -s.along / s.power : 0;
    figures.clipped = s.clipped_share();
    figures.flushed = s.flushed_share();
    figures.bits = bits;
    return figures;
}

}  // namespace nibble
