// Inside nn/ only: the plain tensor passes around the products of a linear layer.
#pragma once

#include "core/core.h"
#include "quant/quant.h"
#include "recipe/recipe.h"

namespace nibble::detail {

// out <- x, to another dtype (F32 or BF16) of the same shape.
void convert(Context& context, const Tensor& x, const Tensor& out);
// x, rounded to BF16; a copy in the arena unless it is BF16 already.
Tensor as_bf16(Context& context, const Tensor& x);
// x [R, C] with zero columns, or rows, added up to `count`; x itself where nothing is missing.
Tensor padded_columns(Context& context, const Tensor& x, int64_t count);
Tensor padded_rows(Context& context, const Tensor& x, int64_t count);

// The way of a gradient from the space of the forward's operand to its tensor (recipe.h, Finish): zero where
// `mask` is 0 (U8 [R, at least C/8], bit k%8 of byte k/8; no shape: none), turn back the rotation of a spec
// (null: not), and write or add the first columns to `out`, F32 or BF16 [R, at most C]. gradient: F32 [R, C],
// overwritten.
void finish_gradient(Context& context, const Tensor& gradient, const Tensor& mask, const QuantSpec* rotation,
                     const SignBits& signs, const Tensor& out, bool accumulate);

}  // namespace nibble::detail
