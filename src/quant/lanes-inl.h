// Building blocks of the fast quantisers, compiled once for each instruction set.
//
// Layout: lane l of every vector belongs to one unit, the l-th of kLanes consecutive ones. A unit is the
// shortest run of columns that can be quantised alone: a block, or a rotation if that is longer (16 to 128
// elements). So a sum over a block runs in the same order in every lane, as docs/numerics.md wants it, a
// block's scale needs no broadcast, and the eight coins of a Philox call stay in the lane that uses them. A
// Tile holds one element of all units in each vector: element j of unit l is tile[j * kLanes + l].
#if defined(NIBBLE_QUANT_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_QUANT_LANES_INL_H_
#undef NIBBLE_QUANT_LANES_INL_H_
#else
#define NIBBLE_QUANT_LANES_INL_H_
#endif

#include <hwy/highway.h>

#include <cfloat>
#include <cstdint>

#include "quant/kernels.h"

#if NIBBLE_HAS_LANES
HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::ScalableTag<uint32_t>;
using I32 = hn::ScalableTag<int32_t>;
using U64 = hn::ScalableTag<uint64_t>;
using VF = hn::Vec<F32>;
using VU = hn::Vec<U32>;
using VU64 = hn::Vec<U64>;
inline constexpr int kLanes = static_cast<int>(HWY_LANES(float));

HWY_INLINE VF f32(float x) { return hn::Set(F32(), x); }
HWY_INLINE VU u32(uint32_t x) { return hn::Set(U32(), x); }
HWY_INLINE VU bits_of(VF x) { return hn::BitCast(U32(), x); }
HWY_INLINE VF float_of(VU x) { return hn::BitCast(F32(), x); }
HWY_INLINE VU magnitude_bits(VF x) { return hn::And(bits_of(x), u32(0x7fffffffu)); }
// Of a positive number: its exponent, biased by 127; and 1 unless it is a power of two.
HWY_INLINE VU exponent_field(VF x) { return hn::ShiftRight<23>(bits_of(x)); }
HWY_INLINE VU mantissa_flag(VF x) { return hn::Min(hn::And(bits_of(x), u32(0x7fffffu)), u32(1)); }
HWY_INLINE VF select(hn::Mask<F32> mask, VF yes, VF no) { return hn::IfThenElse(mask, yes, no); }
HWY_INLINE VU select_bits(hn::Mask<F32> mask, VU yes, VU no) {
    return bits_of(hn::IfThenElse(mask, float_of(yes), float_of(no)));
}

// a in the bits where mask is 1, b in the others.
HWY_INLINE VU select_by_bits(VU mask, VU a, VU b) {
#if HWY_TARGET <= HWY_AVX3
    return hn::IfVecThenElse(mask, a, b);  // one instruction, on bits
#else
    return hn::Or(hn::And(mask, a), hn::AndNot(mask, b));
#endif
}

// --- loading: rows of memory to lanes ---

// 16 neighbouring bytes of kLanes / 4 units that lie `stride` elements apart, one unit in each 128-bit block.
template <typename T>
HWY_INLINE VF load_blocks(const T* p, [[maybe_unused]] int64_t stride) {
    const hn::Repartition<T, F32> d;
    if constexpr (kLanes == 4) {
        return hn::BitCast(F32(), hn::LoadU(d, p));
    } else if constexpr (kLanes == 8) {
        const hn::Half<decltype(d)> half;
        return hn::BitCast(F32(), hn::Combine(d, hn::LoadU(half, p + stride), hn::LoadU(half, p)));
    } else {
        const hn::Half<decltype(d)> half;
        const hn::Half<decltype(half)> quarter;
        const auto low = hn::Combine(half, hn::LoadU(quarter, p + stride), hn::LoadU(quarter, p));
        const auto high =
            hn::Combine(half, hn::LoadU(quarter, p + 3 * stride), hn::LoadU(quarter, p + 2 * stride));
        return hn::BitCast(F32(), hn::Combine(d, high, low));
    }
}

