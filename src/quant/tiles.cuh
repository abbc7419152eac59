// What the kernels of this room share: a thread holds 16 consecutive columns of a row, a group. Eight threads
// side by side have 128 columns, the largest rotation block. For .cu files of this room.
#pragma once

#include "core/cuda_check.cuh"
#include "quant/internal.h"

namespace nibble::cuda {

inline constexpr int kGroup = 16;      // columns of a thread
inline constexpr int kTileCols = 128;  // columns of a thread block
inline constexpr int kGroups = kTileCols / kGroup;

// A tile of 128 columns of an operand that is stored transposed, [128, kRows], in shared memory: a thread's
// group is a part of one of its columns. Skewed, so that a warp meets no bank twice.
template <typename T, int kRows>
struct TransposedTile {
    static constexpr int kPitch = kRows + (sizeof(T) == 2 ? 2 : 1);
    static constexpr int kSkew = 4;
    static constexpr int kCount = kTileCols * kPitch + kGroups * kSkew;

    static __device__ int at(int k, int r) { return k * kPitch + k / kGroup * kSkew + r; }

    static __device__ void read(const T* tile, int group, int r, float (&x)[kGroup]) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) x[i] = to_float(tile[at(group * kGroup + i, r)]);
    }
};

}  // namespace nibble::cuda
