// CAGE: a pull of the weights towards their quantised values, beside the optimizer (arXiv 2510.18784).
//
// Training through a quantiser stops where the straight-through gradient vanishes; CAGE stops where gradient
// and quantisation error balance, grad f(w) + lambda (w - Q(w)) = 0. This is the decoupled form of the
// authors' code, applied after the optimizer's update as weight decay is.
#pragma once

#include <cstdint>

#include "core/core.h"
#include "quant/quant.h"
#include "recipe/modifier.h"

namespace nibble {

// Lambda after update number `update` (1 is the first) of `updates`: with r = update / updates, 0 for
// r <= silence, then lambda (r - silence) / (1 - silence), or lambda at once with ramp = "constant".
double cage_lambda(const Cage& options, int64_t update, int64_t updates);

// w <- w - rate (w - Q(w)), rate = learning rate * lambda; Q as forward_weight(). w: F32 [N, K]. A rate of 0
// changes no bit.
void cage_update(Context& context, const QuantSpec& spec, const RandomKey& key, double rate, const Tensor& w);

}  // namespace nibble
