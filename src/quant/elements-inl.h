// Elements of any kind (numerics/elements.h) from scaled values, and groups of 16 packed. Compiled once for
// each instruction set.
#if defined(NIBBLE_QUANT_ELEMENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_QUANT_ELEMENTS_INL_H_
#undef NIBBLE_QUANT_ELEMENTS_INL_H_
#else
#define NIBBLE_QUANT_ELEMENTS_INL_H_
#endif

#include "quant/lanes-inl.h"

#if NIBBLE_HAS_LANES
HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

inline constexpr int kGroup = 16;

// How the magnitudes of an element are coded: as a Minifloat of numerics/elements.h, or as integers.
struct Coding {
    int bits, mantissa, least;
    bool is_integer;
};
template <int Mantissa, int Least, int Largest>
constexpr Coding coding_as(nibble::Minifloat<Mantissa, Least, Largest>, int bits) {
    return {bits, Mantissa, Least, false};
}
constexpr Coding coding_of(nibble::Element element) {
    switch (element) {
        case nibble::Element::e4m3:
            return coding_as(nibble::E4M3(), 8);
        case nibble::Element::e5m2:
            return coding_as(nibble::E5M2(), 8);
        case nibble::Element::int4:
            return {4, 0, 0, true};
        case nibble::Element::log4:
            return coding_as(nibble::Log4(), 4);
        case nibble::Element::e2m1:
            break;
    }
    return {4, 1, 0, false};
}

// `steps`, not negative, to a whole number: to nearest, ties to even, or up where the fraction exceeds
// `threshold`.
template <Rounding kRounding>
HWY_INLINE VU whole_of(VF steps, VF threshold) {
    if constexpr (kRounding == Rounding::nearest) {
        return hn::Sub(bits_of(hn::Add(steps, f32(0x1p23f))), u32(0x4b000000u));
    } else {
        const VF low = hn::Floor(steps);
        const auto up = hn::Gt(hn::Sub(steps, low), threshold);
        return hn::Sub(bits_of(hn::Add(hn::Add(low, hn::IfThenElseZero(up, f32(1.0f))), f32(0x1p23f))),
                       u32(0x4b000000u));
    }
}

// The code of v with its sign.
template <nibble::Element kElement, Rounding kRounding>
HWY_INLINE VU code_of(VF v, VF threshold) {
    constexpr Coding kCoding = coding_of(kElement);
    const VF a = hn::Min(hn::Abs(v), f32(largest_of(kElement)));
    if constexpr (kCoding.is_integer) {
        const VU magnitude = whole_of<kRounding>(a, threshold);
        const VU negative = hn::And(hn::Sub(u32(16), magnitude), u32(15));
        return select_bits(hn::Lt(v, f32(0.0f)), negative, magnitude);
    } else {
        constexpr uint32_t kLeast = (127u + kCoding.least) << 23;
        const VU binade = hn::Max(hn::And(bits_of(a), u32(0x7f800000u)), u32(kLeast));
        const VF steps = hn::Mul(a, float_of(hn::Sub(u32((254u + kCoding.mantissa) << 23), binade)));
        const VU below = hn::ShiftRight<23 - kCoding.mantissa>(hn::Sub(binade, u32(kLeast)));
        const VU sign = hn::And(hn::ShiftRight<32 - kCoding.bits>(bits_of(v)), u32(1u << (kCoding.bits - 1)));
        return hn::Or(hn::Add(below, whole_of<kRounding>(steps, threshold)), sign);
    }
}

// Bytes of a packed group.
template <nibble::Element kElement>
inline constexpr int kGroupBytes = kGroup* coding_of(kElement).bits / 8;

// The codes of the group at `tile`, times `encode`, for all lanes: [kLanes][kGroupBytes]. `first`: the index
// of lane 0's first element, for coins. Where `is_zero`, all values are zeros, and codes have no sign.
template <nibble::Element kElement, Rounding kRounding>
HWY_INLINE void encode_group(const QuantizeJob& job, const float* tile, VF encode, hn::Mask<F32> is_zero,
                             int64_t first, uint8_t* packed) {
    constexpr int kBits = coding_of(kElement).bits, kWords = kGroupBytes<kElement> / 4;
    Rounder<kRounding> round;
    round.draw(job, first);
    VU words[kWords];
#pragma GCC unroll 16
    for (int j = 0; j < kGroup; ++j) {
        VF threshold = hn::Zero(F32());
        if constexpr (kRounding == Rounding::stochastic)
            threshold = coin_threshold(round.words[j / 8][(j % 8) / 2], (j & 1) != 0);
        const VF v = hn::Mul(hn::Load(F32(), tile + j * kLanes), encode);
        const VU code = hn::ShiftLeft<32 - kBits>(code_of<kElement, kRounding>(v, threshold));
        VU& word = words[j * kBits / 32];
        word = j * kBits % 32 == 0 ? code : hn::Or(hn::ShiftRight<kBits>(word), code);
    }
    for (VU& word : words) word = select_bits(is_zero, hn::Zero(U32()), word);
    auto* const to = reinterpret_cast<uint32_t*>(packed);
    if constexpr (kWords == 4)
        hn::StoreInterleaved4(words[0], words[1], words[2], words[3], U32(), to);
    else
        hn::StoreInterleaved2(words[0], words[1], U32(), to);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();
#endif  // NIBBLE_HAS_LANES

#endif  // NIBBLE_QUANT_ELEMENTS_INL_H_
