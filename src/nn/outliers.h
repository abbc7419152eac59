// Outlier clamping and compensation (OCC) of arXiv 2501.17116, section 3.2. An activation tensor is split:
//
//   X = Xc + R      Xc: X clamped to two of its quantiles, for a narrow format;  R: what that cut off, sparse
//
// so that X W' = Xc W' + R W', the second product in high precision over the elements of R that are not zero.
#pragma once

#include "core/core.h"

namespace nibble {

// range <- the quantiles 1 - q and q of all elements of x, F32 or BF16: with cut = round((1 - q) n) of n
// elements, the element with rank cut in ascending order and the one with rank cut in descending order (ranks
// from 0), so that at most `cut` elements lie outside at each end. They are elements of x, and exact (a radix
// selection on their bits); none is interpolated. range: F32 [2], the lower one first. 1/2 < q < 1; x has
// elements. NaNs rank beyond the infinities. Allocates from context.arena.
void quantile_range(Context& context, const Tensor& x, double q, const Tensor& range);

// out <- x clamped to range[0] and range[1]; both F32 or both BF16, of one shape. NaNs and infinities stay,
// so that a quantiser names them.
void clamp(Context& context, const Tensor& x, const Tensor& range, const Tensor& out);

// y <- product + R W', where R = x - clamped x, formed in F32: exact where x is BF16. x: [T, K], F32 or BF16;
// w_transposed: [K, N], F32 or BF16; product: F32 [T, N], which may change; y: F32 or BF16 [T, N], product
// itself or disjoint. Terms of a row are added in the order of k to its product, in F32.
void add_outlier_product(Context& context, const Tensor& x, const Tensor& range, const Tensor& w_transposed,
                         const Tensor& product, const Tensor& y);

}  // namespace nibble
