#include "optim/cage.h"

#include "core/cuda.h"
#include "optim/cuda_forms.h"
#include "optim/forward_weight.h"

namespace nibble {

namespace {

// w <- w - pull (w - values), in the columns that w has.
void pull_towards(Context& context, const Tensor& values, float pull, const Tensor& w) {
    NIBBLE_ON_CUDA(context, pull_towards(context, values, pull, w));
    const int64_t cols = w.cols(), padded = values.cols();
    parallel_for(w.rows(), kUpdateRows, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            float* const row = w.as<float>() + r * cols;
            const float* const q = values.as<float>() + r * padded;
            for (int64_t k = 0; k < cols; ++k) row[k] -= pull * (row[k] - q[k]);
        }
    });
}

}  // namespace

double cage_lambda(const Cage& options, int64_t update, int64_t updates) {
    const double done = static_cast<double>(update) / static_cast<double>(updates);
    if (done <= options.silence) return 0;
    if (options.ramp == "constant") return options.lambda;
    return options.lambda * (done - options.silence) / (1 - options.silence);
}

void cage_update(Context& context, const QuantSpec& spec, const RandomKey& key, double rate,
                 const Tensor& w) {
    if (rate == 0 && !context.planning()) return;
    const ArenaScope scope(context.arena);
    const Tensor values = forward_weight(context, spec, key, w);
    if (!context.planning()) pull_towards(context, values, static_cast<float>(rate), w);
}

}  // namespace nibble
