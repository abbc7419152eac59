// Vector loops over rows, for what surrounds the products of this room.
#pragma once

#include "core/core.h"

namespace nibble {

void to_f32(const Bf16* from, float* to, int64_t count);
void to_bf16(const float* from, Bf16* to, int64_t count);
// Rounded to BF16, kept as F32.
void round_to_bf16(const float* from, float* to, int64_t count);

// How one row of C is made from sums of products.
struct FinishRow {
    const float* sums = nullptr;  // `parts` rows, `stride` apart, added in order
    int64_t parts = 1, stride = 0;
    float factor = 1.0f;          // multiplies their sum
    const float* cols = nullptr;  // a factor for each column, or none
    bool accumulate = false;      // C += (F32)
};
void finish_row(const FinishRow& row, float* c, int64_t count);
void finish_row(const FinishRow& row, Bf16* c, int64_t count);

}  // namespace nibble
