// The two ways in which attention is computed on a GPU. attention.cu chooses; tests compare them.
#pragma once

#include "nn/attention.h"

namespace nibble::cuda {

// Our own kernels: activations F32 or BF16, any shape, sums in F32, the same bits on every run. Simple and
// slow: a block for each row of queries, and of keys, on the ordinary cores.
void plain_attention_forward(Context& context, const AttentionShape& shape, const Tensor& qkv,
                             const Tensor& out, const Tensor& logsumexp);
void plain_attention_backward(Context& context, const AttentionShape& shape, const Tensor& dout,
                              const Tensor& qkv, const Tensor& out, const Tensor& logsumexp,
                              const Tensor& dqkv);

// cuDNN, on the tensor cores. Workspace comes from the arena; plans are built once for each shape, in the
// planning pass. Throws Error for a release of cuDNN with known faults and where cuDNN has no plan.
void cudnn_attention_forward(Context& context, const AttentionShape& shape, const Tensor& qkv,
                             const Tensor& out, const Tensor& logsumexp);
void cudnn_attention_backward(Context& context, const AttentionShape& shape, const Tensor& dout,
                              const Tensor& qkv, const Tensor& out, const Tensor& logsumexp,
                              const Tensor& dqkv);
// Whether cuDNN's attention is made for them: BF16, two positions or more, head sizes a multiple of 8 of at
// most 256 on Hopper and 128 on other GPUs (what its backward pass takes).
bool cudnn_takes_attention(const AttentionShape& shape, DType activations);

// "cuDNN 9.19.0".
std::string attention_library();

}  // namespace nibble::cuda
