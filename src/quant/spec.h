// QuantSpec: the description of one quantiser, and its one-line text form (grammar: docs/numerics.md).
//
//   nvfp4 1x16 scale=four-six:mse
//   nvfp4 1x16 scale=eden rotate=rht:128 signs=step
//   mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/core.h"

namespace nibble {

enum class Format : uint8_t { fp32, bf16, nvfp4, mxfp4 };
enum class Block : uint8_t { none, b1x16, b16x16, b1x32 };
// How a block's scale is found. max4 is parsed as amax with range 2/3; eden is parsed into its parts.
enum class ScaleRule : uint8_t {
    amax,           // NVFP4: block maximum to 6 * range
    four_six_mse,   // Four Over Six: the better of two scales, by squared error,
    four_six_mae,   //   by absolute error,
    four_six_amax,  //   by largest error
    floor,          // MXFP4 ...
    ceil,
    rceil,
    even,
    three_quarters,
    quest_std,
    quest_rms,
};
inline bool is_four_six(ScaleRule rule) {
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
    Block block = Block::none;
    ScaleRule scale = ScaleRule::amax;
    Rounding round = Rounding::nearest;
    Ratio range;         // relative to 6 (NVFP4)
    float cap = 448.0f;  // largest E4M3 scale aimed at (NVFP4)
    float mult = 1.0f;   // factor on QuEST's constant (MXFP4)
    Correction correct = Correction::none;
    ScaleRounding scale_round = ScaleRounding::nearest;
    TensorScale tensor = TensorScale::current;
    Rotation rotation = Rotation::none;
    int rotation_size = 0;  // 16, 32, 64 or 128
    Signs signs = Signs::by_gemm;
    bool out_bf16 = false;   // round rotated values to BF16 before the scale rule (out=bf16)
    bool mask_clip = false;  // record which elements were inside the range (mask=clip)
    bool emulation = false;  // the arithmetic of the authors' own emulations (arithmetic=emulation)

    bool is_quantized() const { return format == Format::nvfp4 || format == Format::mxfp4; }
    bool is_square() const { return block == Block::b16x16; }
    bool has_signs() const { return rotation == Rotation::rht || rotation == Rotation::rht2; }
    int rotation_rounds() const {
        return rotation == Rotation::none ? 0 : rotation == Rotation::rht2 ? 2 : 1;
    }
    bool is_stochastic() const {  // true if results depend on coins (rotation signs apart)
        return round == Rounding::stochastic || scale_round == ScaleRounding::stochastic;
    }
    int block_size() const { return format == Format::mxfp4 ? 32 : 16; }  // along the contraction
    // K is padded with zeros to a multiple of this.
    int64_t padding() const;
    int64_t padded(int64_t cols) const { return (cols + padding() - 1) / padding() * padding(); }

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
