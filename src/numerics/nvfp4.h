// NVFP4, one group at a time: E2M1 elements, an E4M3 scale for 16 of them, an FP32 scale for the tensor.
// Every line is one rounding in the order of docs/numerics.md, section 3. With range 1 it is the order of
// TransformerEngine's NVFP4 quantiser.
#pragma once

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "numerics/bf16.h"
#include "numerics/e2m1.h"
#include "numerics/e4m3.h"
#include "numerics/e8m0.h"
#include "numerics/host_device.h"
#include "numerics/reduce.h"

namespace nibble {

inline constexpr int kNvfp4Group = 16;

// What a spec fixes: range = R (the number, relative to 6, that a block's maximum is mapped to) and cap.
struct Nvfp4Rule {
    float top;          // fl(6R)
    float inverse_top;  // fl(1 / (6R))
    float reach;        // C = fl(6R * cap), what the tensor's maximum is mapped to
    float cap;
};

// Each member is formed in double and rounded once; they are exact or correctly rounded for short fractions.
NIBBLE_HD Nvfp4Rule nvfp4_rule(int range_numerator, int range_denominator, float cap) {
    const double top = 6.0 * range_numerator / range_denominator;
    return {static_cast<float>(top), static_cast<float>(range_denominator / (6.0 * range_numerator)),
            static_cast<float>(6.0 * range_numerator * cap / range_denominator), cap};
}

// What a tensor's maximum fixes.
struct Nvfp4Tensor {
    Nvfp4Rule rule;
    float amax;
    float encode;        // S
    float block_factor;  // fl(S * fl(1 / (6R)))
    float scale;         // fl(1 / S), the tensor scale: a multiplier
};

NIBBLE_HD Nvfp4Tensor nvfp4_tensor(const Nvfp4Rule& rule, float amax) {
    const float encode = amax == 0.0f ? 1.0f : std::fmin(rule.reach / amax, FLT_MAX);
    return {rule, amax, encode, encode * rule.inverse_top, 1.0f / encode};
}

// The scale byte of a block whose largest magnitude is `amax`. 0: the block has codes 0.
NIBBLE_HD uint8_t nvfp4_scale(const Nvfp4Tensor& tensor, float amax) {
    return e4m3_nearest(amax * tensor.block_factor);
}

// e, what elements are multiplied by before they are rounded. Not for byte 0.
NIBBLE_HD float nvfp4_element_factor(const Nvfp4Tensor& tensor, uint8_t scale) {
    return std::fmin(1.0f / (e4m3_decode(scale) * tensor.scale), FLT_MAX);
}

// The clamp before an element is rounded; it makes infinite products of huge elements harmless.
NIBBLE_HD float clamp_to_e2m1(float v) { return std::fmin(std::fmax(v, -kE2M1Max), kE2M1Max); }

// The operand of a product, code * scale: exact in FP32 and in BF16.
NIBBLE_HD float nvfp4_operand(uint8_t code, uint8_t scale) { return e2m1_decode(code) * e4m3_decode(scale); }

// --- scale=four-six (Four Over Six, arXiv 2512.02010): two candidates for the block's maximum, 6R and 4R.
// ---

NIBBLE_HD uint8_t four_six_scale_6(const Nvfp4Tensor& tensor, float amax) {
    return e4m3_nearest(amax / tensor.rule.top * tensor.encode);
}
NIBBLE_HD uint8_t four_six_scale_4(const Nvfp4Tensor& tensor, float amax) {
    return e4m3_nearest(amax / tensor.rule.top * tensor.encode * 1.5f);
}
// d, the error of one element in the input's domain. A block's errors are added in index order.
NIBBLE_HD float four_six_error(const Nvfp4Tensor& tensor, float x, uint8_t code, uint8_t scale) {
    return nvfp4_operand(code, scale) * tensor.amax / tensor.rule.reach - x;
}

// --- arithmetic=emulation: the order of operations of Quartet II's emulation, which divides by multiplying
// with a rounded reciprocal. Scale bytes and errors differ from the above; element factors do not. ---

NIBBLE_HD Nvfp4Tensor emulated_tensor(const Nvfp4Rule& rule, float amax) {
    const float scale =
        amax == 0.0f ? 1.0f : std::fmax(amax * (1.0f / rule.cap) * rule.inverse_top, 0x1p-149f);
    const float encode = std::fmin(1.0f / scale, FLT_MAX);
    return {rule, amax, encode, encode * rule.inverse_top, scale};
}
// `share`: 1, or 1.5 for the block's maximum at 4R.
NIBBLE_HD uint8_t emulated_scale(const Nvfp4Tensor& tensor, float amax, float share) {
    return e4m3_nearest(amax * tensor.rule.inverse_top * share * tensor.encode);
}
NIBBLE_HD float emulated_error(const Nvfp4Tensor& tensor, float x, uint8_t code, uint8_t scale) {
    return e2m1_decode(code) * (e4m3_decode(scale) * tensor.scale) - x;
}

// --- correct=eden (MS-EDEN, arXiv 2601.22813, algorithm 1): scales grow by what rounding took. ---

// A power of two that both factors of the sums below are multiplied by, so that they neither overflow nor
// vanish. 1 for every tensor with ordinary values.
NIBBLE_HD float eden_unit(float amax) {
    const bool ordinary = amax >= 0x1p-32f && amax <= 0x1p60f;
    return ordinary ? 1.0f : power_of_two(-exponent_of(amax));
}

// S = fl(num / den). 1 where den is 0 (all codes 0), or where a sum overflowed.
NIBBLE_HD float eden_ratio(float num, float den) {
    return den > 0.0f && den <= FLT_MAX && num <= FLT_MAX ? num / den : 1.0f;
}

// S_g for one group: y the values, codes and scale what they became. num and den by trees of neighbours.
NIBBLE_HD float eden_factor(const float* y, const uint8_t* codes, uint8_t scale, float tensor_scale,
                            float unit) {
    float num[kNvfp4Group], den[kNvfp4Group];
    for (int i = 0; i < kNvfp4Group; ++i) {
        const float value = nvfp4_operand(codes[i], scale) * tensor_scale;
        num[i] = (y[i] * unit) * (y[i] * unit);
        den[i] = (y[i] * unit) * (value * unit);
    }
    return eden_ratio(tree_sum(num, kNvfp4Group), tree_sum(den, kNvfp4Group));
}

// The same on scaled values v = fl(y * e) against their codes, over `count` values: correct=eden-block takes
// a whole rotation block, tensor=posthoc a group.
NIBBLE_HD float eden_factor_scaled(const float* v, const uint8_t* codes, int count) {
    float num[128], den[128];
    for (int i = 0; i < count; ++i) {
        num[i] = v[i] * v[i];
        den[i] = v[i] * e2m1_decode(codes[i]);
    }
    return eden_ratio(tree_sum(num, count), tree_sum(den, count));
}

// --- tensor=posthoc: codes first, the tensor scale from the scales that they ended with. ---

// The scale that elements are divided by: amax / (6R), mantissa cut to four bits (towards zero).
NIBBLE_HD float posthoc_scale(const Nvfp4Rule& rule, float amax) {
    return std::bit_cast<float>(std::bit_cast<uint32_t>(amax * rule.inverse_top) & 0xfff80000u);
}
NIBBLE_HD float posthoc_element_factor(float scale) { return std::fmin(1.0f / scale, FLT_MAX); }
// The wide scale that waits for the tensor scale: corrected by S (1 without correction), in BF16.
NIBBLE_HD float posthoc_wide_scale(float scale, float factor) { return round_to_bf16(scale * factor); }
// From the largest wide scale of the tensor.
NIBBLE_HD float posthoc_tensor_scale(const Nvfp4Rule& rule, float largest) {
    return largest == 0.0f ? 1.0f : std::fmax(largest / rule.cap, 0x1p-149f);
}

}  // namespace nibble
