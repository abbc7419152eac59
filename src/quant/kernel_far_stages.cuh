// The rotation of blocks of 128 by a warp: a thread has 16 neighbours, so the first four stages are its own;
// for the last three the eight threads of a block exchange elements through shared memory. That takes less
// instructions than a shuffle for each element and stage.
#pragma once

#include "quant/kernel_stream.cuh"

namespace nibble::cuda {

// The largest magnitude after the last stage: of a + b and a - b the larger one is |a| + |b|, which rounds
// as it does. NaN if one of them is; infinity where the stage would have made a NaN of infinities.
template <int kCount>
__device__ __forceinline__ float max_after_last_stage(const float (&x)[kCount]) {
    float largest = fabsf(x[0]) + fabsf(x[kCount / 2]);
#pragma unroll
    for (int i = 1; i < kCount / 2; ++i)
        largest = max_or_nan(largest, fabsf(x[i]) + fabsf(x[i + kCount / 2]));
    return largest;
}

// Shared memory in which threads exchange elements: lines of 16, one for each thread, the eight of a rotation
// block side by side. Pitches keep 16 bytes of all lines and 8 bytes of a line in different banks.
class FarStages {
    static constexpr int kLine = kGroup + 4, kBlock = kGroups * kLine + 16;

  public:
    static constexpr size_t kBytes = sizeof(float) * kBlock * (kStreamThreads / kGroups);

    __device__ explicit FarStages(void* shared)
        : block_(static_cast<float*>(shared) + static_cast<int>(threadIdx.x) / kGroups * kBlock),
          mine_(block_ + thread() * kLine),
          across_(block_ + thread() * 2) {}

    // All stages of the block of which this thread has x. Called by all threads of a warp.
    __device__ __forceinline__ void transform(float (&x)[kGroup]) const {
        stages<1, kGroup>(x);
        write_mine(x);
        float of[2][kGroups];
        read_across(of);
        stages<1, kGroups>(of[0]);
        stages<1, kGroups>(of[1]);
#pragma unroll
        for (int k = 0; k < kGroups; ++k)
            *reinterpret_cast<float2*>(across_ + k * kLine) = {of[0][k], of[1][k]};
        __syncwarp();
#pragma unroll
        for (int i = 0; i < kGroup; i += 4) {
            const float4 four = *reinterpret_cast<const float4*>(mine_ + i);
            x[i] = four.x;
            x[i + 1] = four.y;
            x[i + 2] = four.z;
            x[i + 3] = four.w;
        }
    }
    // The largest magnitude after them, of the elements that this thread comes to have.
    __device__ __forceinline__ float max_after(float (&x)[kGroup]) const {
        stages<1, kGroup>(x);
        __syncwarp();  // all have read what was there before
        write_mine(x);
        float of[2][kGroups];
        read_across(of);
        stages<1, kGroups / 2>(of[0]);
        stages<1, kGroups / 2>(of[1]);
        return max_or_nan(max_after_last_stage(of[0]), max_after_last_stage(of[1]));
    }

  private:
    static __device__ int thread() { return static_cast<int>(threadIdx.x) % kGroups; }

    // The line of a thread: in transform(), nobody else reads it from its write until the next.
    __device__ __forceinline__ void write_mine(const float (&x)[kGroup]) const {
#pragma unroll
        for (int i = 0; i < kGroup; i += 4)
            *reinterpret_cast<float4*>(mine_ + i) = {x[i], x[i + 1], x[i + 2], x[i + 3]};
        __syncwarp();
    }
    // Two places of all lines.
    __device__ __forceinline__ void read_across(float (&of)[2][kGroups]) const {
#pragma unroll
        for (int k = 0; k < kGroups; ++k) {
            const float2 two = *reinterpret_cast<const float2*>(across_ + k * kLine);
            of[0][k] = two.x;
            of[1][k] = two.y;
        }
    }

    float* const block_;
    float *const mine_, *const across_;
};

}  // namespace nibble::cuda
