// Drawing the next token from a model's logits.
#pragma once

#include <cstdint>
#include <span>

namespace nibble {

struct SamplingOptions {
    double temperature = 1.0;  // 0: always the most likely token
    int64_t top_k = 0;         // only the k most likely; 0: all
    double top_p = 1.0;        // only the most likely ones that together have this probability
};

// Token `index` of a text: a function of its arguments alone (Purpose::sampling). Tokens are ranked by logit,
// equal ones by id; top_k is applied first, then top_p, both after the temperature. The highest rank always
// stays. Throws Error when the logits are not finite.
int32_t sample_token(std::span<const float> logits, const SamplingOptions& options, uint64_t seed,
                     uint64_t index);

}  // namespace nibble
