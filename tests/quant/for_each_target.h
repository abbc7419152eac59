// Runs a test under each instruction set that has kernels on this machine.
#pragma once

#include <gtest/gtest.h>

#include "quant/simd_targets.h"
// After the choice of targets.
#include <hwy/highway.h>
#include <hwy/targets.h>

namespace nibble {

template <typename Body>
void for_each_target(Body&& body) {
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
        if (target == HWY_STATIC_TARGET && !NIBBLE_HAS_LANES) continue;
        SCOPED_TRACE(hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(target);
        body();
        hwy::SetSupportedTargetsForTest(0);
    }
}

}  // namespace nibble
