// What a quantiser on a GPU is asked for, and what its threads hold: one thread has 16 consecutive columns of
// a row, a group. For .cu files of this room.
#pragma once

#include "quant/tiles.cuh"

namespace nibble::cuda {

// What a tensor's passes share in memory of the GPU: begin_pass() makes it.
struct Scalars {
    uint32_t amax;                         // bits of the largest magnitude after rotation
    uint32_t posthoc;                      // bits of the largest wide scale
    uint32_t fault;                        // not 0: a value that is not finite was met
    uint2 counter;                         // the last two words of the counters of coins
    uint32_t signs[2][kMaxRotation / 32];  // of the rounds of the rotation
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
    int rotation_of_rows;  // the size of one along the other dimension: quantize_both_any.cu

    friend bool operator==(const KernelSpec&, const KernelSpec&) = default;
};

// Draws of coins: the key of each of Philox's ten rounds, which adds a constant to that before, is made once.
struct CoinSource {
    uint32_t keys[10][2];
    const uint2* counter;  // Scalars::counter

    explicit CoinSource(const RandomKey& key) {
        for (uint32_t i = 0; i < 10; ++i) {
            keys[i][0] = static_cast<uint32_t>(key.seed) + i * 0x9e3779b9u;
            keys[i][1] = static_cast<uint32_t>(key.seed >> 32) + i * 0xbb67ae85u;
        }
    }
    CoinSource() = default;

    __device__ __forceinline__ Philox of_elements(uint64_t i) const { return draw(Purpose::elements, i); }
    __device__ __forceinline__ Philox of_scales(uint64_t i) const { return draw(Purpose::scales, i); }

  private:
    // philox_draw()
    __device__ __forceinline__ Philox draw(Purpose purpose, uint64_t i) const {
        const uint2 fixed = __ldg(counter);
        uint32_t c0 = static_cast<uint32_t>(i), c2 = fixed.x, c3 = fixed.y;
        uint32_t c1 = (static_cast<uint32_t>(i >> 32) & 0xffffffu) | static_cast<uint32_t>(purpose) << 24;
#pragma unroll
        for (int round = 0; round < 10; ++round) {
            const uint64_t p0 = uint64_t{0xd2511f53u} * c0, p1 = uint64_t{0xcd9e8d57u} * c2;
            c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ keys[round][0];
            c1 = static_cast<uint32_t>(p1);
            c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ keys[round][1];
            c3 = static_cast<uint32_t>(p0);
        }
        return {{c0, c1, c2, c3}};
    }
};

// The forward's bytes, where x is the transpose of what they are worth (requantize_transposed()).
struct ForwardBytes {
    const uint8_t *codes, *scales;
    int block_shift;  // log2 of the columns of a scale
    bool is_e8m0;
};

struct Job {
    KernelSpec spec;
    Nvfp4Rule rule;
    float mult;
    CoinSource coins;
    float factor, amax_factor;  // of the rotation: as it is quantised, as its amax is taken

    const void* x;  // or, if that is null:
    ForwardBytes forward;
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

    // Of 32 places of the rotation blocks.
    __device__ __forceinline__ uint32_t signs(int round, int word) const {
        return __ldg(&scalars->signs[round][word]);
    }
};

// The columns of one thread.
struct Group {
    int64_t row, col;
    float x[kGroup];
};

// The largest magnitude; NaN if one of them is.
__device__ inline float max_of(const float (&x)[kGroup]) {
    float largest = fabsf(x[0]);
#pragma unroll
    for (int i = 1; i < kGroup; ++i) largest = max_or_nan(largest, fabsf(x[i]));
    return largest;
}
// Its bits: they are ordered as the numbers, a NaN is larger than all.
__device__ inline uint32_t bits_of_largest(const float (&x)[kGroup]) { return __float_as_uint(max_of(x)); }

// e4m3_decode(): the bits of E4M3 are those of an FP32 number 2^120 times smaller.
__device__ inline float scale_value(uint32_t byte) { return __uint_as_float(byte << 20) * 0x1p120f; }

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
    float of_taller_block;  // the largest of a block with more rows than that, which the caller found

    // Called by all threads: the largest `mine` of the columns and rows of the thread's block. The first two
    // dimensions of the block are at most 128.
    __device__ float max_of_block(float mine, const KernelSpec& s) {
        if (s.block_rows > kRows) return of_taller_block;
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
