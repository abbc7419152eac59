// QuantSpec: the description of one quantiser, and its one-line text form (grammar: docs/numerics.md).
//
//   nvfp4 1x16 scale=four-six:mse
//   nvfp4 1x16 scale=eden rotate=rht:128 signs=step
//   mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip
//   fp8:e5m2 tensor
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/core.h"
#include "numerics/elements.h"

namespace nibble {

enum class Format : uint8_t { fp32, bf16, nvfp4, mxfp4, mxfp8, fp8, fp4, int4, log4 };
// The elements that share a scale.
enum class Block : uint8_t { none, b1x16, b16x16, b1x32, b32x32, b1x128, b128x128, row, tensor };
// How a block's scale is found. max4 is parsed as amax with range 2/3; eden is parsed into its parts.
enum class ScaleRule : uint8_t {
    amax,           // NVFP4: block maximum to 6 * range; FP32 scales: to the largest element
    four_six_mse,   // Four Over Six: the better of two scales, by squared error,
    four_six_mae,   //   by absolute error,
    four_six_amax,  //   by largest error
    floor,          // powers of two: MXFP4 and MXFP8 ...
    ceil,
    rceil,
    even,
    three_quarters,
    quest_std,
    quest_rms,
};
constexpr bool is_four_six(ScaleRule rule) {
    return rule == ScaleRule::four_six_mse || rule == ScaleRule::four_six_mae ||
           rule == ScaleRule::four_six_amax;
}

enum class Rounding : uint8_t { nearest, nearest_away, nearest_down, stochastic };
enum class Correction : uint8_t { none, eden, eden_block };
enum class ScaleRounding : uint8_t { nearest, stochastic };
enum class TensorScale : uint8_t { current, delayed, posthoc, none };
// rht: signs, then the Hadamard transform; rht2: that twice, with signs of their own.
enum class Rotation : uint8_t { none, hadamard, rht, rht2 };
// by_gemm, the default: wgrad `call`, the others `step` (their weight copy serves the micro-batches of a
// step).
enum class Signs : uint8_t { by_gemm, call, step, run, te };

// A rational number, kept as written so that a spec prints as it was given.
struct Ratio {
    int numerator = 1, denominator = 1;
    friend bool operator==(const Ratio&, const Ratio&) = default;
};

struct QuantSpec {
    Format format = Format::bf16;
    Element element = Element::e2m1;  // what the format has; e4m3 or e5m2 for fp8 and mxfp8
    Block block = Block::none;
    ScaleRule scale = ScaleRule::amax;
    Rounding round = Rounding::nearest;
    Ratio range;         // relative to 6 (NVFP4)
    float cap = 448.0f;  // largest E4M3 scale aimed at (NVFP4)
    float mult = 1.0f;   // factor on QuEST's constant (MXFP4)
    Correction correct = Correction::none;
    ScaleRounding scale_round = ScaleRounding::nearest;
    TensorScale tensor = TensorScale::current;
    bool outer_1x128 = false;  // NVFP4: an FP32 scale for 128 elements instead of the tensor's (outer=1x128)
    Rotation rotation = Rotation::none;
    int rotation_size = 0;          // 16, 32, 64 or 128
    bool rotation_of_rows = false;  // along the other dimension (rotate=...@rows)
    Signs signs = Signs::by_gemm;
    bool out_bf16 = false;   // round rotated values to BF16 before the scale rule (out=bf16)
    bool mask_clip = false;  // record which elements were inside the range (mask=clip)
    bool emulation = false;  // the arithmetic of the authors' own emulations (arithmetic=emulation)

    bool is_quantized() const { return format != Format::fp32 && format != Format::bf16; }
    bool is_mx() const { return format == Format::mxfp4 || format == Format::mxfp8; }
    bool is_square() const {
        return block == Block::b16x16 || block == Block::b32x32 || block == Block::b128x128;
    }
    int code_bits() const { return bits_of(element); }  // 4 or 8
    // One-byte scales: E4M3 (nvfp4) or E8M0 (mxfp4, mxfp8), one for block_size() columns of a row.
    bool has_scale_bytes() const { return format == Format::nvfp4 || is_mx(); }
    // Whether the tensor's scale is made of the largest magnitude in it.
    bool takes_amax_of_tensor() const {
        if (format != Format::nvfp4) return !is_mx() && is_quantized() && block == Block::tensor;
        return (tensor == TensorScale::current || tensor == TensorScale::delayed) && !outer_1x128;
    }
    // FP32 scales beside the tensor's: one for fp32_block_size() columns of a row, or for a whole row.
    bool has_row_scales() const { return block == Block::row; }
    bool has_fp32_scales() const {
        return outer_1x128 || (!has_scale_bytes() && is_quantized() && block != Block::tensor);
    }
    // Those vary along the contraction too, so that products take them as part of the operand, in FP32.
    bool has_fp32_groups() const { return has_fp32_scales() && !has_row_scales(); }
    int fp32_block_size() const { return outer_1x128 ? 128 : block_size(); }
    bool has_signs() const { return rotation == Rotation::rht || rotation == Rotation::rht2; }
    bool rotates_columns() const { return rotation != Rotation::none && !rotation_of_rows; }
    bool rotates_rows() const { return rotation != Rotation::none && rotation_of_rows; }
    int rotation_rounds() const {
        return rotation == Rotation::none ? 0 : rotation == Rotation::rht2 ? 2 : 1;
    }
    bool is_stochastic() const {  // true if results depend on coins (rotation signs apart)
        return round == Rounding::stochastic || scale_round == ScaleRounding::stochastic;
    }
    // Columns of a block; of what a row is padded to, where the block is the row or the tensor.
    int block_size() const;
    // K is padded with zeros to a multiple of this.
    int64_t padding() const;
    int64_t padded(int64_t cols) const { return (cols + padding() - 1) / padding() * padding(); }
    // Rows likewise, where rows are rotated into each other.
    int64_t padded_rows(int64_t rows) const {
        return rotates_rows() ? (rows + rotation_size - 1) / rotation_size * rotation_size : rows;
    }

    friend bool operator==(const QuantSpec&, const QuantSpec&) = default;
};

// Throws UsageError unless quantize() can execute `spec`: which words go together is in docs/numerics.md.
// parse_spec() calls it; specs made in code should pass through it.
void validate_spec(const QuantSpec& spec);

// Parses the text form. Throws UsageError, one line that quotes the text and names the word that is wrong:
//   nvfp4 1x16 scale=amx: unknown value "amx" of scale=; nearest is "amax"
QuantSpec parse_spec(std::string_view text);
// The canonical text: format, block, then the words that differ from their defaults, always in one order.
// parse_spec(to_string(s)) == s for every valid s.
std::string to_string(const QuantSpec& spec);
// What a user should know before trusting this quantiser ("" if nothing): a bias that its words do not tell.
std::string_view caution_of(const QuantSpec& spec);

}  // namespace nibble
