// The speed of light of a training step: the floating-point operations that the model's mathematics needs,
// over the rate at which this machine multiplies matrices in bf16, measured in the same run. Whatever is
// neither a necessary product nor attention (quantisation, norms, the optimizer, recomputation, loading) is
// overhead.
#pragma once

#include <string>

#include "nn/model_config.h"

namespace nibble {

// Weights that take part in matrix products: those of the blocks and the LM head (also when it is tied). An
// embedding is read, not multiplied.
int64_t matmul_parameters(const ModelConfig& config);

// FLOPs of training on one token of a sequence of T = `sequence_length`; a multiplication and an addition
// count two:
//   6 * matmul_parameters      y = xWᵀ costs 2 for each element of W, backward twice that
//   + 6 * L * d * (T + 1)      causal attention, d = heads * head_dim: a token meets (T + 1) / 2 others on
//                              average, in q·k and in p·v, 2 FLOPs each; backward twice that
// (Kaplan et al., arXiv 2001.08361, table 1, with attention counted for its causal half.)
double training_flops_per_token(const ModelConfig& config, int64_t sequence_length);
// A third of it.
double forward_flops_per_token(const ModelConfig& config, int64_t sequence_length);

// FLOP/s of bf16 matrix products through matmul(): the best of a few square sizes, measured for about
// `seconds` with all threads (or a whole GPU), beyond a first call of each.
double measure_gemm_peak(Device device, double seconds = 0.2);

}  // namespace nibble
