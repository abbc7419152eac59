// The simulated GPU's form of src/nn/attention_cudnn.cu: the readable form for CPUs, which is fast beside a
// simulated kernel.
#include <cuda_runtime.h>

#include "nn/attention_cuda.h"
#include "nn/attention_reference.h"

namespace nibble::cuda {

namespace {

// A GPU keeps logsumexp [sequences, heads, sequence], a CPU [tokens, heads].
void move_logsumexp(const AttentionShape& s, int64_t rows, float* of_gpu, float* of_cpu, bool to_cpu) {
    for (int64_t t = 0; t < rows; ++t)
        for (int h = 0; h < s.heads; ++h) {
            float& there = of_gpu[(t / s.sequence * s.heads + h) * s.sequence + t % s.sequence];
            float& here = of_cpu[t * s.heads + h];
            (to_cpu ? here : there) = to_cpu ? there : here;
        }
}

}  // namespace

std::string attention_library() { return "cuDNN, simulated"; }

bool cudnn_takes_attention(const AttentionShape& shape, DType activations) {
    const bool is_of_tests =
        shape.head_dim <= 16;  // cuDNN would not take all of these; our kernels are slow here
    return activations == DType::bf16 && shape.sequence > 1 &&
           (is_of_tests || (shape.head_dim % 8 == 0 && shape.head_dim <= 256));
}

void cudnn_attention_forward(Context& context, const AttentionShape& shape, const Tensor& qkv,
                             const Tensor& out, const Tensor& logsumexp) {
    if (context.planning()) return;
    simulated_gpu::queue([=] {
        std::vector<float> of_cpu(static_cast<size_t>(logsumexp.count()));
        reference::attention_forward(shape, qkv.rows(), qkv.as<Bf16>(), out.as<Bf16>(), of_cpu.data());
        move_logsumexp(shape, qkv.rows(), logsumexp.as<float>(), of_cpu.data(), false);
    });
}

void cudnn_attention_backward(Context& context, const AttentionShape& shape, const Tensor& dout,
                              const Tensor& qkv, const Tensor& out, const Tensor& logsumexp,
                              const Tensor& dqkv) {
    if (context.planning()) return;
    simulated_gpu::queue([=] {
        std::vector<float> of_cpu(static_cast<size_t>(logsumexp.count()));
        move_logsumexp(shape, qkv.rows(), logsumexp.as<float>(), of_cpu.data(), true);
        reference::attention_backward(shape, qkv.rows(), dout.as<Bf16>(), qkv.as<Bf16>(), out.as<Bf16>(),
                                      of_cpu.data(), dqkv.as<Bf16>());
    });
}

}  // namespace nibble::cuda
