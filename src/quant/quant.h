// quant/: tensors to and from 4 and 8 bits. A QuantSpec says how; quantize() gives the bytes that
// docs/numerics.md defines, the same on every machine. This room never multiplies matrices and knows no
// layer.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>

#include "core/core.h"
#include "numerics/hadamard.h"
#include "quant/spec.h"

namespace nibble {

// What keys the coins of one call. Counter layout: docs/numerics.md, "Randomness".
enum class Gemm : uint8_t { fprop, dgrad, wgrad };
enum class Side : uint8_t { a, b };  // a: x or dy (rows of the product); b: w or x (its columns)
struct RandomKey {
    uint64_t seed = 0;
    uint32_t step = 0;
    uint8_t micro_step = 0;
    uint16_t layer = 0;
    Gemm gemm = Gemm::fprop;
    Side side = Side::a;
    // On a GPU, in recorded work: where the two are found when it runs (core/recording.h). Null: as above.
    const uint32_t *step_there = nullptr, *micro_step_there = nullptr;
};

// Random signs of one rotation block: bit j set means that element j is negated; bit 128 + j, that it is
// before the second round of rht2.
using SignBits = std::bitset<2 * kMaxRotation>;
// The signs that `spec` uses under `key` (all clear for a plain Hadamard transform or no rotation).
SignBits rotation_signs(const QuantSpec& spec, const RandomKey& key);
// What of the key they depend on.
struct SignsDepend {
    bool on_seed = false, on_step = false, on_micro_step = false;
};
SignsDepend signs_depend(const QuantSpec& spec, Gemm gemm);

// A matrix in 4 or 8 bits, blocks along the columns (the contraction dimension).
// value(r, k) = element(code) * byte scale * FP32 scale * tensor_scale, each where the spec has it, in the
// rotated space if the spec rotates.
struct QuantizedMatrix {
    QuantSpec spec;
    int64_t rows = 0, cols = 0;  // logical; rows with those that rotate=...@rows pads on
    int64_t padded_cols = 0;     // as stored; columns beyond `cols` were zero before rotation
    Tensor codes;   // U8 [rows, padded_cols * code_bits / 8]; of 4 bits the even column in the low nibble
    Tensor scales;  // U8 [rows, padded_cols / block]; E4M3 or E8M0 bytes; square tiles repeat theirs
    Tensor fp32_scales;   // F32 [rows, padded_cols / fp32 block], or [rows, 1]; square tiles repeat theirs
    Tensor mask;          // U8 [rows, padded_cols / 8], bit k%8 of byte k/8; no data without mask=clip
    Tensor tensor_scale;  // F32 [1], a multiplier
    // BF16 [rows, padded_cols], what dequantize_operand() would give: beside codes and scales, or in their
    // place; no shape: not kept.
    Tensor operand;

    float* tensor_scale_ptr() const { return static_cast<float*>(tensor_scale.data); }
};

// What quantize() writes: codes and scales; for a product that emulates them the operand instead; or both.
enum class Keep : uint8_t { bytes, operand, both };
// Whether quantize() can write the operand: it is exact in BF16, and does not wait for the last scale
// (tensor=posthoc). Other specs have bytes whatever is asked for.
bool has_exact_operand(const QuantSpec& spec);
QuantizedMatrix allocate_quantized(Arena& arena, const QuantSpec& spec, int64_t rows, int64_t cols,
                                   Keep keep = Keep::bytes);

struct QuantizeOptions {
    // Overrides the signs that spec and key would give (tests; operands that share a rotation).
    const SignBits* signs = nullptr;
    // These four are in the context's device's memory.
    // tensor=delayed: the amax of the previous step, to use instead of this one's (null or 0: none yet, use
    // this one's).
    const float* previous_amax = nullptr;
    // The amax of x, after the rotation of the spec, where the caller knows it; saves a pass over x.
    const float* known_amax = nullptr;
    // If not null, receives the amax that tensor=current uses (after rotation).
    float* amax = nullptr;
    // If not null, the tensor scale is multiplied by this, once, in FP32: x is meant times it.
    const float* scale = nullptr;
    // x is stored [cols, rows]: quantise its transpose. Columns of x beyond the output's rows are left out;
    // rows of x that are missing are zero.
    bool transposed = false;
    // Names the tensor in errors.
    std::string_view name = "input";
};

// Quantises x, F32 or BF16 [rows, cols] (leading dimensions are rows), into `out` (made by
// allocate_quantized). With rotate=...@rows, x may have fewer rows than `out`: the others are zero. Throws
// Error naming the tensor and the index of the first NaN or infinity; `out` is then unspecified. quantize()
// is the fast path; quantize_reference() is the readable scalar definition. Their bytes are equal. Allocates
// from context.arena only with rotate=...@rows.
void quantize(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
              QuantizedMatrix& out, const QuantizeOptions& options = {});
void quantize_reference(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                        QuantizedMatrix& out, const QuantizeOptions& options = {});

// Quantises the transpose of what a product reads of `forward`, code * scale (has_fp32_scales() false): its
// rows become the contraction, its columns, or the first of them, the rows of `out`. The forward's tensor
// scale multiplies that of `out`. As quantize() of dequantize_operand_transposed(), which is how it is done
// where no kernel reads the bytes themselves; that takes memory from context.arena.
void requantize_transposed(Context& context, const QuantizedMatrix& forward, const RandomKey& key,
                           QuantizedMatrix& out, const QuantizeOptions& options = {});

// What a product over the columns reads: code * scale, without the scales that are factors of the result (the
// tensor's and those of rows). Exact in BF16; with FP32 scales in it (has_fp32_groups) rounded once to F32.
// out: BF16 or F32 [rows, padded_cols]; F32 alone with FP32 scales.
void dequantize_operand(Context& context, const QuantizedMatrix& q, const Tensor& out);
// The same transposed, for a product over the rows: out [padded_cols, rows]. Scales of rows vary along it, so
// they are in the values (has_fp32_scales), and out is F32.
void dequantize_operand_transposed(Context& context, const QuantizedMatrix& q, const Tensor& out);
// What a product reads that applies FP32 scales to its sums over groups (has_fp32_groups): code * scale
// without them, exact in BF16. out: BF16 [rows, padded_cols].
void dequantize_groups(Context& context, const QuantizedMatrix& q, const Tensor& out);
// The transpose of square tiles with FP32 scales, as that product reads it: values as dequantize_groups()
// makes them in `operand`, columns padded with zeros to whole tiles, and FP32 scales; no codes, and no
// rotation, which is along the rows now. Allocates from context.arena.
QuantizedMatrix transposed_groups(Context& context, const QuantizedMatrix& q);
// Full values fl((code * scale) * tensor_scale), F32 [rows, padded_cols], in the rotated space;
// fl(fl((code * scale) * FP32 scale) * tensor_scale) where there are FP32 scales.
void dequantize(Context& context, const QuantizedMatrix& q, const Tensor& out);

// x <- rotation of every block of `size` columns: signs first, then the Hadamard butterfly, then one multiply
// by fl(1/sqrt(size)); with two rounds (rht2), that again with the second signs. F32 [rows, cols], cols a
// multiple of `size`. The inverse: butterfly, multiply, then signs; the last round first.
void rotate(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds = 1);
void unrotate(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds = 1);
// The same down the columns: every block of `size` rows. F32 [rows, cols], rows a multiple of `size`.
void rotate_rows(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds = 1);
void unrotate_rows(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds = 1);

// out [cols, rows] <- the transpose of x [rows, cols]; F32 or BF16, the same for both.
void transpose(Context& context, const Tensor& x, const Tensor& out);

}  // namespace nibble