// A 4x4 transpose in each 128-bit block. Its own inverse.
HWY_INLINE void transpose_blocks(VF& v0, VF& v1, VF& v2, VF& v3) {
    const F32 d;
    const U64 pairs;
    const VU64 a = hn::BitCast(pairs, hn::InterleaveLower(d, v0, v1));
    const VU64 b = hn::BitCast(pairs, hn::InterleaveUpper(d, v0, v1));
    const VU64 c = hn::BitCast(pairs, hn::InterleaveLower(d, v2, v3));
    const VU64 e = hn::BitCast(pairs, hn::InterleaveUpper(d, v2, v3));
    v0 = hn::BitCast(d, hn::InterleaveLower(pairs, a, c));
    v1 = hn::BitCast(d, hn::InterleaveUpper(pairs, a, c));
    v2 = hn::BitCast(d, hn::InterleaveLower(pairs, b, e));
    v3 = hn::BitCast(d, hn::InterleaveUpper(pairs, b, e));
}

// v[j], lane l = the j-th four bytes of the unit at p + l * stride, for j < kCount, a multiple of 4.
template <typename T, int kCount>
HWY_INLINE void load_transposed(const T* p, int64_t stride, VF (&v)[kCount]) {
    constexpr int kElements = 4 / static_cast<int>(sizeof(T));  // in four bytes
#pragma GCC unroll 4
    for (int j = 0; j < kCount; j += 4) {
        for (int r = 0; r < 4; ++r) v[j + r] = load_blocks(p + j * kElements + r * stride, 4 * stride);
        transpose_blocks(v[j], v[j + 1], v[j + 2], v[j + 3]);
    }
}

// The reverse for a piece of 16 bytes: its block b goes to the unit b * stride further on.
HWY_INLINE void store_blocks(VF v, float* p, int64_t stride) {
    const hn::Full128<float> quarter;
    if constexpr (kLanes == 4) {
        hn::StoreU(v, F32(), p);
    } else {
        alignas(64) float pieces[kLanes];
        hn::Store(v, F32(), pieces);
        for (int b = 0; b < kLanes / 4; ++b)
            hn::StoreU(hn::Load(quarter, pieces + 4 * b), quarter, p + b * stride);
    }
}
template <int kCount>
HWY_INLINE void store_transposed(VF (&v)[kCount], float* p, int64_t stride) {
#pragma GCC unroll 4
    for (int j = 0; j < kCount; j += 4) {
        transpose_blocks(v[j], v[j + 1], v[j + 2], v[j + 3]);
        for (int r = 0; r < 4; ++r) store_blocks(v[j + r], p + j + r * stride, 4 * stride);
    }
}

// --- rotation ---

// Stages h = kStage, 2 kStage .. kCount / 2 of the Hadamard butterfly over vectors.
template <int kCount, int kStage = 1>
HWY_INLINE void butterfly(VF (&v)[kCount]) {
    if constexpr (kStage < kCount) {
#pragma GCC unroll 16
        for (int j = 0; j < kCount; ++j) {
            if ((j & kStage) != 0) continue;
            const VF a = v[j], b = v[j + kStage];
            v[j] = hn::Add(a, b);
            v[j + kStage] = hn::Sub(a, b);
        }
        butterfly<kCount, 2 * kStage>(v);
    }
}

// To the nearest BF16 value, ties to even; what is not a number stays so.
HWY_INLINE VF round_to_bf16(VF x) {
    const VU bits = bits_of(x);
    const VU odd = hn::And(hn::ShiftRight<16>(bits), u32(1));
    const VU rounded = hn::And(hn::Add(hn::Add(bits, u32(0x7fffu)), odd), u32(0xffff0000u));
    return select(hn::Eq(x, x), float_of(rounded), x);
}

// The stages h = 16 .. kGroups * 8 of a rotation of kGroups * 16, and its factor.
template <int kGroups>
HWY_INLINE void finish_rotation(float* tile, VF factor) {
    for (int i = 0; i < 16; ++i) {
        VF v[kGroups];
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g) v[g] = hn::Load(F32(), tile + (16 * g + i) * kLanes);
        butterfly(v);
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g)
            hn::Store(hn::Mul(v[g], factor), F32(), tile + (16 * g + i) * kLanes);
    }
}

