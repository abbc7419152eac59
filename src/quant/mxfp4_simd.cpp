// MXFP4 in blocks of 1x32, block after block of the tile (numerics/mxfp4.h, one block per lane).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/mxfp4_simd.cpp"
#include "quant/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
// clang-format on
#include <hwy/highway.h>

#include "quant/kernels.h"
#include "quant/steps-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
#if NIBBLE_HAS_LANES
namespace {

constexpr int kMaxBlocks = kMaxUnit / kMxfp4Block;

// The byte of an exponent field (biased by 127, as the byte is) less `down`.
HWY_INLINE VU byte_of(VU field, uint32_t down) {
    return hn::Min(hn::Sub(hn::Max(field, u32(down)), u32(down)), u32(252));
}

// The square root of the block's variance, or of its mean square. Values up to 2^60: no square overflows.
HWY_INLINE VF quest_spread(const float* tile, bool about_mean) {
    TreeSum first, second;
#pragma GCC unroll 32
    for (int j = 0; j < kMxfp4Block; ++j) {
        const VF x = hn::Load(F32(), tile + j * kLanes);
        first.add(j, x);
        second.add(j, hn::Mul(x, x));
    }
    const VF share = f32(1.0f / kMxfp4Block);
    VF square = hn::Mul(second.of_32(), share);
    if (about_mean) {
        const VF mean = hn::Mul(first.of_32(), share);
        square = hn::Max(hn::Sub(square, hn::Mul(mean, mean)), f32(0.0f));
    }
    return hn::Sqrt(square);
}

HWY_INLINE VU scale_byte(const QuantSpec& spec, const float* tile, VF amax) {
    switch (spec.scale) {
        case ScaleRule::ceil:
            return byte_of(hn::Add(exponent_field(amax), mantissa_flag(amax)), 2);
        case ScaleRule::rceil: {
            const VF v = hn::Mul(amax, f32(1.0f / 6.0f));
            const VU byte = byte_of(hn::Add(exponent_field(v), mantissa_flag(v)), 0);
            return select_bits(hn::Le(v, f32(0x1p-127f)), hn::Zero(U32()), byte);
        }
        case ScaleRule::even:
            return byte_of(hn::ShiftRight<23>(hn::Add(bits_of(amax), u32(1u << 21))), 2);
        case ScaleRule::quest_std:
        case ScaleRule::quest_rms: {
            const VF spread = quest_spread(tile, spec.scale == ScaleRule::quest_std);
            const VF constant = f32(2.92247856f / 6.0f * spec.mult);
            return byte_of(exponent_field(hn::Add(hn::Mul(constant, spread), f32(1e-8f))), 0);
        }
        default:
            return byte_of(exponent_field(amax), 2);  // floor and three-quarters
    }
}

struct Packed {
    alignas(64) uint8_t codes[kMaxBlocks * kLanes * 16];
    alignas(64) uint8_t masks[kMaxBlocks * kLanes * 4];
    alignas(64) uint8_t scales[kMaxBlocks * kLanes];
};

// Codes and mask of block b; `first` is the index of lane 0's first element.
template <Rounding kRounding>
HWY_INLINE void encode_block(const QuantizeJob& job, const float* tile, VU byte, VF amax, int64_t first,
                             int b, Packed& packed) {
    const U32 d;
    const VF factor = float_of(hn::ShiftLeft<23>(hn::Sub(u32(254), byte)));
    const VF before = f32(job.spec.scale == ScaleRule::three_quarters ? kThreeQuarters : 1.0f);
    const VF top = f32(kE2M1Max);
    const auto is_zero = hn::Eq(amax, f32(0.0f));
    VU words[4], mask = hn::Zero(d);
    for (int half = 0; half < 2; ++half) {
        Rounder<kRounding> round;
        round.draw(job, first + 16 * half);
        VU low = hn::Zero(d), high = low;
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) {
            const VF x = hn::Load(F32(), tile + (16 * half + j) * kLanes);
            const VF v = hn::Mul(hn::Mul(hn::Abs(x), before), factor);
            VU& word = j < 8 ? low : high;
            word = push_code(word, round(hn::Min(v, top), j).code, x);
            const VU inside = select_bits(hn::Lt(v, top), u32(0x80000000u), hn::Zero(d));
            mask = hn::Or(hn::ShiftRight<1>(mask), inside);
        }
        words[2 * half] = select_bits(is_zero, hn::Zero(d), low);
        words[2 * half + 1] = select_bits(is_zero, hn::Zero(d), high);
    }
    hn::StoreInterleaved4(words[0], words[1], words[2], words[3], d,
                          reinterpret_cast<uint32_t*>(packed.codes) + b * kLanes * 4);
    hn::Store(mask, d, reinterpret_cast<uint32_t*>(packed.masks) + b * kLanes);
    store_bytes(byte, packed.scales + b * kLanes);
}

template <Rounding kRounding>
uint32_t quantize_range(const QuantizeJob& job, int64_t begin, int64_t end) {
    alignas(64) float tiles[kMaxUnit * kLanes];
    Packed packed;
    Step step;
    const int blocks = job.unit / kMxfp4Block;
    const int64_t stride = job.lane_stride * blocks;
    VU largest = hn::Zero(U32());
    for (int64_t position = begin; position < end;) {
        position = step.load(job, position, end, tiles);
        for (int b = 0; b < blocks; ++b) {
            const float* tile = tiles + b * kMxfp4Block * kLanes;
            const VU bits = largest_bits<kMxfp4Block>(tile);
            const VF amax = float_of(bits);
            largest = hn::Max(largest, bits);
            encode_block<kRounding>(job, tile, scale_byte(job.spec, tile, amax), amax,
                                    step.unit * job.unit + b * kMxfp4Block, b, packed);
        }
        const int64_t block = step.unit * blocks;
        store_groups<16>(packed.codes, blocks, step.count, stride * 16, job.codes + block * 16);
        store_groups<1>(packed.scales, blocks, step.count, stride, job.scales + block);
        if (job.mask == nullptr) continue;
        store_groups<4>(packed.masks, blocks, step.count, stride * 4, job.mask + block * 4);
    }
    return largest_lane(largest);
}

}  // namespace

RangeKernel choose_mxfp4(const QuantSpec& spec) {
    switch (spec.round) {
        case Rounding::nearest:
            return quantize_range<Rounding::nearest>;
        case Rounding::nearest_away:
            return quantize_range<Rounding::nearest_away>;
        case Rounding::nearest_down:
            return quantize_range<Rounding::nearest_down>;
        case Rounding::stochastic:
            return quantize_range<Rounding::stochastic>;
    }
    return nullptr;
}

#else

RangeKernel choose_mxfp4(const QuantSpec&) { return nullptr; }

#endif  // NIBBLE_HAS_LANES
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {
HWY_EXPORT(choose_mxfp4);
RangeKernel mxfp4_kernel(const QuantSpec& spec) { return HWY_DYNAMIC_DISPATCH(choose_mxfp4)(spec); }
}  // namespace nibble
#endif
