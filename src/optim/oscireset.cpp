#include "optim/oscireset.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "optim/forward_weight.h"
#include "optim/schedule.h"

namespace nibble {

bool oscireset_begins(const OsciReset& options, int64_t update, int64_t updates) {
    const int64_t first = std::max<int64_t>(1, fraction_of_steps(options.start, updates));
    return update >= first && (update - first) % options.period == 0;
}

void oscireset_begin(Context& context, const Tensor& w, const Oscillation& seen) {
    if (context.planning()) return;
    std::memset(seen.weight_path.data, 0, seen.weight_path.bytes());
    std::memset(seen.quantized_path.data, 0, seen.quantized_path.bytes());
    std::memcpy(seen.previous.data, w.data, w.bytes());
}

void oscireset_watch(Context& context, const QuantSpec& spec, const RandomKey& key, const Tensor& w,
                     const Oscillation& seen) {
    const ArenaScope scope(context.arena);
    const Tensor before = forward_weight(context, spec, key, seen.previous);
    const Tensor after = forward_weight(context, spec, key, w);
    if (context.planning()) return;
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

int64_t oscireset_reset(Context& context, const QuantSpec& spec, const RandomKey& key, double threshold,
                        const Tensor& w, const Oscillation& seen) {
    const ArenaScope scope(context.arena);
    const Tensor values = forward_weight(context, spec, key, w);
    if (context.planning()) return 0;
    const auto least = static_cast<float>(threshold);
    const int64_t cols = w.cols(), padded = values.cols();
    std::atomic<int64_t> resets = 0;
    parallel_for(w.rows(), kUpdateRows, [&](int64_t begin, int64_t end) {
        int64_t count = 0;
        for (int64_t r = begin; r < end; ++r) {
            const float* const path = seen.weight_path.as<float>() + r * cols;
            const float* const quantized_path = seen.quantized_path.as<float>() + r * cols;
            for (int64_t k = 0; k < cols; ++k) {
                if (quantized_path[k] == 0 || !(quantized_path[k] >= least * path[k])) continue;
                w.as<float>()[r * cols + k] = values.as<float>()[r * padded + k];
                ++count;
            }
        }
        resets += count;
    });
    return resets;
}

}  // namespace nibble