// One round of the job's rotation. load(k, v) gives elements k .. k + 15 of kLanes units.
template <class Load>
HWY_INLINE void rotate_tile(const QuantizeJob& job, const uint32_t* signs, const Load& load, float* tile) {
    for (int k = 0; k < job.unit; k += 16) {
        VF v[16];
        load(k, v);
        const uint32_t* flipped = signs + (k & (job.rotation - 1));
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) v[j] = float_of(hn::Xor(bits_of(v[j]), u32(flipped[j])));
        butterfly(v);
        if (job.rotation == 16) {
#pragma GCC unroll 16
            for (int j = 0; j < 16; ++j) v[j] = hn::Mul(v[j], f32(0.25f));
        }
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) hn::Store(v[j], F32(), tile + (k + j) * kLanes);
    }
    for (int k = 0; k < job.unit; k += job.rotation) {
        if (job.rotation == 32) finish_rotation<2>(tile + k * kLanes, f32(job.factor));
        if (job.rotation == 64) finish_rotation<4>(tile + k * kLanes, f32(job.factor));
        if (job.rotation == 128) finish_rotation<8>(tile + k * kLanes, f32(job.factor));
    }
}

struct LoadTile {
    const float* tile;

    HWY_INLINE void operator()(int k, VF (&v)[16]) const {
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) v[j] = hn::Load(F32(), tile + (k + j) * kLanes);
    }
};

// The tile of kLanes units, rotated as the job says.
template <class Load>
HWY_NOINLINE void load_tile(const QuantizeJob& job, const Load load, float* tile) {
    const F32 d;
    if (job.rounds == 0) {
        for (int k = 0; k < job.unit; k += 16) {
            VF v[16];
            load(k, v);
#pragma GCC unroll 16
            for (int j = 0; j < 16; ++j) hn::Store(v[j], d, tile + (k + j) * kLanes);
        }
        return;
    }
    rotate_tile(job, job.signs[0], load, tile);
    if (job.rounds == 2) rotate_tile(job, job.signs[1], LoadTile{tile}, tile);
    if (job.out_bf16) {
        for (int j = 0; j < job.unit; ++j) {
            hn::Store(round_to_bf16(hn::Load(d, tile + j * kLanes)), d, tile + j * kLanes);
        }
    }
}

// The bits of the largest magnitude of kCount elements.
template <int kCount>
HWY_INLINE VU largest_bits(const float* tile) {
    VU a = hn::Zero(U32()), b = a;
    for (int j = 0; j < kCount; j += 2) {
        a = hn::Max(a, magnitude_bits(hn::Load(F32(), tile + j * kLanes)));
        b = hn::Max(b, magnitude_bits(hn::Load(F32(), tile + (j + 1) * kLanes)));
    }
    return hn::Max(a, b);
}

// The sum of a power of two of values by a binary tree of neighbours (numerics/reduce.h), as they come: value
// j completes the subtrees that end with it. `levels[k]` is the last subtree of 2^k values.
struct TreeSum {
    VF levels[6];

    HWY_INLINE void add(int j, VF v) {
        if ((j & 1) == 0) return void(levels[0] = v);
        v = hn::Add(levels[0], v);
        if ((j & 2) == 0) return void(levels[1] = v);
        v = hn::Add(levels[1], v);
        if ((j & 4) == 0) return void(levels[2] = v);
        v = hn::Add(levels[2], v);
        if ((j & 8) == 0) return void(levels[3] = v);
        v = hn::Add(levels[3], v);
        if ((j & 16) == 0) return void(levels[4] = v);
        levels[5] = hn::Add(levels[4], v);
    }
    HWY_INLINE VF of_16() const { return levels[4]; }
    HWY_INLINE VF of_32() const { return levels[5]; }
};

// --- coins ---

