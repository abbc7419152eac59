// The differentiable gradient estimator (DGE) of arXiv 2501.17116, section 3.1: a smooth stand-in for
// rounding to E2M1, whose slope multiplies the gradient of the quantised weight. Between two neighbouring
// codes that lie delta apart, x counted from the lower one,
//
//   f(x)  = delta/2 (1 + sgn(2x/delta - 1) |2x/delta - 1|^(1/k))
//   f'(x) = 1/k |2x/delta - 1|^(1/k - 1),  at most `cap`
#pragma once

#include "core/core.h"
#include "nn/dge_reference.h"
#include "recipe/recipe.h"

namespace nibble {

// f over all of E2M1: x in [-6, 6], beyond which it stays at +-6. At codes and halfway between them f(x) = x.
double dge_surrogate(double x, double k);
// f' as used: at most dge.cap. Even in x; 1/k at the codes, dge.cap around the middle of each interval.
float dge_slope(float x, const Dge& dge);
DgeSlope dge_constants(const Dge& dge);

// gradient <- gradient (.) f'(6 W / amax), amax of each row of W. gradient: F32 [N, K or more], of which the
// first K columns are touched; w: F32 [N, K]. A row of zeros has the slope at the code 0.
void multiply_by_dge_slope(Context& context, const Dge& dge, const Tensor& w, const Tensor& gradient);

}  // namespace nibble
