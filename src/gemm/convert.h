// F32 <-> BF16, whole tensors.
#pragma once

#include "core/core.h"

namespace nibble {

// to = from, both F32 or BF16 with the same number of elements; to BF16 by rounding to nearest even.
// round_bf16: also an F32 result holds values rounded to BF16.
void convert(const Tensor& from, const Tensor& to, bool round_bf16 = false);

}  // namespace nibble