// Philox4x32-10 (numerics/philox.h) under the counters first + offset[l]. words[w] holds coins 2w (low half)
// and 2w + 1. Even and odd lanes are drawn apart, as 64-bit lanes whose upper halves carry what the
// multiplier drops.
HWY_NOINLINE inline void draw_coins(const CoinStream& stream, uint64_t first,
                                    const uint64_t (&offsets)[kMaxLanes], VU (&words)[4]) {
    const U64 d;
    const U32 d32;
    VU64 halves[2][4];
    for (int half = 0; half < 2; ++half) {
        const VU64 i = hn::Add(hn::Set(d, first), hn::Load(d, offsets + half * (kMaxLanes / 2)));
        VU64 c0 = i;
        VU64 c1 = hn::Or(hn::ShiftRight<32>(i), hn::Set(d, stream.purpose));
        VU64 c2 = hn::Set(d, stream.step), c3 = hn::Set(d, stream.operand);
        for (int round = 0; round < 10; ++round) {
            const VU64 p0 = hn::MulEven(hn::BitCast(d32, c0), u32(0xd2511f53u));
            const VU64 p1 = hn::MulEven(hn::BitCast(d32, c2), u32(0xcd9e8d57u));
            c0 = hn::Xor3(hn::ShiftRight<32>(p1), c1, hn::Set(d, stream.key0[round]));
            c2 = hn::Xor3(hn::ShiftRight<32>(p0), c3, hn::Set(d, stream.key1[round]));
            c1 = p1;
            c3 = p0;
        }
        halves[half][0] = c0;
        halves[half][1] = c1;
        halves[half][2] = c2;
        halves[half][3] = c3;
    }
    for (int w = 0; w < 4; ++w) {
        words[w] =
            hn::OddEven(hn::BitCast(d32, hn::ShiftLeft<32>(halves[1][w])), hn::BitCast(d32, halves[0][w]));
    }
}

// (coin + 1/2) / 65536, exact. `odd`: the coin in the upper half.
HWY_INLINE VF coin_threshold(VU word, bool odd) {
    const VU mantissa = odd ? hn::ShiftRight<9>(word) : hn::ShiftLeft<7>(word);
    const VU bits = hn::OrAnd(u32(0x3f800040u), mantissa, u32(0x007fff80u));
    return hn::Sub(float_of(bits), f32(1.0f));
}

// --- E4M3 scales (numerics/e4m3.h) ---

struct Scale {
    VU byte;
    VF value;
};

HWY_INLINE VF e4m3_value(VU byte) {
    const VF normal = float_of(hn::ShiftLeft<20>(hn::Add(byte, u32(120u << 3))));
    const VF subnormal = hn::Mul(hn::ConvertTo(F32(), hn::BitCast(I32(), byte)), f32(0x1p-9f));
    return select(hn::Lt(subnormal, f32(0x1p-6f)), subnormal, normal);
}

// To nearest, ties to even, saturating; v >= 0.
HWY_INLINE Scale e4m3_round(VF v) {
    const VF clamped = hn::Min(v, f32(448.0f));
    const VU bits = bits_of(clamped);
    const VU odd = hn::And(hn::ShiftRight<20>(bits), u32(1));
    const VU normal = hn::Sub(hn::ShiftRight<20>(hn::Add(hn::Add(bits, u32(0x7ffffu)), odd)), u32(120u << 3));
    const VU subnormal = hn::Sub(bits_of(hn::Add(clamped, f32(0x1p14f))), bits_of(f32(0x1p14f)));
    const VU byte = select_bits(hn::Lt(clamped, f32(0x1p-6f)), subnormal, normal);
    return {byte, e4m3_value(byte)};
}

// Up iff the fraction of the way to the upper neighbour exceeds `threshold`; saturating; v >= 0.
HWY_INLINE VU e4m3_stochastic_byte(VF v, VF threshold) {
    const VF clamped = hn::Min(v, f32(448.0f));
    const VU bits = bits_of(clamped);
    const auto is_subnormal = hn::Lt(clamped, f32(0x1p-6f));
    const VF steps = hn::Floor(hn::Mul(clamped, f32(0x1p9f)));
    const VF low =
        select(is_subnormal, hn::Mul(steps, f32(0x1p-9f)), float_of(hn::And(bits, u32(0xfff00000u))));
    const VF step =
        select(is_subnormal, f32(0x1p-9f), hn::Mul(float_of(hn::And(bits, u32(0x7f800000u))), f32(0.125f)));
    const VU floor_byte = select_bits(is_subnormal, hn::And(bits_of(hn::Add(steps, f32(0x1p23f))), u32(15)),
                                      hn::Sub(hn::ShiftRight<20>(bits), u32(120u << 3)));
    const auto up = hn::Gt(hn::Sub(clamped, low), hn::Mul(threshold, step));
    return hn::Add(floor_byte, select_bits(up, u32(1), u32(0)));
}

