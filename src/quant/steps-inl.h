// A range of units, kLanes at a time: reading, zero-padding and converting the input, and writing the packed
// output of one step. Compiled once for each instruction set.
#if defined(NIBBLE_QUANT_STEPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_QUANT_STEPS_INL_H_
#undef NIBBLE_QUANT_STEPS_INL_H_
#else
#define NIBBLE_QUANT_STEPS_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "quant/lanes-inl.h"

#if NIBBLE_HAS_LANES
HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

// `count` values to F32.
HWY_INLINE void copy_values(const void* x, bool is_bf16, int64_t first, int64_t count, float* to) {
    if (!is_bf16) {
        std::memcpy(to, static_cast<const float*>(x) + first, static_cast<size_t>(count) * sizeof(float));
        return;
    }
    const F32 d;
    const hn::Rebind<uint16_t, F32> half;
    const uint16_t* from = static_cast<const uint16_t*>(x) + first;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        hn::StoreU(float_of(hn::ShiftLeft<16>(hn::PromoteTo(U32(), hn::LoadU(half, from + i)))), d, to + i);
    }
    for (; i < count; ++i) to[i] = std::bit_cast<float>(static_cast<uint32_t>(from[i]) << 16);
}

// The elements of units first .. first + count - 1, one unit after the other; zeros up to kLanes units.
// `buffer` has room for them, for where they do not lie so in memory.
HWY_NOINLINE inline const float* input_of_step(const QuantizeJob& job, int64_t first, int count,
                                               float* buffer) {
    const int64_t begin = first * job.unit, end = begin + int64_t{count} * job.unit;
    if (job.cols == job.padded_cols) {
        if (!job.is_bf16 && count == kLanes) return static_cast<const float*>(job.x) + begin;
        copy_values(job.x, job.is_bf16, begin, end - begin, buffer);
    } else {
        int64_t row = begin / job.padded_cols, col = begin % job.padded_cols;
        for (int64_t i = begin; i < end;) {
            const int64_t run = std::min(end - i, job.padded_cols - col);  // in this row
            const int64_t real = std::clamp<int64_t>(job.cols - col, 0, run);
            float* to = buffer + (i - begin);
            if (real > 0) copy_values(job.x, job.is_bf16, row * job.cols + col, real, to);
            std::fill(to + real, to + run, 0.0f);
            i += run;
            ++row;
            col = 0;
        }
    }
    std::fill(buffer + (end - begin), buffer + int64_t{kLanes} * job.unit, 0.0f);
    return buffer;
}

// One step: the tile of its units.
struct Step {
    int64_t unit = 0;  // of lane 0
    int count = 0;     // units that exist
    alignas(64) float tile[kMaxUnit * kLanes];

    HWY_INLINE void load(const QuantizeJob& job, int64_t first, int64_t end) {
        alignas(64) float buffer[kMaxUnit * kLanes];
        unit = first;
        count = static_cast<int>(std::min<int64_t>(kLanes, end - first));
        load_tile(job, input_of_step(job, first, count, buffer), tile);
    }
};

// `size` bytes of each group of each lane, [groups][kLanes][size], to the order of memory: units, then
// groups.
template <int kSize>
HWY_INLINE void store_groups(const uint8_t* from, int groups, int count, uint8_t* to) {
    if (groups == 1) {
        std::memcpy(to, from, static_cast<size_t>(count * kSize));
        return;
    }
    for (int l = 0; l < count; ++l) {
        for (int g = 0; g < groups; ++g) {
            std::memcpy(to + (l * groups + g) * kSize, from + (g * kLanes + l) * kSize, kSize);
        }
    }
}

HWY_INLINE void store_bytes(VU bytes, uint8_t* to) {
    const hn::Rebind<uint8_t, U32> d;
    hn::StoreU(hn::TruncateTo(d, bytes), d, to);
}

HWY_INLINE uint32_t largest_lane(VU v) { return hn::GetLane(hn::MaxOfLanes(U32(), v)); }

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();
#endif  // NIBBLE_HAS_LANES

#endif  // NIBBLE_QUANT_STEPS_INL_H_
