// Causal attention with grouped queries: softmax(q kᵀ / sqrt(head_dim)) v, heads sharing keys and values in
// groups.
#pragma once

#include "core/core.h"

namespace nibble {

struct AttentionShape {
    int64_t sequence = 0;  // T is a multiple of it: sequences lie one after the other
    int heads = 0, kv_heads = 0, head_dim = 0;
    // Backward gives the same bits on every run. Without it a GPU may add up dq in any order, which takes
    // less memory and, for sequences of some thousands, less time; a CPU keeps the promise in any case.
    bool deterministic = true;
};

// qkv: [T, (heads + 2*kv_heads) * head_dim], queries, then keys, then values; out: [T, heads * head_dim].
// logsumexp: F32, T * heads of the scaled scores of each row, kept for backward. Its layout is the device's
// own: [T, heads] on a CPU, [sequences, heads, sequence] on a GPU. The scores are never stored.
void attention_forward(Context& context, const AttentionShape& shape, const Tensor& qkv, const Tensor& out,
                       const Tensor& logsumexp);
// dqkv: overwritten.
void attention_backward(Context& context, const AttentionShape& shape, const Tensor& dout, const Tensor& qkv,
                        const Tensor& out, const Tensor& logsumexp, const Tensor& dqkv);

// What computes it on that device, for a person: "cuDNN 9.19.0, deterministic".
std::string attention_description(Device device, const AttentionShape& shape, DType activations);
// The library that a GPU's attention comes from, "cuDNN 9.19.0"; empty on a CPU, whose products are those of
// matmul_description().
std::string attention_library(Device device);

}  // namespace nibble
