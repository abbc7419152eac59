#include "nn/attention_cuda.h"
#include "nn/cuda_forms.h"

namespace nibble::cuda {

void attention_forward(Context& context, const AttentionShape& shape, const Tensor& qkv, const Tensor& out,
                       const Tensor& logsumexp) {
    const auto form =
        cudnn_takes_attention(shape, qkv.dtype) ? cudnn_attention_forward : plain_attention_forward;
    form(context, shape, qkv, out, logsumexp);
}

void attention_backward(Context& context, const AttentionShape& shape, const Tensor& dout, const Tensor& qkv,
                        const Tensor& out, const Tensor& logsumexp, const Tensor& dqkv) {
    const auto form =
        cudnn_takes_attention(shape, qkv.dtype) ? cudnn_attention_backward : plain_attention_backward;
    form(context, shape, dout, qkv, out, logsumexp, dqkv);
}

}  // namespace nibble::cuda
