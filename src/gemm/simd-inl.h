// Vector helpers for F32 arithmetic over F32 or BF16 memory, compiled once for each instruction set
// (Highway). Include after hwy/foreach_target.h, as any -inl.h file.
#if defined(NIBBLE_GEMM_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_GEMM_SIMD_INL_H_
#undef NIBBLE_GEMM_SIMD_INL_H_
#else
#define NIBBLE_GEMM_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>
#include <limits>
#include <type_traits>

#include "core/tensor.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using F32s = hn::ScalableTag<float>;
using V = hn::Vec<F32s>;
using I32s = hn::RebindToSigned<F32s>;
using U32s = hn::RebindToUnsigned<F32s>;
using U16s = hn::Rebind<uint16_t, F32s>;

inline constexpr F32s kF32{};

HWY_INLINE V constant(float x) { return hn::Set(kF32, x); }

HWY_INLINE V load(const float* p) { return hn::LoadU(kF32, p); }
HWY_INLINE V load(const Bf16* p) {
    const auto bits = hn::PromoteTo(U32s(), hn::LoadU(U16s(), &p->bits));
    return hn::BitCast(kF32, hn::ShiftLeft<16>(bits));
}

// Round to nearest, ties to even, as bf16_encode(). In the low half of each lane.
HWY_INLINE hn::Vec<U32s> bf16_bits(V v) {
    const U32s u32;
    const auto bits = hn::BitCast(u32, v);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(u32, 1));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(u32, 0x7fffu))));
    const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(u32, 0x40u));
    return hn::IfThenElse(hn::RebindMask(u32, hn::IsNaN(v)), quiet, rounded);
}
HWY_INLINE V rounded_to_bf16(V v) { return hn::BitCast(kF32, hn::ShiftLeft<16>(bf16_bits(v))); }

HWY_INLINE void store(V v, float* p) { hn::StoreU(v, kF32, p); }
HWY_INLINE void store(V v, Bf16* p) { hn::StoreU(hn::TruncateTo(U16s(), bf16_bits(v)), U16s(), &p->bits); }

// The value that a store into Element would keep.
template <typename Element>
HWY_INLINE V as_stored(V v) {
    if constexpr (std::is_same_v<Element, Bf16>) {
        return rounded_to_bf16(v);
    } else {
        return v;
    }
}

// How many elements a step of each_vector() covers: all lanes, or what is left at the end of a row.
struct AllLanes {};
struct SomeLanes {
    size_t count;
};

template <typename Element>
HWY_INLINE V load(const Element* p, AllLanes) {
    return load(p);
}
// Lanes beyond the count are `fill`.
template <typename Element>
HWY_INLINE V load(const Element* p, SomeLanes lanes, float fill = 0.0f) {
    HWY_ALIGN Element part[hn::MaxLanes(kF32)];
    std::memcpy(part, p, lanes.count * sizeof(Element));
    const auto inside = hn::FirstN(kF32, lanes.count);
    std::memset(static_cast<void*>(part + lanes.count), 0, sizeof(part) - lanes.count * sizeof(Element));
    return hn::IfThenElse(inside, load(part), constant(fill));
}
template <typename Element>
HWY_INLINE V load(const Element* p, AllLanes, float) {
    return load(p);
}
template <typename Element>
HWY_INLINE void store(V v, Element* p, AllLanes) {
    store(v, p);
}
template <typename Element>
HWY_INLINE void store(V v, Element* p, SomeLanes lanes) {
    HWY_ALIGN Element part[hn::MaxLanes(kF32)];
    store(v, part);
    std::memcpy(p, part, lanes.count * sizeof(Element));
}
// Stores v and returns what is kept of it.
HWY_INLINE V store_rounded(V v, float* p, AllLanes) {
    store(v, p);
    return v;
}
HWY_INLINE V store_rounded(V v, Bf16* p, AllLanes) {
    const auto bits = bf16_bits(v);
    hn::StoreU(hn::TruncateTo(U16s(), bits), U16s(), &p->bits);
    return hn::BitCast(kF32, hn::ShiftLeft<16>(bits));
}
template <typename Element>
HWY_INLINE V store_rounded(V v, Element* p, SomeLanes lanes) {
    store(v, p, lanes);
    return as_stored<Element>(v);
}
// Lanes that the step does not cover become zero.
HWY_INLINE V only(V v, AllLanes) { return v; }
HWY_INLINE V only(V v, SomeLanes lanes) { return hn::IfThenElseZero(hn::FirstN(kF32, lanes.count), v); }

// Calls step(i, lanes) for i = 0, Lanes, 2 Lanes ...; the last step may cover fewer.
template <typename Step>
HWY_INLINE void each_vector(int64_t count, Step&& step) {
    const auto width = static_cast<int64_t>(hn::Lanes(kF32));
    int64_t i = 0;
    for (; i + width <= count; i += width) step(i, AllLanes());
    if (i < count) step(i, SomeLanes{static_cast<size_t>(count - i)});
}

// As store(), for a NaN whose lower half is zero, as in all that comes of BF16 values; fewer instructions.
HWY_INLINE void store_product(V v, float* p) { store(v, p); }
HWY_INLINE void store_product(V v, Bf16* p) {
    const U32s u32;
    const auto bits = hn::BitCast(u32, v);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(u32, 1));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(u32, 0x7fffu))));
    hn::StoreU(hn::TruncateTo(U16s(), rounded), U16s(), &p->bits);
}

// e^x to about 1 ulp, for x up to 88; below -87 it is e^-87 (1.6e-38). A NaN stays one.
// x = n ln2 + r with |r| <= ln2 / 2; e^r by a polynomial (minimax of (e^r - 1 - r) / r^2, relative error
// 4e-9).
HWY_INLINE V exp(V x) {
    x = hn::Max(constant(-87.0f), x);  // in this order a NaN passes
    // Adding 1.5 * 2^23 leaves n in the low bits.
    const V magic = constant(12582912.0f);
    const V shifted = hn::MulAdd(x, constant(1.44269504f), magic);
    const V n = hn::Sub(shifted, magic);
    V r = hn::NegMulAdd(n, constant(0x1.62e4p-1f), x);  // the upper bits of ln2: the product is exact
    r = hn::NegMulAdd(n, constant(0x1.7f7d1cp-20f), r);
    V p = constant(0x1.6a2256p-10f);
    p = hn::MulAdd(p, r, constant(0x1.123b04p-7f));
    p = hn::MulAdd(p, r, constant(0x1.5558f8p-5f));
    p = hn::MulAdd(p, r, constant(0x1.555490p-3f));
    p = hn::MulAdd(p, r, constant(0x1.fffffcp-2f));
    const V e = hn::Add(hn::MulAdd(hn::Mul(r, r), p, r), constant(1.0f));
    const I32s i32;
    const auto power = hn::ShiftLeft<23>(hn::BitCast(i32, shifted));
    return hn::BitCast(kF32, hn::Add(hn::BitCast(i32, e), power));
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#endif
