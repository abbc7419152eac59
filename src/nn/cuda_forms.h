// The CUDA forms of this room's functions: same names, arguments and contracts, on memory of the GPU.
//
// What they cannot do is throw for what only the GPU can see. A token outside the vocabulary becomes a row of
// NaN and has no gradient; a target outside it makes loss and gradient NaN.
#pragma once

#include "nn/amax_history.h"
#include "nn/cross_entropy.h"
#include "nn/cross_entropy_rows.h"
#include "nn/qk_norm.h"
#include "nn/quant_linear_parts.h"
#include "nn/rope.h"
#include "recipe/recipe.h"

namespace nibble::cuda {

void rmsnorm_forward(Context& context, const Tensor& x, const Tensor& delta, const Tensor& weight, float eps,
                     const Tensor& sum, const Tensor& y, const Tensor& rstd, float* amax);
void rmsnorm_backward(Context& context, const Tensor& dy, const Tensor& x, const Tensor& weight,
                      const Tensor& rstd, const Tensor& d_sum, const Tensor& dx, const Tensor& dweight);

// Both directions of RoPE: `direction` 1 or -1.
void rotate_heads(Context& context, RopeLayout layout, const Tensor& qkv, int64_t sequence, int heads,
                  int kv_heads, const Tensor& cos, const Tensor& sin, float direction, const Tensor& bias);

void swiglu_forward(Context& context, const Tensor& gate_up, const Tensor& h, float* amax);
void swiglu_backward(Context& context, const Tensor& dh, const Tensor& gate_up, const Tensor& dgate_up,
                     float* amax);

void embedding_forward(Context& context, const Tensor& tokens, const Tensor& weight, const Tensor& y);
void embedding_backward(Context& context, const Tensor& dy, const Tensor& tokens, const Tensor& dweight);

void add_bias(Context& context, const Tensor& y, const Tensor& bias);
void bias_backward(Context& context, const Tensor& dy, const Tensor& dbias);

void qk_norm_forward(Context& context, const AttentionShape& shape, const Tensor& qkv, const Tensor& q_weight,
                     const Tensor& k_weight, float eps, const Tensor& x, const Tensor& rstd);
void qk_norm_backward(Context& context, const AttentionShape& shape, const Tensor& dqkv,
                      const Tensor& q_weight, const Tensor& k_weight, const Tensor& x, const Tensor& rstd,
                      const Tensor& dq_weight, const Tensor& dk_weight);

void attention_forward(Context& context, const AttentionShape& shape, const Tensor& qkv, const Tensor& out,
                       const Tensor& logsumexp);
void attention_backward(Context& context, const AttentionShape& shape, const Tensor& dout, const Tensor& qkv,
                        const Tensor& out, const Tensor& logsumexp, const Tensor& dqkv);

HeadLoss head_loss(Context& context, const Tensor& x, const Tensor& weight, const Tensor& targets,
                   const Tensor& loss_rows, const HeadOptions& options);
void head_loss_backward(Context& context, const Tensor& x, const Tensor& weight, const Tensor& targets,
                        float scale, const Tensor& dx, const Tensor& dweight, const Tensor& totals,
                        const HeadOptions& options);
void head_logits(Context& context, const Tensor& x, const Tensor& weight, const Tensor& logits,
                 const HeadOptions& options);
// nibble::loss_row() of every row. logits: F32 or BF16 [R, V]; targets: I32 [R]; losses: F32
// [R]; gradients: BF16 or F32 [R, V], or no data. The gradients of logits in BF16 are BF16, and may be
// written to the logits' own memory.
void loss_rows(Context& context, const LossRow& row, const Tensor& logits, const Tensor& targets,
               const Tensor& losses, const Tensor& gradients);

void begin_step(Context& context, AmaxHistory* history);
void record_amax(Context& context, const float* amax, float* largest);

void multiply_by_dge_slope(Context& context, const Dge& dge, const Tensor& w, const Tensor& gradient);

// The elements of x with rank `cut` from below and from above: what quantile_range() looks for.
void select_range(Context& context, const Tensor& x, int64_t cut, const Tensor& range);
void clamp(Context& context, const Tensor& x, const Tensor& range, const Tensor& out);
void add_outlier_product(Context& context, const Tensor& x, const Tensor& range, const Tensor& w_transposed,
                         const Tensor& product, const Tensor& y);

void channel_scales(Context& context, const SmoothSwiglu& options, const Tensor& h, const Tensor& scales);
void multiply_columns(Context& context, const Tensor& x, const Tensor& scales);
void divide_columns(Context& context, const Tensor& x, const Tensor& scales, const Tensor& out,
                    bool accumulate);

bool is_finite(const Context& context, const Tensor& tensor);

namespace detail {
void finish_gradient(Context& context, const Tensor& gradient, const Tensor& mask, const QuantSpec* rotation,
                     const SignBits& signs, const Tensor& out, bool accumulate);
}  // namespace detail

}  // namespace nibble::cuda
