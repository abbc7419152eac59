// The norm of each query and key head before RoPE (Qwen3): RMSNorm over the head's elements, with one weight
// for all queries and one for all keys.
#pragma once

#include "core/core.h"
#include "nn/attention.h"

namespace nibble {

// In place: each query and key head h of qkv becomes h / sqrt(mean(h²) + eps) * weight.
// qkv: BF16 or F32 [T, (heads + 2 kv_heads) * head_dim] (queries, then keys, then values); weights: F32
// [head_dim]. Kept for backward: x [T, (heads + kv_heads) * head_dim], the heads as they were, in the dtype
// of qkv, and rstd F32 [T, heads + kv_heads]; no shape: not kept.
void qk_norm_forward(Context& context, const AttentionShape& shape, const Tensor& qkv, const Tensor& q_weight,
                     const Tensor& k_weight, float eps, const Tensor& x, const Tensor& rstd);
// In place on the gradient of qkv. dq_weight, dk_weight: F32 [head_dim], accumulated.
void qk_norm_backward(Context& context, const AttentionShape& shape, const Tensor& dqkv,
                      const Tensor& q_weight, const Tensor& k_weight, const Tensor& x, const Tensor& rstd,
                      const Tensor& dq_weight, const Tensor& dk_weight);

}  // namespace nibble
