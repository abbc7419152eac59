#include "optim/oscireset.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/cuda.h"
#include "optim/cuda_forms.h"
#include "optim/forward_weight.h"
#include "optim/schedule.h"

namespace nibble {

namespace {

// before, after: Q(previous) and Q(w).
void add_paths(Context& context, const Tensor& before, const Tensor& after, const Tensor& w,
               const Oscillation& seen) {
    NIBBLE_ON_CUDA(context, add_paths(context, before, after, w, seen));
    const int64_t cols = w.cols(), padded = after.cols();
    parallel_for(w.rows(), kUpdateRows, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const int64_t first = r * cols, first_padded = r * padded;
            float* const path = seen.weight_path.as<float>() + first;
            float* const quantized_path = seen.quantized_path.as<float>() + first;
            float* const previous = seen.previous.as<float>() + first;
            const float* const now = w.as<float>() + first;
            const float* const q_before = before.as<float>() + first_padded;
            const float* const q_after = after.as<float>() + first_padded;
            for (int64_t k = 0; k < cols; ++k) {
                path[k] += std::fabs(now[k] - previous[k]);
                quantized_path[k] += std::fabs(q_after[k] - q_before[k]);
                previous[k] = now[k];
            }
        }
    });
}

// values: Q(w). count: I64 [1], scratch.
int64_t reset_oscillating(Context& context, const Tensor& values, float threshold, const Tensor& count,
                          const Tensor& w, const Oscillation& seen) {
    NIBBLE_ON_CUDA(context, reset_oscillating(context, values, threshold, count, w, seen));
    const int64_t cols = w.cols(), padded = values.cols();
    std::atomic<int64_t> resets = 0;
    parallel_for(w.rows(), kUpdateRows, [&](int64_t begin, int64_t end) {
        int64_t in_rows = 0;
        for (int64_t r = begin; r < end; ++r) {
            const float* const path = seen.weight_path.as<float>() + r * cols;
            const float* const quantized_path = seen.quantized_path.as<float>() + r * cols;
            for (int64_t k = 0; k < cols; ++k) {
                if (quantized_path[k] == 0 || !(quantized_path[k] >= threshold * path[k])) continue;
                w.as<float>()[r * cols + k] = values.as<float>()[r * padded + k];
                ++in_rows;
            }
        }
        resets += in_rows;
    });
    return resets;
}

}  // namespace

bool oscireset_begins(const OsciReset& options, int64_t update, int64_t updates) {
    const int64_t first = std::max<int64_t>(1, fraction_of_steps(options.start, updates));
    return update >= first && (update - first) % options.period == 0;
}

void oscireset_begin(Context& context, const Tensor& w, const Oscillation& seen) {
    if (context.planning()) return;
    fill_zero(context, seen.weight_path);
    fill_zero(context, seen.quantized_path);
    copy(context, w, seen.previous);
}

void oscireset_watch(Context& context, const QuantSpec& spec, const RandomKey& key, const Tensor& w,
                     const Oscillation& seen) {
    const ArenaScope scope(context.arena);
    const Tensor before = forward_weight(context, spec, key, seen.previous);
    const Tensor after = forward_weight(context, spec, key, w);
    if (!context.planning()) add_paths(context, before, after, w, seen);
}

int64_t oscireset_reset(Context& context, const QuantSpec& spec, const RandomKey& key, double threshold,
                        const Tensor& w, const Oscillation& seen) {
    const ArenaScope scope(context.arena);
    const Tensor values = forward_weight(context, spec, key, w);
    const Tensor count = context.arena.allocate(DType::i64, {1});
    if (context.planning()) return 0;
    return reset_oscillating(context, values, static_cast<float>(threshold), count, w, seen);
}

}  // namespace nibble
