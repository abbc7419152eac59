// Formats with FP32 scales (numerics/fp32_scale.h), once the driver knows them: elements of any kind,
// multiplied by the encode scale and rounded.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/fp32_simd.cpp"
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

// The encode scales of the units of a step; 0: of zeros.
HWY_INLINE VF encode_of(const QuantizeJob& job, const Step& step) {
    if (job.row_encode == nullptr && job.unit_encode == nullptr) return f32(job.encode);
    alignas(64) float encode[kLanes] = {};
    if (job.unit_encode != nullptr) {
        for (int l = 0; l < step.count; ++l) encode[l] = job.unit_encode[step.unit + l * job.lane_stride];
        return hn::Load(F32(), encode);
    }
    const int64_t units = job.padded_cols / job.unit;  // of a row
    int64_t row = step.unit / units, unit = step.unit % units;
    for (int l = 0; l < step.count; ++l, unit += job.lane_stride) {
        for (; unit >= units; unit -= units) ++row;
        encode[l] = job.row_encode[row];
    }
    return hn::Load(F32(), encode);
}

template <nibble::Element kElement, Rounding kRounding>
uint32_t quantize_range(const QuantizeJob& job, int64_t begin, int64_t end) {
    constexpr int kBytes = kGroupBytes<kElement>;
    alignas(64) float tiles[kMaxUnit * kLanes];
    alignas(64) uint8_t packed[kMaxGroups * kLanes * kBytes];
    Step step;
    const int groups = job.unit / kGroup;
    VU largest = hn::Zero(U32());
    for (int64_t position = begin; position < end;) {
        position = step.load(job, position, end, tiles);
        const VF encode = encode_of(job, step);
        const auto is_zero = hn::Eq(encode, f32(0.0f));
        for (int g = 0; g < groups; ++g) {
            const float* tile = tiles + g * kGroup * kLanes;
            largest = hn::Max(largest, largest_bits<kGroup>(tile));
            encode_group<kElement, kRounding>(job, tile, encode, is_zero, step.unit * job.unit + g * kGroup,
                                              packed + g * kLanes * kBytes);
        }
        store_groups<kBytes>(packed, groups, step.count, job.lane_stride * groups * kBytes,
                             job.codes + step.unit * groups * kBytes);
    }
    return largest_lane(largest);
}

template <nibble::Element kElement>
RangeKernel of_rounding(Rounding round) {
    if (round == Rounding::nearest) return quantize_range<kElement, Rounding::nearest>;
    return round == Rounding::stochastic ? quantize_range<kElement, Rounding::stochastic> : nullptr;
}

}  // namespace

RangeKernel choose_fp32(const QuantSpec& spec) {
    switch (spec.element) {
        case nibble::Element::e2m1:
            return of_rounding<nibble::Element::e2m1>(spec.round);
        case nibble::Element::e4m3:
            return of_rounding<nibble::Element::e4m3>(spec.round);
        case nibble::Element::e5m2:
            return of_rounding<nibble::Element::e5m2>(spec.round);
        case nibble::Element::int4:
            return of_rounding<nibble::Element::int4>(spec.round);
        case nibble::Element::log4:
            return of_rounding<nibble::Element::log4>(spec.round);
    }
    return nullptr;
}

#else

RangeKernel choose_fp32(const QuantSpec&) { return nullptr; }

#endif  // NIBBLE_HAS_LANES
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {
HWY_EXPORT(choose_fp32);
RangeKernel fp32_kernel(const QuantSpec& spec) { return HWY_DYNAMIC_DISPATCH(choose_fp32)(spec); }
}  // namespace nibble
#endif
