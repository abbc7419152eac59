// Inside gemm/: products on a GPU's tensor cores of BF16 values whose FP32 scales vary along K (sm_80 and
// newer).
#pragma once

#include "core/core.h"

namespace nibble::cuda {

// values(row, k) * scales(k / group, row)
struct GroupOperand {
    const Bf16* values;  // [rows, k], lines of `stride`; both at multiples of 16 bytes
    int64_t stride;
    const float* scales;  // [k / group, rows]; null: all are 1
    int group;            // columns of a scale: 32 or 128
};

// C[m, n] = alpha * A[m, k] · B[n, k]ᵀ + beta * C, F32 or BF16. Products of a group are summed as in all BF16
// products; these sums, times both scales, in FP32, one after the other. k: a multiple of 8. alpha, beta: in
// the GPU's memory.
void multiply_groups(const Context& context, const GroupOperand& a, const GroupOperand& b, int64_t k,
                     const float* alpha, const float* beta, const Tensor& c);

}  // namespace nibble::cuda