// --- E2M1 elements (numerics/e2m1.h) ---

struct Element {
    VU code;  // of the magnitude, in the low three bits; what is above them is to be masked off
    VF magnitude;
};

// The power of two at or below a magnitude, and 1 for what is less: twice E2M1's step there.
HWY_INLINE VU octave_bits(VF a) { return hn::And(bits_of(hn::Max(a, f32(1.0f))), u32(0x7f800000u)); }

// `a`, a magnitude up to 6, to its nearest, ties to even code. One unit in the last place of the constant
// that is added is E2M1's step there. The sum's mantissa counts steps, from 6 on; twice its exponent, modulo
// 8, counts the steps of the octaves below, and takes the 6 away.
HWY_INLINE Element round_nearest(VF a) {
    const VF shift = hn::Mul(float_of(octave_bits(a)), f32(0x1p22f + 3));
    const VF sum = hn::Add(a, shift);
    return {hn::Add(bits_of(sum), hn::ShiftRight<22>(bits_of(sum))), hn::Sub(sum, shift)};
}

// Codes as counts of thresholds reached (away: ties up) or passed (down). No magnitude.
template <bool kAway>
HWY_INLINE Element round_by_thresholds(VF a) {
    VU code = hn::Zero(U32());
    for (const float threshold : {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f}) {
        const auto reached = kAway ? hn::Ge(a, f32(threshold)) : hn::Gt(a, f32(threshold));
        code = hn::Add(code, select_bits(reached, u32(1), u32(0)));
    }
    return {code, a};
}

HWY_INLINE Element round_stochastic(VF a, VF threshold) {
    const VU octave = octave_bits(a);
    const VF steps = hn::Mul(a, float_of(hn::Sub(u32(0x7f800000u), octave)));  // by 2 / octave, exact
    const VF low = hn::Floor(steps);
    const auto up = hn::Gt(hn::Sub(steps, low), threshold);
    const VF rounded = hn::Add(low, hn::IfThenElseZero(up, f32(1.0f)));
    const VU count = bits_of(hn::Add(rounded, f32(0x1p23f + 2)));
    return {hn::Add(count, hn::ShiftRight<22>(octave)),
            hn::Mul(rounded, hn::Mul(float_of(octave), f32(0.5f)))};
}

// Eight codes of each lane, the first in the lowest bits: each enters at the top and moves down as others
// come.
HWY_INLINE VU push_code(VU word, VU code, VF x) {
    const VU nibble = select_by_bits(u32(0x80000000u), bits_of(x), hn::ShiftLeft<28>(code));
    return hn::Or(hn::ShiftRight<4>(word), nibble);
}

// Rounds elements of a group; for stochastic rounding, with coins drawn for it.
template <Rounding kRounding>
struct Rounder {
    HWY_INLINE Element operator()(VF a, int) const {
        if constexpr (kRounding == Rounding::nearest) return round_nearest(a);
        if constexpr (kRounding == Rounding::nearest_away) return round_by_thresholds<true>(a);
        if constexpr (kRounding == Rounding::nearest_down) return round_by_thresholds<false>(a);
    }
    HWY_INLINE void draw(const QuantizeJob&, int64_t) {}
};
template <>
struct Rounder<Rounding::stochastic> {
    VU words[2][4];  // of 16 elements

    HWY_INLINE Element operator()(VF a, int j) const {
        return round_stochastic(a, coin_threshold(words[(j / 8) & 1][(j % 8) / 2], (j & 1) != 0));
    }
    // For the 16 elements that begin, in lane 0, at `first`, counted over [rows, padded columns].
    HWY_INLINE void draw(const QuantizeJob& job, int64_t first) {
        const uint64_t counter = static_cast<uint64_t>(first) / 8;
        draw_coins(job.element_coins, counter, job.element_offsets, words[0]);
        draw_coins(job.element_coins, counter + 1, job.element_offsets, words[1]);
    }
};

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();
#endif  // NIBBLE_HAS_LANES

#endif  // NIBBLE_QUANT_LANES_INL_H_
