#include "train/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/error.h"
#include "numerics/philox.h"

namespace nibble {

int32_t sample_token(std::span<const float> logits, const SamplingOptions& options, uint64_t seed,
                     uint64_t index) {
    require(!logits.empty(), "there are no logits to sample from");
    for (size_t i = 0; i < logits.size(); ++i) {
        require(std::isfinite(logits[i]),
                "the model's logit of token {} is not finite; its weights are damaged", i);
    }
    const auto likelier = [&](int32_t a, int32_t b) {
        const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
        return x != y ? x > y : a < b;
    };
    std::vector<int32_t> ranked(logits.size());
    std::iota(ranked.begin(), ranked.end(), 0);
    if (options.temperature <= 0) return *std::min_element(ranked.begin(), ranked.end(), likelier);

    if (options.top_k > 0 && static_cast<size_t>(options.top_k) < ranked.size()) {
        std::partial_sort(ranked.begin(), ranked.begin() + options.top_k, ranked.end(), likelier);
        ranked.resize(static_cast<size_t>(options.top_k));
    } else {
        std::sort(ranked.begin(), ranked.end(), likelier);
    }
    const double largest = logits[static_cast<size_t>(ranked[0])];
    std::vector<double> weights;
    double total = 0;
    for (const int32_t token : ranked) {
        weights.push_back(std::exp((logits[static_cast<size_t>(token)] - largest) / options.temperature));
        total += weights.back();
    }
    if (options.top_p < 1) {
        double kept = 0;
        size_t count = 0;
        while (count < weights.size() && (count == 0 || kept < options.top_p * total))
            kept += weights[count++];
        weights.resize(count);
        total = kept;
    }
    const Philox draw = philox_draw(seed, Purpose::sampling, index);
    const uint64_t bits = static_cast<uint64_t>(draw.word[0]) << 32 | draw.word[1];
    double left = static_cast<double>(bits >> 11) * 0x1p-53 * total;
    for (size_t i = 0; i + 1 < weights.size(); ++i) {
        left -= weights[i];
        if (left < 0) return ranked[i];
    }
    return ranked[weights.size() - 1];
}

}  // namespace nibble
