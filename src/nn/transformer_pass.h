// The working set of one pass through a Transformer; for transformer*.cpp alone.
#pragma once

#include "nn/transformer.h"

namespace nibble {

struct Transformer::Pass {
    int64_t tokens = 0;    // T = sequences * length
    int64_t sequence = 0;  // length
    bool for_backward = false;
    // The residual stream between two norms is residual + delta; the next norm makes the sum.
    Tensor residual, delta;  // [T, C]
    bool has_delta = false;
    Tensor stream;  // [T, C], recompute = block: that sum inside of a block
    // Inputs of linear layers whose backward does not read them; in backward, gradients of the same shapes.
    Tensor normed;  // [T, C]
    Tensor hidden;  // [T, F]
    Tensor amax;    // F32 [1], of the input that was made last, where a quantiser reads it; or no shape
    Tensor d_amax;  // likewise, of the gradient of the SwiGLU's input
    // Backward only.
    Tensor d_residual;  // [T, C], the gradient of the residual stream
    Tensor d_mixed;     // [T, heads * head_dim]
    Tensor d_qkv;       // [T, qkv_size]
};

struct Transformer::Saved {
    Tensor attention_x, mlp_x;        // [T, C], what the norms read
    Tensor attention_rstd, mlp_rstd;  // F32 [T]
    Tensor qkv;                       // [T, qkv_size], after RoPE
    Tensor qk_x, qk_rstd;             // what qk_norm_forward() keeps, of Qwen3
    Tensor mixed;                     // [T, heads * head_dim], the attention's output
    Tensor logsumexp;                 // F32 [T, heads]
    Tensor gate_up;                   // [T, 2F]
    Tensor channel_scales;            // F32 [F], of smooth-swiglu; no shape: none
    QuantLinear::Saved linear[kBlockLayers];
};

}  // namespace nibble
