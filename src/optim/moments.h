// The rounding of AdamW's moments where they are kept in BF16: stochastic, or the second one, which moves by
// 1 - beta2 of what it lacks, would stand still.
#pragma once

#include "numerics/bf16.h"
#include "numerics/philox.h"

namespace nibble {

// Of the two BF16 numbers around a finite x the one farther from zero if the bits that BF16 drops, as a
// fraction of 2^16, and the coin together reach 1: unbiased, and exact where nothing is dropped.
NIBBLE_HD Bf16 bf16_round_stochastic(float x, uint16_t coin) {
    return {static_cast<uint16_t>((std::bit_cast<uint32_t>(x) + coin) >> 16)};
}

// The coins of elements 4i .. 4i + 3 of tensor number `tensor` in an update: coin 2j rounds the first moment
// of element 4i + j, coin 2j + 1 the second.
NIBBLE_HD Philox moment_coins(uint64_t seed, uint32_t update, uint16_t tensor, int64_t i) {
    return philox_draw(seed, Purpose::moments, static_cast<uint64_t>(i), update, tensor);
}
inline constexpr int kMomentCoins = 4;  // elements of a draw

}  // namespace nibble
