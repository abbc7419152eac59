// For .cu files: several neighbouring elements that are read or written at once.
#pragma once

#include <algorithm>

#include "core/cuda_check.cuh"

namespace nibble::cuda {

template <typename Element, int kCount>
struct alignas(std::min<size_t>(sizeof(Element) * kCount, 16)) Pack {
    Element v[kCount];
};

// Whether `count` elements of a row are read as packs: rows of `stride` elements from `data` on, all of
// them at multiples of 16 bytes, or of the pack if that is smaller.
template <typename Element, int kCount>
bool fits_packs(const void* data, int64_t stride) {
    return stride % kCount == 0 && reinterpret_cast<uintptr_t>(data) % alignof(Pack<Element, kCount>) == 0;
}

template <typename Element>
__device__ inline Element store_as(float x) {
    if constexpr (sizeof(Element) == sizeof(Bf16)) {
        return bf16_encode(x);
    } else {
        return x;
    }
}

// Blocks of a kernel whose threads walk over `pieces` in steps of the grid: enough to fill the GPU.
inline unsigned grid_for(int64_t pieces, int threads) {
    constexpr int64_t kMostBlocks = 132 * 8;
    return static_cast<unsigned>(std::clamp<int64_t>(divide_up<int64_t>(pieces, threads), 0, kMostBlocks));
}

// A kernel over [rows, cols]: rows of a block's y, columns of its x, both in steps of the grid.
inline const dim3 kRowsBlock(64, 4);
inline dim3 grid_of_rows(int64_t rows, int64_t cols) {
    return dim3(static_cast<unsigned>(std::min<int64_t>(divide_up<int64_t>(cols, kRowsBlock.x), 1024)),
                static_cast<unsigned>(std::min<int64_t>(divide_up<int64_t>(rows, kRowsBlock.y), 8192)));
}

}  // namespace nibble::cuda
