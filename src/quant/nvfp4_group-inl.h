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

// What a kernel works out beside the codes: nothing, one of the errors of four-six, MS-EDEN's correction from
// values, or that from scaled values.
enum class Kind { amax, mse, mae, largest, eden, eden_scaled };

HWY_INLINE VF element_factor(VF scale, const Nvfp4Tensor& tensor) {
    return hn::Min(hn::Div(f32(1.0f), hn::Mul(scale, f32(tensor.scale))), f32(FLT_MAX));
}

// S_g from its sums; 1 where they do not give one (numerics/nvfp4.h).
HWY_INLINE VF eden_ratio(VF num, VF den) {
    const VF largest = f32(FLT_MAX);
    const auto good = hn::And(hn::Gt(den, f32(0.0f)), hn::And(hn::Le(den, largest), hn::Le(num, largest)));
    return select(good, hn::Div(num, den), f32(1.0f));
}

// A group under one scale: its codes, the first in the lowest bits, and what the kind asks of the rounding.
struct Encoded {
    VU words[2];
    VF measure;  // four-six: the error; eden: S_g
};

// The error of an element under four-six needs its operand times amax / reach. That is worked out for the
// operands 1 and 1.5 alone; every other one is a power of two from there, exactly, while no product leaves
// the normal numbers (the driver sees to that). Scale 0 makes both 0, so that its codes do not matter.
struct OperandValues {
    VF one, one_and_half;

    HWY_INLINE OperandValues(VF scale, const Nvfp4Tensor& tensor)
        : one(of(scale, tensor)), one_and_half(of(hn::Mul(f32(1.5f), scale), tensor)) {}
    static HWY_INLINE VF of(VF operand, const Nvfp4Tensor& tensor) {
        return hn::Div(hn::Mul(operand, f32(tensor.amax)), f32(tensor.rule.reach));
    }
    // For a magnitude of E2M1.
    HWY_INLINE VF operator()(VF magnitude) const {
        const VU bits = bits_of(magnitude);
        const VF power = float_of(hn::And(bits, u32(0xff800000u)));
#if HWY_TARGET <= HWY_AVX3
        const auto has_half = hn::TestBit(bits, u32(0x400000u));
        const VF unit = select(hn::RebindMask(F32(), has_half), one_and_half, one);
#else
        const VF unit = hn::IfNegativeThenElse(float_of(hn::ShiftLeft<9>(bits)), one_and_half, one);
#endif
        return hn::Mul(power, unit);
    }
};

// Codes of x * factor, clamped, signs as x has them.
template <Kind kKind, class R>
HWY_INLINE Encoded encode(const float* tile, VF factor, VF scale, const Nvfp4Tensor& tensor, const R& round) {
    [[maybe_unused]] const OperandValues value(scale, tensor);
    VU words[2] = {hn::Zero(U32()), hn::Zero(U32())};
    VF measure = hn::Zero(F32());
    [[maybe_unused]] TreeSum num, den;
#pragma GCC unroll 16
    for (int j = 0; j < kNvfp4Group; ++j) {
        const VF x = hn::Load(F32(), tile + j * kLanes);
        const VF y = hn::Abs(x);
        const VF scaled = hn::Mul(y, factor);
        const Element element = round(hn::Min(scaled, f32(kE2M1Max)), j);
        words[j / 8] = push_code(words[j / 8], element.code, x);
        if constexpr (kKind == Kind::mse || kKind == Kind::mae || kKind == Kind::largest) {
            const VF d = hn::Sub(value(element.magnitude), y);
            if constexpr (kKind == Kind::mse) measure = hn::Add(measure, hn::Mul(d, d));
            if constexpr (kKind == Kind::mae) measure = hn::Add(measure, hn::Abs(d));
            if constexpr (kKind == Kind::largest) measure = hn::Max(measure, hn::Abs(d));
        } else if constexpr (kKind == Kind::eden) {
            num.add(j, hn::Mul(y, y));
            den.add(j, hn::Mul(y, hn::Mul(hn::Mul(element.magnitude, scale), f32(tensor.scale))));
        } else if constexpr (kKind == Kind::eden_scaled) {
            num.add(j, hn::Mul(scaled, scaled));
            den.add(j, hn::Mul(scaled, element.magnitude));
        }
    }
    if constexpr (kKind == Kind::eden || kKind == Kind::eden_scaled) {
        measure = eden_ratio(num.of_16(), den.of_16());
    }
    const auto is_zero = hn::Eq(scale, f32(0.0f));  // a group of scale 0 has codes 0
    for (VU& word : words) word = select_bits(is_zero, hn::Zero(U32()), word);
    return {{words[0], words[1]}, measure};
}
template <Kind kKind, class R>
HWY_INLINE Encoded encode(const float* tile, VF scale, const Nvfp4Tensor& tensor, const R& round) {
    return encode<kKind>(tile, element_factor(scale, tensor), scale, tensor, round);
}

HWY_INLINE Encoded select_encoded(hn::Mask<F32> mask, const Encoded& yes, const Encoded& no) {
    return {{select_bits(mask, yes.words[0], no.words[0]), select_bits(mask, yes.words[1], no.words[1])},
            select(mask, yes.measure, no.measure)};
}

struct Candidates {
    Scale six, four;
};
HWY_INLINE Candidates four_six_candidates(VF amax, const Nvfp4Tensor& tensor) {
    const VF six = hn::Mul(hn::Div(amax, f32(tensor.rule.top)), f32(tensor.encode));
    return {e4m3_round(six), e4m3_round(hn::Mul(six, f32(1.5f)))};
}
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();
#endif  // NIBBLE_HAS_LANES

#endif  // NIBBLE_QUANT_NVFP4_GROUP_INL_H_
