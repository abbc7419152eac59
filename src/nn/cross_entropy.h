// The LM head and the loss, in chunks of tokens: the logits of a whole batch never exist.
//
// Its three products multiply x and the weight in BF16 or F32, as x is; or in FP8: x and the weight as
// fp8:e4m3 with one current scale each, the gradient of the logits in E5M2 under a fixed scale, since it is
// at most `scale`: codes of (softmax - onehot) * 57344. Codes are multiplied exactly, sums are FP32; on a GPU
// that multiplies FP8, given `fp8`, by its tensor cores with their narrower sums, if the vocabulary and C are
// multiples of 16.
//
// Softmax and loss are FP32 arithmetic on logits in F32, or on logits that were rounded once, to nearest, to
// BF16.
#pragma once

#include <optional>

#include "core/core.h"
#include "gemm/matmul.h"

namespace nibble {

// Targets with this value count neither in the loss nor in its gradient.
inline constexpr int32_t kIgnoredTarget = -100;

struct HeadLoss {
    double loss_sum = 0;  // nats, summed over the counted targets
    int64_t count = 0;    // targets that are not kIgnoredTarget
};

enum class HeadOperands : uint8_t { plain, fp8 };

struct HeadOptions {
    HeadOperands operands = HeadOperands::plain;
    std::optional<Fp8Sums> fp8 = {};
    DType logits = DType::f32;  // of the loss; or BF16, where x is BF16
};

// logits = x · weightᵀ, loss = -log softmax(logits)[target].
// x: [T, C]; weight: F32 [V, C]; targets: I32 [T]; loss_rows: F32 [T] per token, or no data. Throws Error for
// a target outside the vocabulary; on a GPU it makes the loss NaN.
HeadLoss head_loss(Context& context, const Tensor& x, const Tensor& weight, const Tensor& targets,
                   const Tensor& loss_rows, const HeadOptions& options = {});

// The same, and the gradients of scale * loss_sum: dx [T, C] (overwritten), dweight F32 [V, C] (accumulated).
HeadLoss head_loss_backward(Context& context, const Tensor& x, const Tensor& weight, const Tensor& targets,
                            float scale, const Tensor& dx, const Tensor& dweight,
                            const HeadOptions& options = {});
// The same, for a step that does not wait for each of its losses: adds to `totals`, F64 [2] on the context's
// device, a sum of losses and a count of targets.
void head_loss_backward(Context& context, const Tensor& x, const Tensor& weight, const Tensor& targets,
                        float scale, const Tensor& dx, const Tensor& dweight, const Tensor& totals,
                        const HeadOptions& options = {});
// Such totals, when they are there.
HeadLoss read_loss(const Context& context, const Tensor& totals);

// Logits of every row: F32 [T, V], whatever those of the loss are. For generation and evaluation of few
// tokens.
void head_logits(Context& context, const Tensor& x, const Tensor& weight, const Tensor& logits,
                 const HeadOptions& options = {});

}  // namespace nibble
