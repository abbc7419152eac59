// OsciReset (TetraJet-v2): a weight that goes to and fro across the border between two codes moves its
// quantised value much more than itself. Such weights are found by watching a window of updates, and set to
// their quantised value, the middle of a code, from where the way to a border is longest.
#pragma once

#include "core/core.h"
#include "quant/quant.h"
#include "recipe/modifier.h"

namespace nibble {

// What a window has seen of one matrix, F32 of its shape.
struct Oscillation {
    Tensor weight_path;     // sum |dw|
    Tensor quantized_path;  // sum |dQ(w)|
    Tensor previous;        // w after the last update that was seen
};

// True if a window begins after update number `update` (1 is the first) of `updates`: after the update at
// `start`, and then every `period`.
bool oscireset_begins(const OsciReset& options, int64_t update, int64_t updates);

// Begins a window: no path yet, w is where it starts.
void oscireset_begin(Context& context, const Tensor& w, const Oscillation& seen);
// Adds the way of one update, from `previous` to w and from Q(previous) to Q(w). spec, key: forward_weight().
void oscireset_watch(Context& context, const QuantSpec& spec, const RandomKey& key, const Tensor& w,
                     const Oscillation& seen);
// w <- Q(w) where the quantised path is not 0 and at least `threshold` times the weight's path. Returns how
// many.
int64_t oscireset_reset(Context& context, const QuantSpec& spec, const RandomKey& key, double threshold,
                        const Tensor& w, const Oscillation& seen);

}  // namespace nibble
