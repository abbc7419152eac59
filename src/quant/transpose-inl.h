// The transpose of one block of a matrix of 2- or 4-byte elements. Compiled once for each instruction set.
#if defined(NIBBLE_QUANT_TRANSPOSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_QUANT_TRANSPOSE_INL_H_
#undef NIBBLE_QUANT_TRANSPOSE_INL_H_
#else
#define NIBBLE_QUANT_TRANSPOSE_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "quant/lanes-inl.h"

#if NIBBLE_HAS_LANES
HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

// A block's rows fill a vector of the output; its columns are 64 bytes of the input.
template <typename T>
inline constexpr int kBlockRows = kLanes * 4 / static_cast<int>(sizeof(T));
template <typename T>
inline constexpr int kBlockCols = 64 / static_cast<int>(sizeof(T));

HWY_INLINE void transpose_whole_block(const uint32_t* from, int64_t from_stride, uint32_t* to,
                                      int64_t to_stride) {
    for (int q = 0; q < 16; q += 4) {
        VF v[4];
        load_transposed(from + q, from_stride, v);
        for (int j = 0; j < 4; ++j) hn::StoreU(bits_of(v[j]), U32(), to + (q + j) * to_stride);
    }
}

// Two columns travel as one 32-bit element; even and odd rows are put together again at the end.
HWY_INLINE void transpose_whole_block(const uint16_t* from, int64_t from_stride, uint16_t* to,
                                      int64_t to_stride) {
    const hn::Repartition<uint16_t, U32> d16;
    const VU low = u32(0xffffu);
    for (int q = 0; q < 16; q += 4) {
        VF even[4], odd[4];
        load_transposed(from + 2 * q, 2 * from_stride, even);
        load_transposed(from + 2 * q + from_stride, 2 * from_stride, odd);
        for (int j = 0; j < 4; ++j) {
            const VU a = bits_of(even[j]), b = bits_of(odd[j]);
            uint16_t* column = to + 2 * (q + j) * to_stride;
            hn::StoreU(hn::BitCast(d16, hn::OrAnd(hn::ShiftLeft<16>(b), a, low)), d16, column);
            hn::StoreU(hn::BitCast(d16, hn::Or(hn::ShiftRight<16>(a), hn::AndNot(low, b))), d16,
                       column + to_stride);
        }
    }
}

// `rows` x `cols`, at most a block, to `cols` x `rows`.
template <typename T>
HWY_INLINE void transpose_block(const T* from, int64_t from_stride, int64_t rows, int64_t cols, T* to,
                                int64_t to_stride) {
    constexpr int kRows = kBlockRows<T>, kCols = kBlockCols<T>;
    if (rows == kRows && cols == kCols) {
        transpose_whole_block(from, from_stride, to, to_stride);
        return;
    }
    alignas(64) T in[kRows * kCols] = {}, out[kRows * kCols];
    for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(in + r * kCols, from + r * from_stride, static_cast<size_t>(cols) * sizeof(T));
    }
    transpose_whole_block(in, kCols, out, kRows);
    for (int64_t c = 0; c < cols; ++c) {
        std::memcpy(to + c * to_stride, out + c * kRows, static_cast<size_t>(rows) * sizeof(T));
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();
#endif  // NIBBLE_HAS_LANES

#endif  // NIBBLE_QUANT_TRANSPOSE_INL_H_
