// NVFP4 in blocks of 1x16, group after group of the tile (numerics/nvfp4.h, one group per lane).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/nvfp4_simd.cpp"
#include "quant/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
// clang-format on
#include <hwy/highway.h>

#include "quant/kernels.h"
#include "quant/nvfp4_group-inl.h"
#include "quant/steps-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
#if NIBBLE_HAS_LANES
namespace {

// What a step writes before it is put in the order of memory.
struct Packed {
    alignas(64) uint8_t codes[kMaxGroups * kLanes * 8];
    alignas(64) uint8_t scales[kMaxGroups * kLanes];
    alignas(64) float targets[kMaxGroups * kLanes];  // of scales that are rounded after their elements

    HWY_INLINE void set_codes(int g, const Encoded& e) {
        hn::StoreInterleaved2(e.words[0], e.words[1], U32(),
                              reinterpret_cast<uint32_t*>(codes) + g * kLanes * 2);
    }
    HWY_INLINE void set_scales(int g, VU bytes) { store_bytes(bytes, scales + g * kLanes); }
    HWY_INLINE void store(const QuantizeJob& job, const Step& step, int groups) const {
        const int64_t stride = job.lane_stride * groups;
        store_groups<8>(codes, groups, step.count, stride * 8, job.codes + step.unit * groups * 8);
        store_groups<1>(scales, groups, step.count, stride, job.scales + step.unit * groups);
    }
};

HWY_INLINE void round_targets(const QuantizeJob& job, const Step& step, int groups, Packed& packed) {
    const F32 d;
    if (job.spec.scale_round == ScaleRounding::nearest) {
        for (int g = 0; g < groups; ++g) {
            packed.set_scales(g, e4m3_round(hn::Load(d, packed.targets + g * kLanes)).byte);
        }
        return;
    }
    if (groups == 8) {  // a unit has the eight coins of one draw
        VU words[4];
        draw_coins(job.scale_coins, static_cast<uint64_t>(step.unit), job.unit_offsets, words);
        for (int w = 0; w < 4; ++w) {
            for (const bool odd : {false, true}) {
                const int g = 2 * w + odd;
                const VF target = hn::Load(d, packed.targets + g * kLanes);
                packed.set_scales(g, e4m3_stochastic_byte(target, coin_threshold(words[w], odd)));
            }
        }
        return;
    }
    for (int l = 0; l < kLanes; ++l) {
        for (int g = 0; g < groups; ++g) {
            const int64_t group = (step.unit + l * job.lane_stride) * groups + g;
            const Philox coins = scale_coins(job.key, static_cast<uint64_t>(group / 8));
            packed.scales[g * kLanes + l] =
                e4m3_stochastic(packed.targets[g * kLanes + l], coins.coin(static_cast<int>(group % 8)));
        }
    }
}

template <Kind kKind, Rounding kRounding>
uint32_t quantize_range(const QuantizeJob& job, int64_t begin, int64_t end) {
    constexpr bool kFourSix = kKind == Kind::mse || kKind == Kind::mae || kKind == Kind::largest;
    alignas(64) float tiles[kMaxUnit * kLanes];
    Packed packed;
    Step step;
    const int groups = job.unit / kNvfp4Group;
    const Nvfp4Tensor& tensor = job.tensor;
    VU largest = hn::Zero(U32());
    for (int64_t position = begin; position < end;) {
        position = step.load(job, position, end, tiles);
        for (int g = 0; g < groups; ++g) {
            const float* tile = tiles + g * kNvfp4Group * kLanes;
            const VU bits = largest_bits<kNvfp4Group>(tile);
            largest = hn::Max(largest, bits);
            Rounder<kRounding> rounder;
            rounder.draw(job, step.unit * job.unit + g * kNvfp4Group);
            if constexpr (kFourSix) {  // the smaller scale where errors are equal
                const Candidates c = four_six_candidates(float_of(bits), tensor);
                const Encoded six = encode<kKind>(tile, c.six.value, tensor, rounder);
                const Encoded four = encode<kKind>(tile, c.four.value, tensor, rounder);
                const auto takes_four = hn::Lt(four.measure, six.measure);
                packed.set_codes(g, select_encoded(takes_four, four, six));
                packed.set_scales(g, select_bits(takes_four, c.four.byte, c.six.byte));
            } else {
                const Scale scale = e4m3_round(hn::Mul(float_of(bits), f32(tensor.block_factor)));
                const Encoded e = encode<kKind>(tile, scale.value, tensor, rounder);
                packed.set_codes(g, e);
                if constexpr (kKind == Kind::eden) {
                    hn::Store(hn::Mul(e.measure, scale.value), F32(), packed.targets + g * kLanes);
                } else {
                    packed.set_scales(g, scale.byte);
                }
            }
        }
        if constexpr (kKind == Kind::eden) round_targets(job, step, groups, packed);
        packed.store(job, step, groups);
    }
    return largest_lane(largest);
}

// tensor=posthoc: the first pass finds the largest wide scale, the second divides all by the tensor scale.
template <Rounding kRounding>
uint32_t posthoc_range(const QuantizeJob& job, int64_t begin, int64_t end) {
    alignas(64) float tiles[kMaxUnit * kLanes];
    Packed packed;
    Step step;
    const int groups = job.unit / kNvfp4Group;
    const bool is_eden = job.spec.correct == Correction::eden, is_first = job.posthoc_scale == 0.0f;
    VU largest = hn::Zero(U32()), largest_wide = largest;
    for (int64_t position = begin; position < end;) {
        position = step.load(job, position, end, tiles);
        for (int g = 0; g < groups; ++g) {
            const float* tile = tiles + g * kNvfp4Group * kLanes;
            const VU bits = largest_bits<kNvfp4Group>(tile);
            largest = hn::Max(largest, bits);
            Rounder<kRounding> rounder;
            rounder.draw(job, step.unit * job.unit + g * kNvfp4Group);
            const VF target = hn::Mul(float_of(bits), f32(job.tensor.rule.inverse_top));
            const VF scale = float_of(hn::And(bits_of(target), u32(0xfff80000u)));
            const VF factor = hn::Min(hn::Div(f32(1.0f), scale), f32(FLT_MAX));
            const Encoded e = encode<Kind::eden_scaled>(tile, factor, scale, job.tensor, rounder);
            VF wide = is_eden ? hn::Mul(scale, e.measure) : scale;
            wide = hn::IfThenZeroElse(hn::Eq(scale, f32(0.0f)), round_to_bf16(wide));
            largest_wide = hn::Max(largest_wide, bits_of(wide));
            packed.set_codes(g, e);
            hn::Store(hn::Div(wide, f32(job.posthoc_scale)), F32(), packed.targets + g * kLanes);
        }
        if (is_first) continue;
        round_targets(job, step, groups, packed);
        packed.store(job, step, groups);
    }
    const bool is_finite = largest_lane(largest) < 0x7f800000u;
    return is_first && is_finite ? largest_lane(largest_wide) : largest_lane(largest);
}

// outer=1x128: a unit of 128 columns is a tensor of its own, and no scale is below 2^-9.
template <Rounding kRounding>
uint32_t outer_range(const QuantizeJob& job, int64_t begin, int64_t end) {
    constexpr int kGroups = kMaxUnit / kNvfp4Group;
    const F32 d;
    alignas(64) float tiles[kMaxUnit * kLanes], scales[kLanes];
    Packed packed;
    Step step;
    VU largest = hn::Zero(U32());
    for (int64_t position = begin; position < end;) {
        position = step.load(job, position, end, tiles);
        const VU unit_bits = largest_bits<kMaxUnit>(tiles);
        largest = hn::Max(largest, unit_bits);
        const VF amax = float_of(unit_bits);
        const VF wanted = hn::Min(hn::Div(f32(job.tensor.rule.reach), amax), f32(FLT_MAX));
        const VF encode_scale = select(hn::Gt(amax, f32(0.0f)), wanted, f32(1.0f));
        const VF unit_scale = hn::Div(f32(1.0f), encode_scale);
        const VF block_factor = hn::Mul(encode_scale, f32(job.tensor.rule.inverse_top));
        for (int g = 0; g < kGroups; ++g) {
            const float* tile = tiles + g * kNvfp4Group * kLanes;
            const VU bits = largest_bits<kNvfp4Group>(tile);
            const VU byte = hn::Max(e4m3_round(hn::Mul(float_of(bits), block_factor)).byte, u32(1));
            const VF scale = e4m3_value(byte);
            const VF factor = hn::Min(hn::Div(f32(1.0f), hn::Mul(scale, unit_scale)), f32(FLT_MAX));
            Rounder<kRounding> rounder;
            rounder.draw(job, step.unit * job.unit + g * kNvfp4Group);
            Encoded e = encode<Kind::amax>(tile, factor, scale, job.tensor, rounder);
            const auto is_zero = hn::Eq(float_of(bits), f32(0.0f));
            for (VU& word : e.words) word = select_bits(is_zero, hn::Zero(U32()), word);
            packed.set_codes(g, e);
            packed.set_scales(g, byte);
        }
        packed.store(job, step, kGroups);
        hn::Store(unit_scale, d, scales);
        for (int l = 0; l < step.count; ++l) job.outer_scales[step.unit + l * job.lane_stride] = scales[l];
    }
    return largest_lane(largest);
}

}  // namespace

