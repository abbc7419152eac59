// The CUDA forms of this room (core/cuda.h).
#pragma once

#include "gemm/matmul.h"

namespace nibble::cuda {

void matmul(Context& context, const Operand& a, const Operand& b, const Tensor& c,
            const MatmulOptions& options);
// `to` may have more rows and columns than `from`: these become zero.
void convert(const Context& context, const Tensor& from, const Tensor& to, bool round_bf16 = false);
// Of the first GPU; false where there is none.
bool has_fp8_products();
// "cublaslt 13.1.0".
std::string matmul_description();

}  // namespace nibble::cuda
