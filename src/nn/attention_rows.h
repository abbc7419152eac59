// Vector loops of attention: what happens between its products, a block of rows at a time.
#pragma once

#include "core/core.h"

namespace nibble {

// Probabilities are operands of products: F32, BF16, or F32 rounded to BF16 (a CPU without BF16 products).
enum class ProbabilityForm : uint8_t { f32, bf16, rounded_f32 };

// A block of scores [rows, width], dense; row i sees its first first_valid + i columns (causal).
struct ScoreBlock {
    int64_t rows = 0, first_valid = 0, width = 0;
    float scale = 1.0f;
    ProbabilityForm form = ProbabilityForm::f32;
};
// The loops work on whole vectors: so many elements after a block must exist, and are overwritten.
inline constexpr int64_t kVectorSlack = 64;

// p = exp(scale * (scores - row maximum)), 0 where not seen. max, sum: of each row [rows].
void softmax_block(const ScoreBlock& block, const float* scores, void* p, float* max, float* sum);

// p = exp(scale * scores - logsumexp) and ds = scale * p * (dp - delta), 0 where not seen.
// logsumexp, delta: of each row [rows].
void softmax_backward_block(const ScoreBlock& block, const float* scores, const float* dp,
                            const float* logsumexp, const float* delta, void* p, void* ds);

// A matrix of BF16 or F32 in memory that others share.
struct StridedRows {
    void* data = nullptr;
    int64_t stride = 0;  // elements
    bool is_bf16 = false;
};

// sums[i] = dot product of row i of a and row i of b.
void dot_rows(const StridedRows& a, const StridedRows& b, int64_t rows, int64_t cols, float* sums);

// to[i, :] = factor[i] * from[i, :]; from is dense; factor: null for 1.
void scale_rows(const float* from, const float* factor, int64_t rows, int64_t cols, const StridedRows& to);

// to <- from [rows, cols], in to's type (F32 to BF16 is not needed, and not there).
void copy_rows(const StridedRows& from, int64_t rows, int64_t cols, const StridedRows& to);

}  // namespace nibble