RangeKernel choose_outer(const QuantSpec& spec) {
    if (spec.scale != ScaleRule::amax || spec.correct != Correction::none) return nullptr;
    if (spec.round == Rounding::nearest) return outer_range<Rounding::nearest>;
    return spec.round == Rounding::stochastic ? outer_range<Rounding::stochastic> : nullptr;
}

// The kernel of a spec; null if there is none.
RangeKernel choose_nvfp4(const QuantSpec& spec) {
    const bool nearest = spec.round == Rounding::nearest, stochastic = spec.round == Rounding::stochastic;
    if (spec.tensor == TensorScale::posthoc) {
        if (spec.scale != ScaleRule::amax || spec.correct == Correction::eden_block) return nullptr;
        return nearest      ? posthoc_range<Rounding::nearest>
               : stochastic ? posthoc_range<Rounding::stochastic>
                            : nullptr;
    }
    if (spec.correct != Correction::none) {
        const bool plain = spec.correct == Correction::eden && spec.scale == ScaleRule::amax && nearest;
        return plain ? quantize_range<Kind::eden, Rounding::nearest> : nullptr;
    }
    switch (spec.scale) {
        case ScaleRule::amax:
            return nearest      ? quantize_range<Kind::amax, Rounding::nearest>
                   : stochastic ? quantize_range<Kind::amax, Rounding::stochastic>
                   : spec.round == Rounding::nearest_away
                       ? quantize_range<Kind::amax, Rounding::nearest_away>
                       : quantize_range<Kind::amax, Rounding::nearest_down>;
        case ScaleRule::four_six_mse:
            return nearest      ? quantize_range<Kind::mse, Rounding::nearest>
                   : stochastic ? quantize_range<Kind::mse, Rounding::stochastic>
                                : nullptr;
        case ScaleRule::four_six_mae:
            return nearest      ? quantize_range<Kind::mae, Rounding::nearest>
                   : stochastic ? quantize_range<Kind::mae, Rounding::stochastic>
                                : nullptr;
        case ScaleRule::four_six_amax:
            return nearest      ? quantize_range<Kind::largest, Rounding::nearest>
                   : stochastic ? quantize_range<Kind::largest, Rounding::stochastic>
                                : nullptr;
        default:
            return nullptr;
    }
}

#else

RangeKernel choose_nvfp4(const QuantSpec&) { return nullptr; }
RangeKernel choose_outer(const QuantSpec&) { return nullptr; }

#endif  // NIBBLE_HAS_LANES
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {
HWY_EXPORT(choose_nvfp4);
RangeKernel nvfp4_kernel(const QuantSpec& spec) { return HWY_DYNAMIC_DISPATCH(choose_nvfp4)(spec); }
HWY_EXPORT(choose_outer);
RangeKernel outer_kernel(const QuantSpec& spec) { return HWY_DYNAMIC_DISPATCH(choose_outer)(spec); }
}  // namespace nibble
#endif
