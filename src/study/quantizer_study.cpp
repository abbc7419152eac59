#include "study/quantizer_study.h"

#include <cmath>

#include "quant/statistics.h"

namespace nibble {

QuantizerFigures study_quantizer(const QuantSpec& spec, const Tensor& x, const RandomKey& key) {
    Arena arena;
    Context context{arena};
    const SignBits signs = rotation_signs(spec, key);
    StatisticsOptions options;
    options.signs = &signs;
    QuantStatistics s;
    const auto run = [&] {
        const ArenaScope scope(arena);
        QuantizedMatrix q = allocate_quantized(arena, spec, x.rows(), x.cols());
        quantize(context, spec, x, key, q);
        s = measure_quantized(context, q, x, options);
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
    figures.bits = 4 + 8.0 / spec.block_size();
    return figures;
}

}  // namespace nibble
