// Vector loops of the loss: one row of logits at a time.
#pragma once

#include "core/core.h"

namespace nibble {

// The loss of one row: log(sum exp(logits)) - logits[target]. The logits are overwritten.
// gradient, unless null: scale * (softmax(logits) - onehot(target)), BF16 or F32, or F32 rounded to BF16.
struct LossRow {
    float scale = 1.0f;
    bool is_bf16 = false, rounded = false;
};
float loss_row(const LossRow& row, float* logits, int64_t vocabulary, int64_t target, void* gradient);

}  // namespace nibble
