// Q-EMA's moving average of a weight (TetraJet, arXiv 2502.20853). What it is for: quant/round_towards.h.
#pragma once

#include "core/core.h"

namespace nibble {

// average <- decay * average + (1 - decay) * w; the first time: w. F32, of one shape.
void qema_update(Context& context, double decay, bool is_first, const Tensor& w, const Tensor& average);

}  // namespace nibble
