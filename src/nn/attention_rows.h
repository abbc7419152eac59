// Vector loops of attention: what happens between its products, one row of scores at a time.
#pragma once

#include "core/core.h"

namespace nibble {

// Probabilities are operands of products: F32, BF16, or F32 rounded to BF16 (a CPU without BF16 products).
enum class ProbabilityForm : uint8_t { f32, bf16, rounded_f32 };

// p[j] = exp(scale * (scores[j] - max)) for j < valid, 0 for valid <= j < width. Returns max and the sum.
struct SoftmaxRow {
    float max = 0, sum = 0;
};
SoftmaxRow softmax_row(const float* scores, int64_t valid, int64_t width, float scale, ProbabilityForm form,
                       void* p);

// p[j] = exp(scale * scores[j] - logsumexp) and ds[j] = scale * p[j] * (dp[j] - delta) for j < valid, else 0.
void softmax_backward_row(const float* scores, const float* dp, int64_t valid, int64_t width, float scale,
                          float logsumexp, float delta, ProbabilityForm form, void* p, void* ds);

// Sum of a[i] * b[i].
float dot_row(const void* a, const void* b, bool is_bf16, int64_t count);

// to[i, j] = from[j, i] for a matrix `to` of [rows, cols], BF16 or F32.
void store_transposed(const float* from, int64_t from_stride, int64_t rows, int64_t cols, bool is_bf16,
                      void* to, int64_t to_stride);

}  // namespace nibble
