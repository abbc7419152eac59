// The largest magnitude of a tensor: of the values as they are, or after the rotation of a spec.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/amax_simd.cpp"
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

// T: uint32_t for F32, uint16_t for BF16; their magnitudes are ordered as their bits.
template <typename T>
T largest_of(const T* x, int64_t count) {
    const hn::ScalableTag<T> d;
    constexpr int kStep = static_cast<int>(HWY_LANES(T));
    constexpr T kSign = static_cast<T>(T{1} << (8 * sizeof(T) - 1));
    const auto sign = hn::Set(d, kSign);
    auto a = hn::Zero(d), b = a, c = a, e = a;
    int64_t i = 0;
    for (; i + 4 * kStep <= count; i += 4 * kStep) {
        a = hn::Max(a, hn::AndNot(sign, hn::LoadU(d, x + i)));
        b = hn::Max(b, hn::AndNot(sign, hn::LoadU(d, x + i + kStep)));
        c = hn::Max(c, hn::AndNot(sign, hn::LoadU(d, x + i + 2 * kStep)));
        e = hn::Max(e, hn::AndNot(sign, hn::LoadU(d, x + i + 3 * kStep)));
    }
    T largest = hn::GetLane(hn::MaxOfLanes(d, hn::Max(hn::Max(a, b), hn::Max(c, e))));
    for (; i < count; ++i) largest = std::max(largest, static_cast<T>(x[i] & ~kSign));
    return largest;
}

// A range of the rows of x as they are stored.
uint32_t plain_amax(const QuantizeJob& job, int64_t begin, int64_t end) {
    const int64_t length = job.transposed ? job.rows : job.cols;
    const bool is_contiguous = length == job.stride;
    const int64_t runs = is_contiguous ? 1 : end - begin,
                  count = is_contiguous ? (end - begin) * length : length;
    uint32_t largest = 0;
    for (int64_t run = begin; run < begin + runs; ++run) {
        const int64_t first = run * job.stride;
        if (job.is_bf16) {
            const uint32_t bits = largest_of(static_cast<const uint16_t*>(job.x) + first, count);
            largest = std::max(largest, bits << 16);
        } else {
            largest = std::max(largest, largest_of(static_cast<const uint32_t*>(job.x) + first, count));
        }
    }
    return largest;
}

uint32_t rotated_amax(const QuantizeJob& job, int64_t begin, int64_t end) {
    alignas(64) float tile[kMaxUnit * kLanes];
    Step step;
    VU largest = hn::Zero(U32());
    for (int64_t position = begin; position < end;) {
        position = step.load(job, position, end, tile);
        for (int k = 0; k < job.unit; k += 16) {
            largest = hn::Max(largest, largest_bits<16>(tile + k * kLanes));
        }
    }
    return largest_lane(largest);
}

}  // namespace

RangeKernel choose_amax(bool rotates) { return rotates ? rotated_amax : plain_amax; }

#else

RangeKernel choose_amax(bool) { return nullptr; }

#endif  // NIBBLE_HAS_LANES
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {
HWY_EXPORT(choose_amax);
RangeKernel amax_kernel(bool rotates) { return HWY_DYNAMIC_DISPATCH(choose_amax)(rotates); }
}  // namespace nibble
#endif
