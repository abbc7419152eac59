// Formats whose scales are FP32 numbers (fp8, fp4, int4, log4), one block at a time: docs/numerics.md,
// section 10. The block's maximum is mapped to the largest element.
#pragma once

#include <cfloat>
#include <cmath>

#include "numerics/host_device.h"

namespace nibble {

struct Fp32Scale {
    float encode;  // S, what elements are multiplied by before they are rounded
    float scale;   // fl(1 / S), a multiplier
};

// `largest`: of the elements; amax: of the block. With tensor blocks and largest 448 or 57344, this is
// TransformerEngine's current scaling.
NIBBLE_HD Fp32Scale fp32_scale(float largest, float amax) {
    const float encode = amax == 0.0f ? 1.0f : std::fmin(largest / amax, FLT_MAX);
    return {encode, 1.0f / encode};
}

}  // namespace nibble
