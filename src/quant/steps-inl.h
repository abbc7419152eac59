// A range of units, kLanes at a time: reading them from any kind of input, and writing the packed output of
// one step. Compiled once for each instruction set.
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

// Units that lie in memory as they are quantised, `stride` elements apart.
template <typename T>
struct LoadRows {
    const T* x;
    int64_t stride;

    HWY_INLINE void operator()(int k, VF (&v)[16]) const {
        if constexpr (sizeof(T) == sizeof(float)) {
            load_transposed(x + k, stride, v);
        } else {  // two elements travel together
            VF pairs[8];
            load_transposed(x + k, stride, pairs);
#pragma GCC unroll 8
            for (int j = 0; j < 8; ++j) {
                const VU bits = bits_of(pairs[j]);
                v[2 * j] = float_of(hn::ShiftLeft<16>(bits));
                v[2 * j + 1] = float_of(hn::And(bits, u32(0xffff0000u)));
            }
        }
    }
};

// Units that are columns of memory: element k of unit l is x[k * stride + l].
template <typename T>
struct LoadColumns {
    const T* x;
    int64_t stride;

    HWY_INLINE void operator()(int k, VF (&v)[16]) const {
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) {
            const T* row = x + (k + j) * stride;
            if constexpr (sizeof(T) == sizeof(float)) {
                v[j] = hn::LoadU(F32(), row);
            } else {
                const hn::Rebind<uint16_t, F32> half;
                v[j] = float_of(hn::ShiftLeft<16>(hn::PromoteTo(U32(), hn::LoadU(half, row))));
            }
        }
    }
};

// Up to kLanes units at a time.
struct Step {
    int64_t unit = 0;  // of lane 0, counted over [rows, units of a row]; the others are job.lane_stride apart
    int count = 0;     // units that exist

    // Reads the tile of the units at `position` of the range that ends at `end`, and gives the next position.
    // Units are passed row after row; where memory holds the transpose, column of units after column of
    // units.
    HWY_INLINE int64_t load(const QuantizeJob& job, int64_t position, int64_t end, float* tile) {
        if (job.is_bf16) return load_as<uint16_t>(job, position, end, tile);
        return load_as<float>(job, position, end, tile);
    }

  private:
    template <typename T>
    HWY_INLINE int64_t load_as(const QuantizeJob& job, int64_t position, int64_t end, float* tile) {
        count = static_cast<int>(std::min<int64_t>(kLanes, end - position));
        const T* x = static_cast<const T*>(job.x);
        if (job.transposed) {
            const int64_t row = position % job.rows, col = position / job.rows * job.unit;
            count = static_cast<int>(std::min<int64_t>(count, job.rows - row));
            unit = row * job.lane_stride + position / job.rows;
            x += col * job.stride + row;
            if (count == kLanes && col + job.unit <= job.cols) {
                load_tile(job, LoadColumns<T>{x, job.stride}, tile);
            } else {
                load_part_of_columns(job, x, std::clamp<int64_t>(job.cols - col, 0, job.unit), tile);
            }
        } else {
            unit = position;
            if (count == kLanes && job.cols == job.padded_cols) {
                load_tile(job, LoadRows<T>{x + position * job.unit, job.unit}, tile);
            } else {
                load_part_of_rows(job, x, tile);
            }
        }
        return position + count;
    }

    static HWY_INLINE float value_of(float x) { return x; }
    static HWY_INLINE float value_of(uint16_t x) {
        return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
    }

    // The same where lanes or columns are missing: they are zero.
    template <typename T>
    HWY_NOINLINE void load_part_of_rows(const QuantizeJob& job, const T* x, float* tile) {
        alignas(64) float buffer[kMaxUnit * kLanes] = {};
        int64_t row = unit * job.unit / job.padded_cols, col = unit * job.unit % job.padded_cols;
        for (int i = 0; i < count * job.unit; ++i) {
            if (col < job.cols) buffer[i] = value_of(x[row * job.cols + col]);
            if (++col == job.padded_cols) ++row, col = 0;
        }
        load_tile(job, LoadRows<float>{buffer, job.unit}, tile);
    }
    template <typename T>
    HWY_NOINLINE void load_part_of_columns(const QuantizeJob& job, const T* x, int64_t elements,
                                           float* tile) {
        alignas(64) float buffer[kMaxUnit * kLanes] = {};
        for (int64_t k = 0; k < elements; ++k) {
            for (int l = 0; l < count; ++l) buffer[k * kLanes + l] = value_of(x[k * job.stride + l]);
        }
        load_tile(job, LoadColumns<float>{buffer, kLanes}, tile);
    }
};

// `size` bytes of each group of each lane, [groups][kLanes][size], to `to`: the groups of a lane are
// neighbours, lanes are `stride` bytes apart.
template <int kSize>
HWY_INLINE void store_groups(const uint8_t* from, int groups, int count, int64_t stride, uint8_t* to) {
    if (stride == kSize) {
        std::memcpy(to, from, static_cast<size_t>(count * kSize));
        return;
    }
    for (int l = 0; l < count; ++l) {
        for (int g = 0; g < groups; ++g) {
            std::memcpy(to + l * stride + g * kSize, from + (g * kLanes + l) * kSize, kSize);
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
