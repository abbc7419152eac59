// Rotary position embedding (Su et al., arXiv 2104.09864).
#pragma once

#include "core/core.h"

namespace nibble {

// Which two elements of a head form a pair: (2i, 2i+1), as the paper, or (i, i + head_dim/2), as Hugging
// Face.
enum class RopeLayout : uint8_t { interleaved, half_split };

// cos and sin of position * theta^(-2i/head_dim): F32 [positions, head_dim/2] each, computed in double.
void rope_table(double theta, const Tensor& cos, const Tensor& sin);

// Rotates, in place, the query and key heads of qkv [T, (heads + 2*kv_heads) * head_dim] (queries, then keys,
// then values). Row t has position t % sequence. bias: if it has a shape, of all heads, added first as
// add_bias() does (nn/bias.h).
void rope_forward(Context& context, RopeLayout layout, const Tensor& qkv, int64_t sequence, int heads,
                  int kv_heads, const Tensor& cos, const Tensor& sin, const Tensor& bias = {});
// The inverse rotation of the gradient, in place.
void rope_backward(Context& context, RopeLayout layout, const Tensor& dqkv, int64_t sequence, int heads,
                   int kv_heads, const Tensor& cos, const Tensor& sin);

}  // namespace nibble
