// What operands with tensor=delayed remember: the amax of the step before, by which they scale.
#pragma once

#include <array>

#include "core/core.h"

namespace nibble {

// One for each layer, in the order of kOperandNames, in the memory of the layer's device; 0: none yet. The
// caller owns it, gives it to QuantLinear::prepare() and stores it in checkpoints.
struct AmaxHistory {
    std::array<float, 6> previous{};  // of the last step that was trained
    std::array<float, 6> current{};   // the largest so far in this one
    friend bool operator==(const AmaxHistory&, const AmaxHistory&) = default;
};
static_assert(sizeof(AmaxHistory) == 12 * sizeof(float));  // F32 [2, 6] in a checkpoint

// If the history has recorded something since it last began a step, it begins the next one.
void begin_step(Context& context, AmaxHistory* history);
// *largest <- max(*largest, *amax), both on the context's device.
void record_amax(Context& context, const float* amax, float* largest);

}  // namespace nibble
