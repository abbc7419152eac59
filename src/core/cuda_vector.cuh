// For kernels over rows of F32 or BF16: accesses of 16 bytes, and sums whose order is fixed.
#pragma once

#include <type_traits>

#include "core/cuda_check.cuh"
#include "numerics/bf16.h"

namespace nibble::cuda {

// Elements in 16 bytes, the widest access of a thread.
template <typename Element>
inline constexpr int kPerAccess = 16 / static_cast<int>(sizeof(Element));

// `kWidth` neighbours as they lie in memory, aligned to their size together.
template <typename Element, int kWidth>
struct Piece;

template <int kWidth>
struct Piece<float, kWidth> {
    float values[kWidth];

    __device__ static Piece load(const float* p) {
        Piece piece;
        if constexpr (kWidth % 4 == 0) {
            for (int i = 0; i < kWidth; i += 4) {
                const float4 v = *reinterpret_cast<const float4*>(p + i);
                piece.values[i] = v.x;
                piece.values[i + 1] = v.y;
                piece.values[i + 2] = v.z;
                piece.values[i + 3] = v.w;
            }
        } else if constexpr (kWidth == 2) {
            const float2 v = *reinterpret_cast<const float2*>(p);
            piece.values[0] = v.x;
            piece.values[1] = v.y;
        } else {
            for (int i = 0; i < kWidth; ++i) piece.values[i] = p[i];
        }
        return piece;
    }
    __device__ void store(float* p) const {
        if constexpr (kWidth % 4 == 0) {
            for (int i = 0; i < kWidth; i += 4) {
                *reinterpret_cast<float4*>(p + i) =
                    make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
            }
        } else if constexpr (kWidth == 2) {
            *reinterpret_cast<float2*>(p) = make_float2(values[0], values[1]);
        } else {
            for (int i = 0; i < kWidth; ++i) p[i] = values[i];
        }
    }
    __device__ float operator[](int i) const { return values[i]; }
    __device__ static Piece of(const float (&from)[kWidth]) {
        Piece piece;
        for (int i = 0; i < kWidth; ++i) piece.values[i] = from[i];
        return piece;
    }
};

// Two neighbours share a word of 32 bits, the first in its low half.
template <int kWidth>
struct Piece<Bf16, kWidth> {
    static_assert(kWidth == 8 || kWidth == 4 || kWidth == 2 || kWidth == 1);
    uint32_t words[(kWidth + 1) / 2];

    __device__ static Piece load(const Bf16* p) {
        Piece piece;
        if constexpr (kWidth == 8) {
            const uint4 v = *reinterpret_cast<const uint4*>(p);
            piece.words[0] = v.x;
            piece.words[1] = v.y;
            piece.words[2] = v.z;
            piece.words[3] = v.w;
        } else if constexpr (kWidth == 4) {
            const uint2 v = *reinterpret_cast<const uint2*>(p);
            piece.words[0] = v.x;
            piece.words[1] = v.y;
        } else if constexpr (kWidth == 2) {
            piece.words[0] = *reinterpret_cast<const uint32_t*>(p);
        } else {
            piece.words[0] = p->bits;
        }
        return piece;
    }
    __device__ void store(Bf16* p) const {
        if constexpr (kWidth == 8) {
            *reinterpret_cast<uint4*>(p) = make_uint4(words[0], words[1], words[2], words[3]);
        } else if constexpr (kWidth == 4) {
            *reinterpret_cast<uint2*>(p) = make_uint2(words[0], words[1]);
        } else if constexpr (kWidth == 2) {
            *reinterpret_cast<uint32_t*>(p) = words[0];
        } else {
            p->bits = static_cast<uint16_t>(words[0]);
        }
    }
    __device__ float operator[](int i) const {
        return __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
    }
    // bf16_encode(), but for the payload of a NaN.
    __device__ static Piece of(const float (&from)[kWidth]) {
        Piece piece;
        for (int i = 0; i < kWidth; i += 2) {
            const float second = i + 1 < kWidth ? from[i + 1] : 0.0f;
            piece.words[i / 2] = bf16_pair(from[i], second);
        }
        return piece;
    }
};

// from[0 .. kWidth) <- what memory holds, widened; and back, rounded.
template <int kWidth, typename Element>
__device__ void load_floats(const Element* p, float (&to)[kWidth]) {
    const auto piece = Piece<Element, kWidth>::load(p);
    for (int i = 0; i < kWidth; ++i) to[i] = piece[i];
}
template <int kWidth, typename Element>
__device__ void store_floats(const float (&from)[kWidth], Element* p) {
    Piece<Element, kWidth>::of(from).store(p);
}

// The sum over the lanes of each group of `kLanes` neighbours, the same in all of them.
template <int kLanes = kWarp, typename Real>
__device__ Real lanes_sum(Real x) {
    for (int distance = kLanes / 2; distance > 0; distance /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}
template <int kLanes = kWarp>
__device__ inline float lanes_max(float x) {
    for (int distance = kLanes / 2; distance > 0; distance /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

// The sum over a block of whole warps, the same in all threads. `parts` is shared memory for the sums of
// the warps; two calls in a row need two of them.
template <typename Real>
__device__ Real block_sum(Real x, Real (&parts)[kWarp]) {
    x = lanes_sum(x);
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = x;
    __syncthreads();
    Real sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += parts[warp];
    return sum;
}

// *to <- max(*to, x) for x >= 0 of any number of threads: the order does not matter.
__device__ inline void raise_to(float* to, float x) {
    x = lanes_max(x);
    // Reading first spares most of the atomics.
    if (threadIdx.x % kWarp == 0 && x > *const_cast<volatile float*>(to))
        atomicMax(reinterpret_cast<unsigned*>(to), __float_as_uint(x));
}

// True if rows of `cols` elements can be accessed `width` at a time at all of these addresses.
template <typename Element>
bool fits_width(int width, int64_t cols, std::initializer_list<const Element*> rows) {
    if (cols % width != 0) return false;
    for (const Element* p : rows) {
        if (reinterpret_cast<uintptr_t>(p) % (static_cast<size_t>(width) * sizeof(Element)) != 0)
            return false;
    }
    return true;
}

template <int kValue>
using Constant = std::integral_constant<int, kValue>;
// Calls body(Constant<width>()): all of an access of 16 bytes where `wide`, else single elements.
template <typename Element, typename Body>
void with_width(bool wide, Body&& body) {
    if (wide) {
        body(Constant<kPerAccess<Element>>());
    } else {
        body(Constant<1>());
    }
}

// Of the GPU in use.
inline int multiprocessors() {
    static const int count = [] {
        int device = 0, value = 0;
        check(cudaGetDevice(&device), "the GPU in use");
        check(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device), "size of the GPU");
        return value;
    }();
    return count;
}

// Blocks for `work` blocks' worth of work that strides over the grid: at most what is resident with `threads`
// threads each, at three quarters of the occupancy.
inline unsigned resident_blocks(int64_t work, int threads) {
    return static_cast<unsigned>(std::min<int64_t>(work, int64_t{multiprocessors()} * (1536 / threads)));
}

}  // namespace nibble::cuda
