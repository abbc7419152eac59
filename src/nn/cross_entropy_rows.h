// Vector loops of the loss: one row of logits at a time.
#pragma once

#include <string_view>

#include "core/core.h"

namespace nibble {

// Of the head's operands in FP8, and the largest E5M2, to which the gradients of the logits are scaled.
inline constexpr std::string_view kHeadSpec = "fp8:e4m3 tensor";
inline constexpr float kLargestGradient = 57344.0f;

// The loss of one row: log(sum exp(factor * logits)) - factor * logits[target]. The logits are overwritten.
// gradient, unless null: scale * (softmax(factor * logits) - onehot(target)), rounded, and stored as BF16 or
// F32.
struct LossRow {
    enum class Rounding : uint8_t { none, bf16, e5m2 };
    float factor = 1.0f;
    float scale = 1.0f;
    bool is_bf16 = false;
    Rounding rounding = Rounding::none;  // beyond that of the store
};
float loss_row(const LossRow& row, float* logits, int64_t vocabulary, int64_t target, void* gradient);

}  // namespace nibble
