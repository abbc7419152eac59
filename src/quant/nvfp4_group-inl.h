// One NVFP4 group of 16 per lane: codes under a scale, errors under four-six, MS-EDEN's correction.
// The scalar definitions are in numerics/nvfp4.h.
#if defined(NIBBLE_QUANT_NVFP4_GROUP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_QUANT_NVFP4_GROUP_INL_H_
#undef NIBBLE_QUANT_NVFP4_GROUP_INL_H_
#else
#define NIBBLE_QUANT_NVFP4_GROUP_INL_H_
#endif

#include "quant/lanes-inl.h"

#if NIBBLE_HAS_LANES
HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

// What a kernel does; the middle three are the measures of four-six.
enum class Kind { amax, mse, mae, largest, eden };

// 16 codes of each lane, the first in the lowest bits.
struct Codes {
    VU words[2];
};

HWY_INLINE VF element_factor(VF scale, const Nvfp4Tensor& tensor) {
    return hn::Min(hn::Div(f32(1.0f), hn::Mul(scale, f32(tensor.scale))), f32(FLT_MAX));
}

// Element j of a group, as a magnitude; scaled, up to 6.
HWY_INLINE VF magnitude_of(const float* tile, int j) { return hn::Abs(hn::Load(F32(), tile + j * kLanes)); }
HWY_INLINE VF scaled(VF magnitude, VF factor) { return hn::Min(hn::Mul(magnitude, factor), f32(kE2M1Max)); }

// Codes of x * factor, clamped, signs as x has them.
template <class R>
HWY_INLINE Codes pack_codes(const float* tile, VF factor, const R& round) {
    Codes codes;
    for (int half = 0; half < 2; ++half) {
        VU word = hn::Zero(U32());
        for (int j = 8 * half + 7; j >= 8 * half; --j) {
            const VF x = hn::Load(F32(), tile + j * kLanes);
            const Element element = round(scaled(hn::Abs(x), factor), j);
            word = hn::Or(hn::ShiftLeft<4>(word), nibble_of(element.code, x));
        }
        codes.words[half] = word;
    }
    return codes;
}

// The same under a scale; a group of scale 0 has codes 0.
template <class R>
HWY_INLINE Codes encode(const float* tile, const Scale& scale, const Nvfp4Tensor& tensor, const R& round) {
    Codes codes = pack_codes(tile, element_factor(scale.value, tensor), round);
    const auto is_zero = hn::Eq(scale.value, f32(0.0f));
    for (VU& word : codes.words) word = select_bits(is_zero, hn::Zero(U32()), word);
    return codes;
}

// --- four-six ---

// The error of a group under one candidate. An operand times amax / reach is worked out for codes 1 and 1.5
// alone; every other one is a power of two from there, exactly, while no product leaves the normal numbers
// (the driver sees to that). Scale 0 makes both 0, so that its codes do not matter.
template <Kind kKind, class R>
HWY_INLINE VF group_error(const float* tile, VF scale, const Nvfp4Tensor& tensor, const R& round) {
    const VF factor = element_factor(scale, tensor);
    const VF amax = f32(tensor.amax), reach = f32(tensor.rule.reach);
    const VF one = hn::Div(hn::Mul(scale, amax), reach);
    const VF one_and_half = hn::Div(hn::Mul(hn::Mul(f32(1.5f), scale), amax), reach);
    VF error = hn::Zero(F32());
    for (int j = 0; j < kNvfp4Group; ++j) {
        const VF x = magnitude_of(tile, j);
        const VU rounded = bits_of(round(scaled(x, factor), j).magnitude);
        const VF power = float_of(hn::And(rounded, u32(0xff800000u)));
        const VF has_half = float_of(hn::ShiftLeft<9>(rounded));  // in its sign
        const VF d = hn::Sub(hn::Mul(power, hn::IfNegativeThenElse(has_half, one_and_half, one)), x);
        if constexpr (kKind == Kind::mse) error = hn::Add(error, hn::Mul(d, d));
        if constexpr (kKind == Kind::mae) error = hn::Add(error, hn::Abs(d));
        if constexpr (kKind == Kind::largest) error = hn::Max(error, hn::Abs(d));
    }
    return error;
}

struct Candidates {
    Scale six, four;
};
HWY_INLINE Candidates four_six_candidates(VF amax, const Nvfp4Tensor& tensor) {
    const VF six = hn::Mul(hn::Div(amax, f32(tensor.rule.top)), f32(tensor.encode));
    return {e4m3_round(six), e4m3_round(hn::Mul(six, f32(1.5f)))};
}
HWY_INLINE Scale select_scale(hn::Mask<F32> mask, const Scale& yes, const Scale& no) {
    return {select_bits(mask, yes.byte, no.byte), select(mask, yes.value, no.value)};
}

// The better candidate; the smaller scale where they are equal.
template <Kind kKind, class R>
HWY_INLINE Scale four_six_scale(const float* tile, VF amax, const Nvfp4Tensor& tensor, const R& round) {
    const Candidates c = four_six_candidates(amax, tensor);
    const VF error_six = group_error<kKind>(tile, c.six.value, tensor, round);
    const VF error_four = group_error<kKind>(tile, c.four.value, tensor, round);
    return select_scale(hn::Lt(error_four, error_six), c.four, c.six);
}

// --- MS-EDEN ---

HWY_INLINE VF eden_ratio(VF num, VF den) {
    const VF largest = f32(FLT_MAX);
    const auto good = hn::And(hn::Gt(den, f32(0.0f)), hn::And(hn::Le(den, largest), hn::Le(num, largest)));
    return select(good, hn::Div(num, den), f32(1.0f));
}

template <class R>
HWY_INLINE VF eden_factor(const float* tile, const Scale& scale, const Nvfp4Tensor& tensor, const R& round) {
    const VF factor = element_factor(scale.value, tensor);
    VF num[kNvfp4Group], den[kNvfp4Group];
    for (int j = 0; j < kNvfp4Group; ++j) {
        const VF y = magnitude_of(tile, j);
        const VF operand = hn::Mul(round(scaled(y, factor), j).magnitude, scale.value);
        num[j] = hn::Mul(y, y);
        den[j] = hn::Mul(y, hn::Mul(operand, f32(tensor.scale)));
    }
    return eden_ratio(tree_sum<kNvfp4Group>(num), tree_sum<kNvfp4Group>(den));
}

// On scaled values against their codes (tensor=posthoc).
template <class R>
HWY_INLINE VF eden_factor_scaled(const float* tile, VF factor, const R& round) {
    VF num[kNvfp4Group], den[kNvfp4Group];
    for (int j = 0; j < kNvfp4Group; ++j) {
        const VF v = hn::Mul(magnitude_of(tile, j), factor);
        num[j] = hn::Mul(v, v);
        den[j] = hn::Mul(v, round(hn::Min(v, f32(kE2M1Max)), j).magnitude);
    }
    return eden_ratio(tree_sum<kNvfp4Group>(num), tree_sum<kNvfp4Group>(den));
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();
#endif  // NIBBLE_HAS_LANES

#endif  // NIBBLE_QUANT_NVFP4_GROUP_INL_H_
