// MXFP8 in blocks of 1x32, block after block of the tile (numerics/mxfp8.h, one block per lane).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/mxfp8_simd.cpp"
#include "quant/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
// clang-format on
#include <hwy/highway.h>

#include "quant/elements-inl.h"
#include "quant/kernels.h"
#include "quant/steps-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
#if NIBBLE_HAS_LANES
namespace {

constexpr int kBlock = 32;
constexpr int kMaxBlocks = kMaxUnit / kBlock;

// 0 for a block of zeros.
HWY_INLINE VU scale_byte(ScaleRule scale, const Mxfp8Rule& rule, VF amax) {
    VU field;
    auto down = static_cast<uint32_t>(rule.exponent);
    switch (scale) {
        case ScaleRule::ceil:
            field = hn::Add(exponent_field(amax), mantissa_flag(amax));
            break;
        case ScaleRule::rceil: {
            const VF v = hn::Mul(amax, f32(1.0f / rule.largest));
            field = hn::Add(exponent_field(v), mantissa_flag(v));
            down = 0;
            break;
        }
        case ScaleRule::even:
            field = hn::ShiftRight<23>(hn::Add(bits_of(amax), u32(1u << (22 - rule.mantissa_bits))));
            break;
        default:
            field = exponent_field(amax);
    }
    const auto least = static_cast<uint32_t>(rule.least_scale + 127),
               largest = static_cast<uint32_t>(rule.largest_scale + 127);
    const VU byte = hn::Min(hn::Sub(hn::Max(field, u32(least + down)), u32(down)), u32(largest));
    return select_bits(hn::Eq(amax, f32(0.0f)), hn::Zero(U32()), byte);
}

struct Packed {
    alignas(64) uint8_t codes[kMaxUnit * kLanes];
    alignas(64) uint8_t scales[kMaxBlocks * kLanes];
};

template <nibble::Element kElement, Rounding kRounding>
uint32_t quantize_range(const QuantizeJob& job, int64_t begin, int64_t end) {
    alignas(64) float tiles[kMaxUnit * kLanes];
    Packed packed;
    Step step;
    const Mxfp8Rule rule = mxfp8_rule(kElement);
    const int blocks = job.unit / kBlock;
    VU largest = hn::Zero(U32());
    for (int64_t position = begin; position < end;) {
        position = step.load(job, position, end, tiles);
        for (int b = 0; b < blocks; ++b) {
            const float* tile = tiles + b * kBlock * kLanes;
            const VU bits = largest_bits<kBlock>(tile);
            const VU byte = scale_byte(job.spec.scale, rule, float_of(bits));
            const VF factor = float_of(hn::ShiftLeft<23>(hn::Sub(u32(254), byte)));
            largest = hn::Max(largest, bits);
            for (int g = 2 * b; g < 2 * b + 2; ++g)
                encode_group<kElement, kRounding>(
                    job, tiles + g * kGroup * kLanes, factor, hn::Eq(float_of(bits), f32(0.0f)),
                    step.unit * job.unit + g * kGroup, packed.codes + g * kLanes * kGroup);
            store_bytes(byte, packed.scales + b * kLanes);
        }
        const int64_t stride = job.lane_stride * job.unit, block_stride = job.lane_stride * blocks;
        store_groups<kGroup>(packed.codes, 2 * blocks, step.count, stride, job.codes + step.unit * job.unit);
        store_groups<1>(packed.scales, blocks, step.count, block_stride, job.scales + step.unit * blocks);
    }
    return largest_lane(largest);
}

template <nibble::Element kElement>
RangeKernel of_rounding(Rounding round) {
    if (round == Rounding::nearest) return quantize_range<kElement, Rounding::nearest>;
    return round == Rounding::stochastic ? quantize_range<kElement, Rounding::stochastic> : nullptr;
}

}  // namespace

RangeKernel choose_mxfp8(const QuantSpec& spec) {
    return spec.element == nibble::Element::e4m3 ? of_rounding<nibble::Element::e4m3>(spec.round)
                                                 : of_rounding<nibble::Element::e5m2>(spec.round);
}

#else

RangeKernel choose_mxfp8(const QuantSpec&) { return nullptr; }

#endif  // NIBBLE_HAS_LANES
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {
HWY_EXPORT(choose_mxfp8);
RangeKernel mxfp8_kernel(const QuantSpec& spec) { return HWY_DYNAMIC_DISPATCH(choose_mxfp8)(spec); }
}  // namespace nibble
#endif
