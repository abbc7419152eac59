#include "nn/qk_norm.h"

#include <algorithm>

#include "core/cuda.h"
#include "nn/cuda_forms.h"
#include "nn/qk_norm_reference.h"

namespace nibble {

namespace {

// Tokens whose weight gradients are summed together; chunks do not depend on the threads.
constexpr int64_t kChunk = 64;

struct Heads {
    int64_t normed, queries, size, width;  // normed: queries and keys; width: of a row of qkv

    Heads(const AttentionShape& shape, const Tensor& qkv, const Tensor& q_weight, const Tensor& k_weight)
        : normed(shape.heads + shape.kv_heads),
          queries(shape.heads),
          size(shape.head_dim),
          width((shape.heads + 2 * shape.kv_heads) * size) {
        require_activations({&qkv}, "qk_norm");
        require(qkv.cols() == width && q_weight.count() == size && k_weight.count() == size,
                "qk_norm: {} with weights {} and {} has no {} + 2 * {} heads of {}", qkv.shape.str(),
                q_weight.shape.str(), k_weight.shape.str(), shape.heads, shape.kv_heads, size);
    }
};

}  // namespace

void qk_norm_forward(Context& context, const AttentionShape& shape, const Tensor& qkv, const Tensor& q_weight,
                     const Tensor& k_weight, float eps, const Tensor& x, const Tensor& rstd) {
    const Heads heads(shape, qkv, q_weight, k_weight);
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, qk_norm_forward(context, shape, qkv, q_weight, k_weight, eps, x, rstd));
    const bool keeps = x.shape.rank() > 0;
    with_elements(qkv, [&]<typename Element>(Element* values) {
        parallel_for(qkv.rows(), rows_per_task(heads.width), [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                Element* const row = values + t * heads.width;
                if (keeps) std::copy_n(row, heads.normed * heads.size, x.as<Element>() + t * x.cols());
                for (int64_t h = 0; h < heads.normed; ++h) {
                    const Tensor& weight = h < heads.queries ? q_weight : k_weight;
                    Element* const head = row + h * heads.size;
                    const float r = reference::head_norm(heads.size, head, weight.as<float>(), eps, head);
                    if (keeps) rstd.as<float>()[t * heads.normed + h] = r;
                }
            }
        });
    });
}

void qk_norm_backward(Context& context, const AttentionShape& shape, const Tensor& dqkv,
                      const Tensor& q_weight, const Tensor& k_weight, const Tensor& x, const Tensor& rstd,
                      const Tensor& dq_weight, const Tensor& dk_weight) {
    const Heads heads(shape, dqkv, q_weight, k_weight);
    NIBBLE_ON_CUDA(context,
                   qk_norm_backward(context, shape, dqkv, q_weight, k_weight, x, rstd, dq_weight, dk_weight));
    const int64_t chunks = (dqkv.rows() + kChunk - 1) / kChunk;
    const ArenaScope scope(context.arena);
    const Tensor sums = context.arena.allocate(DType::f32, {chunks, 2, heads.size});
    if (context.planning()) return;
    std::fill_n(sums.as<float>(), sums.count(), 0.0f);
    with_elements(dqkv, [&]<typename Element>(Element* gradients) {
        parallel_for(chunks, 1, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin * kChunk; t < std::min(end * kChunk, dqkv.rows()); ++t) {
                float* const dweights = sums.as<float>() + t / kChunk * 2 * heads.size;
                for (int64_t h = 0; h < heads.normed; ++h) {
                    const bool is_key = h >= heads.queries;
                    reference::head_norm_backward(
                        heads.size, x.as<Element>() + t * x.cols() + h * heads.size,
                        (is_key ? k_weight : q_weight).as<float>(), rstd.as<float>()[t * heads.normed + h],
                        gradients + t * heads.width + h * heads.size, dweights + (is_key ? heads.size : 0));
                }
            }
        });
    });
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const float* const sum = sums.as<float>() + chunk * 2 * heads.size;
        for (int64_t i = 0; i < heads.size; ++i) {
            dq_weight.as<float>()[i] += sum[i];
            dk_weight.as<float>()[i] += sum[heads.size + i];
        }
    }
}

}  // namespace nibble
