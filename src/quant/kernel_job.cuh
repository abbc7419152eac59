// What a quantiser on a GPU is asked for, and what its threads hold: one thread has 16 consecutive columns of
// a row, a group. For .cu files of this room.
#pragma once

#include "quant/tiles.cuh"

namespace nibble::cuda {

// What a tensor's passes share in memory of the GPU; zero at first.
struct Scalars {
    uint32_t amax = 0;     // bits of the largest magnitude after rotation
    uint32_t posthoc = 0;  // bits of the largest wide scale
    uint32_t fault = 0;    // not 0: a value that is not finite was met
};

// A spec as kernels read it.
struct KernelSpec {
    Format format;
    Element element;
    ScaleRule scale;
    Rounding round;
    Correction correct;
    ScaleRounding scale_round;
    TensorScale tensor;
    int block_cols, block_rows;  // of a scale; blocks of rows and tensors: 16 and 1
    bool is_row, outer, out_bf16, mask, emulation;
    int rotation, rounds;

    friend bool operator==(const KernelSpec&, const KernelSpec&) = default;
};

struct Job {
    KernelSpec spec;
    Nvfp4Rule rule;
    float mult;
    RandomKey key;
    uint32_t signs[2][kMaxRotation / 32];
    float factor, amax_factor;  // of the rotation: as it is quantised, as its amax is taken

    const void* x;
    bool is_bf16;
    bool is_vector;              // rows of x begin at multiples of 16 bytes
    int64_t rows, cols, stride;  // of the operand; `stride` elements between rows of x as it is stored
    int steps;                   // tiles of a thread block
    int64_t padded_cols;

    uint8_t *codes, *scales, *mask;  // codes and scales: null where bytes are not wanted
    Bf16* operand;                   // code * scale; null where that is not wanted
    float *fp32_scales, *tensor_scale;
    Bf16* wide;                  // tensor=posthoc: a wide scale for each group
    const float* scale;          // QuantizeOptions::scale
    const float* amax;           // of the tensor
    const float* previous_amax;  // of the step before: taken instead, where there is one that is not 0
    Scalars* scalars;
    uint32_t* fault;  // raised where a value is not finite
};

// The spec of a kernel for all specs.
struct AnySpec {
    static constexpr int kBlocks = 1;  // at least so many of a multiprocessor
    static __device__ const KernelSpec& of(const Job& job) { return job.spec; }
};

// The columns of one thread.
struct Group {
    int64_t row, col;
    float x[kGroup];
};

__device__ inline float max_of(const float (&x)[kGroup]) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) largest = fmaxf(largest, fabsf(x[i]));
    return largest;
}

// Bits of the largest magnitude: a NaN is larger than all numbers.
__device__ inline uint32_t bits_of_largest(const float (&x)[kGroup]) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) largest = max(largest, __float_as_uint(x[i]) & 0x7fffffffu);
    return largest;
}

// Over the threads whose columns make a block of `cols`, or a rotation block.
__device__ inline float max_of_threads(float value, int cols) {
    for (int lane = 1; lane < cols / kGroup; lane *= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lane));
    }
    return value;
}
// Goes on with a binary tree of neighbours where tree_sum() over 16 ended.
__device__ inline float sum_of_threads(float value, int cols) {
    for (int lane = 1; lane < cols / kGroup; lane *= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, lane);
    }
    return value;
}

__device__ inline float tree_sum_of_group(const float (&x)[kGroup]) {
    float sums[kGroup / 2];
#pragma unroll
    for (int i = 0; i < kGroup / 2; ++i) sums[i] = x[2 * i] + x[2 * i + 1];
#pragma unroll
    for (int count = kGroup / 4; count > 0; count /= 2) {
#pragma unroll
        for (int i = 0; i < count; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
    }
    return sums[0];
}

// --- values that the rows of a square block share ---

// One float of each thread, laid out as the threads are: [kRows][8].
template <int kRows>
struct PerThread {
    float of[kRows][kGroups];

    // Called by all threads: the largest `mine` of the columns and rows of the thread's block. The first two
    // dimensions of the block are at most 128.
    __device__ float max_of_block(float mine, const KernelSpec& s) {
        mine = max_of_threads(mine, s.block_cols);
        if (s.block_rows == 1) return mine;
        const int row = static_cast<int>(threadIdx.x) / kGroups;
        const int group = static_cast<int>(threadIdx.x) % kGroups;
        __syncthreads();
        of[row][group] = mine;
        __syncthreads();
        const int first = row / s.block_rows * s.block_rows;
        for (int r = first; r < first + s.block_rows; ++r) mine = fmaxf(mine, of[r][group]);
        return mine;
    }

    // Called by all threads: the error of the thread's block of 16 x 16 from those of its rows, by a binary
    // tree, r with r + 8, + 4, + 2, + 1.
    __device__ float error_of_block(float mine, const KernelSpec& s) {
        if (s.block_rows == 1) return mine;
        const int row = static_cast<int>(threadIdx.x) / kGroups;
        const int group = static_cast<int>(threadIdx.x) % kGroups;
        __syncthreads();
        of[row][group] = mine;
        __syncthreads();
        float rows[kNvfp4Group];
#pragma unroll
        for (int r = 0; r < kNvfp4Group; ++r) rows[r] = of[row / kNvfp4Group * kNvfp4Group + r][group];
#pragma unroll
        for (int half = kNvfp4Group / 2; half > 0; half /= 2) {
#pragma unroll
            for (int r = 0; r < half; ++r) {
                rows[r] = s.scale == ScaleRule::four_six_amax ? fmaxf(rows[r], rows[r + half])
                                                              : rows[r] + rows[r + half];
            }
        }
        return rows[0];
    }
};

}  // namespace nibble::cuda
