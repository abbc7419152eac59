// The part of CUDA that nibble's .cu files use, for a simulated GPU: they are compiled as C++, threads of a
// block are fibers of one thread of the machine, blocks run one after another, streams at once.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <vector>

// ---- the language ----

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned of_x = 1, unsigned of_y = 1, unsigned of_z = 1) : x(of_x), y(of_y), z(of_z) {}
};
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

// ---- queues ----

namespace simulated_gpu {

using Work = std::function<void()>;
// Does the work, or takes it down where a recording is under way.
void queue(Work work);
struct Recording {
    std::vector<Work> work;
};
bool is_recording();
// What `work` queues, beside the recording that is under way.
Recording record(const Work& work);
void replay(const Recording& recording);

}  // namespace simulated_gpu

// ---- what the threads of a warp and of a block do together ----

namespace simulated_gpu {

// What each lane of the calling warp gave in this call; lanes that have ended gave nothing. All living lanes
// make the same call, or the simulation ends with a message.
struct Lanes {
    uint64_t values[32];
    uint32_t living;  // a bit for each lane
};
const Lanes& exchange(const char* call, uint64_t value);
int lane();

template <typename T>
uint64_t to_bits(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    if constexpr (sizeof(T) == 4) {
        return std::bit_cast<uint32_t>(value);
    } else {
        return std::bit_cast<uint64_t>(value);
    }
}
template <typename T>
T from_bits(uint64_t bits) {
    if constexpr (sizeof(T) == 4) {
        return std::bit_cast<T>(static_cast<uint32_t>(bits));
    } else {
        return std::bit_cast<T>(bits);
    }
}

// The value of lane `from` where it is in this lane's group of `width`, otherwise this lane's own.
template <typename T>
T shuffle(const char* call, T value, int from, int width) {
    const Lanes& lanes = exchange(call, to_bits(value));
    const bool is_inside = from >= 0 && from / width == lane() / width && (lanes.living >> from & 1u) != 0;
    return is_inside ? from_bits<T>(lanes.values[from]) : value;
}

}  // namespace simulated_gpu

void __syncthreads();
inline void __syncwarp() { simulated_gpu::exchange("__syncwarp", 0); }

template <typename T>
T __shfl_sync(unsigned, T value, int from, int width = 32) {
    const int first = simulated_gpu::lane() / width * width;
    return simulated_gpu::shuffle("__shfl_sync", value, first + (from & (width - 1)), width);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int distance, int width = 32) {
    return simulated_gpu::shuffle("__shfl_xor_sync", value, simulated_gpu::lane() ^ distance, width);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned distance, int width = 32) {
    return simulated_gpu::shuffle("__shfl_up_sync", value, simulated_gpu::lane() - static_cast<int>(distance),
                                  width);
}
inline unsigned __ballot_sync(unsigned, bool value) {
    const simulated_gpu::Lanes& lanes = simulated_gpu::exchange("__ballot_sync", value ? 1 : 0);
    unsigned result = 0;
    for (int i = 0; i < 32; ++i)
        if ((lanes.living >> i & 1u) != 0 && lanes.values[i] != 0) result |= 1u << i;
    return result;
}
inline bool __any_sync(unsigned, bool value) {
    const simulated_gpu::Lanes& lanes = simulated_gpu::exchange("__any_sync", value ? 1 : 0);
    bool result = false;
    for (int i = 0; i < 32; ++i) result = result || ((lanes.living >> i & 1u) != 0 && lanes.values[i] != 0);
    return result;
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
    const simulated_gpu::Lanes& lanes = simulated_gpu::exchange("__reduce_max_sync", value);
    for (int i = 0; i < 32; ++i)
        if ((lanes.living >> i & 1u) != 0) value = std::max(value, static_cast<unsigned>(lanes.values[i]));
    return value;
}

// One thread of the machine runs all of them.
template <typename T>
T atomicAdd(T* to, std::type_identity_t<T> value) {
    const T old = *to;
    *to = old + value;
    return old;
}
template <typename T>
T atomicMax(T* to, std::type_identity_t<T> value) {
    const T old = *to;
    *to = std::max(old, value);
    return old;
}

// ---- arithmetic ----

template <typename T>
T __ldg(const T* from) {
    return *from;
}
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
float __fmaf_ru(float a, float b, float c);
float __fadd_ru(float a, float b);
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = uint64_t{high} << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned pick = selector >> (4 * i) & 15u;
        unsigned byte = static_cast<unsigned>(bytes >> (8 * (pick & 7u))) & 255u;
        if ((pick & 8u) != 0) byte = (byte & 128u) != 0 ? 255u : 0u;  // its sign, everywhere
        result |= byte << (8 * i);
    }
    return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((uint64_t{high} << 32 | low) << (shift & 31u) >> 32);
}
inline unsigned __vmaxu4(unsigned a, unsigned b) {
    unsigned result = 0;
    for (int i = 0; i < 32; i += 8) result |= std::max(a >> i & 255u, b >> i & 255u) << i;
    return result;
}
inline int __viaddmax_s32(int a, int b, int c) {
    return std::max(static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)), c);
}

using std::isfinite;
using std::isnan;

template <typename A, typename B>
constexpr auto min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <typename A, typename B>
constexpr auto max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

// ---- the runtime ----

struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaError_t {
    cudaSuccess,
    cudaErrorMemoryAllocation,
    cudaErrorNoDevice,
    cudaErrorInsufficientDriver,
    cudaErrorNoKernelImageForDevice,
    cudaErrorInvalidDeviceFunction
};
enum cudaMemcpyKind {
    cudaMemcpyDefault,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrComputeCapabilityMinor,
    cudaDevAttrMaxSharedMemoryPerBlockOptin,
    cudaDevAttrL2CacheSize
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor, multiProcessorCount;
};
inline constexpr int CUDART_VERSION = 13000;
inline constexpr unsigned cudaHostAllocMapped = 1, cudaHostAllocPortable = 2;

const char* cudaGetErrorString(cudaError_t);
const char* cudaGetErrorName(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaDriverGetVersion(int*);
cudaError_t cudaRuntimeGetVersion(int*);
cudaError_t cudaGetDeviceCount(int*);
cudaError_t cudaGetDevice(int*);
cudaError_t cudaSetDevice(int);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp*, int);
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int);
cudaError_t cudaMemGetInfo(size_t* available, size_t* total);
cudaError_t cudaMalloc(void**, size_t);
cudaError_t cudaFree(void*);
cudaError_t cudaHostAlloc(void**, size_t, unsigned);
cudaError_t cudaFreeHost(void*);
cudaError_t cudaMemset(void*, int, size_t);
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t);
cudaError_t cudaMemcpy(void*, const void*, size_t, cudaMemcpyKind);
cudaError_t cudaMemcpyAsync(void*, const void*, size_t, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemcpy2DAsync(void*, size_t, const void*, size_t, size_t, size_t, cudaMemcpyKind,
                              cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamCreate(cudaStream_t*);
cudaError_t cudaStreamDestroy(cudaStream_t);
// A recording is a list of what was queued.
using cudaGraph_t = simulated_gpu::Recording*;
using cudaGraphExec_t = simulated_gpu::Recording*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);
struct cudaFuncAttributes {};
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
    return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
    return cudaSuccess;
}
