// The CUDA forms of this room's functions. Their arguments were checked by those of the same name.
#pragma once

#include "core/cuda.h"
#include "quant/fp8_codes.h"
#include "quant/quant.h"

namespace nibble::cuda {

void quantize(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
              QuantizedMatrix& out, const QuantizeOptions& options);
// False, and nothing done, where no kernel reads such bytes.
bool requantize_transposed(Context& context, const QuantizedMatrix& forward, const RandomKey& key,
                           QuantizedMatrix& out, const QuantizeOptions& options);
void dequantize_operand(Context& context, const QuantizedMatrix& q, const Tensor& out);
void dequantize_operand_transposed(Context& context, const QuantizedMatrix& q, const Tensor& out);
void dequantize_groups(Context& context, const QuantizedMatrix& q, const Tensor& out);
void transpose_groups(Context& context, const QuantizedMatrix& q, const QuantizedMatrix& out);
void dequantize(Context& context, const QuantizedMatrix& q, const Tensor& out);
void rotate(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds);
void unrotate(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds);
void rotate_rows(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds);
void unrotate_rows(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds);
void transpose(Context& context, const Tensor& x, const Tensor& out);
// Of quantize_with_transpose(); `transpose` is allocated. False, and nothing done, where no kernel does both.
bool quantize_with_transpose(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                             QuantizedMatrix& out, const QuantizedMatrix& transpose,
                             const QuantizeOptions& options);
// The work of transposed_codes() and folded_to_fp8() (quant/fp8_codes.h); their outputs are allocated.
void transpose_codes(Context& context, const QuantizedMatrix& q, const QuantizedMatrix& out);
void fold_to_fp8(Context& context, const QuantizedMatrix& q, const FoldedMatrix& out);
// The steps of quantize_rotated_rows() around the rotation (quant/rotate_rows.cpp).
void widen(Context& context, const Tensor& x, const Tensor& out);
void round_to_bf16(Context& context, const Tensor& x);
// The codes of round_towards(), x and target in the space of q (quant/round_towards.cpp).
void choose_codes(Context& context, const Tensor& x, const Tensor& target, QuantizedMatrix& q);

}  // namespace nibble::cuda
