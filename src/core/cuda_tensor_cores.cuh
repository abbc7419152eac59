// Tensor cores, and what feeds them: instructions that have no function (sm_80 and newer).
// tests/simulated_gpu has its own form of this file.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::cuda {

// 4 or 16 bytes to shared memory, or zeros; the thread goes on at once.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* from, bool is_there) {
    const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int count = is_there ? kBytes : 0;
    if constexpr (kBytes == 16)  // past the first cache
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(count)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(to), "l"(from), "r"(count),
                     "n"(kBytes)
                     : "memory");
}
// Ends a group of this thread's copies; waits until at most kGroups of them are not done.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroups>
__device__ __forceinline__ void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Four matrices of 8 x 8 numbers of 16 bits from shared memory. Lane l gives the place of line l % 8 of
// matrix l / 8; to[i] <- the numbers 2 (l % 4) and the next, of line l / 4 of matrix i.
__device__ __forceinline__ void load_matrices(const void* line, uint32_t (&to)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(line)))
                 : "memory");
}

// c[16, 8] += a[16, 16] · b[8, 16]ᵀ, BF16 in FP32, by a warp. Of lane l, row l / 4 and column 2 (l % 4): a
// has the numbers there and in the next column, those 8 rows down, 8 columns on, and both; b those of row l /
// 4 and 8 columns on; c those there, in the next column, and both 8 rows down.
__device__ __forceinline__ void multiply_add(const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// --- Hopper's, which read shared memory themselves ---
// Only in code for sm_90a; elsewhere these do nothing, and are not to be called.

// Where a tile lies whose lines have 64 numbers of 16 bits, 128 bytes, from a multiple of 1024 bytes on,
// chunks of 16 bytes of line l interchanged: chunk c at c ^ l % 8. `line`: the first one, a multiple of 8.
__device__ __forceinline__ uint64_t tile_descriptor(const void* line) {
    const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(line));
    constexpr uint64_t kBytesOfEightLines = 1024, kInterchanged = 1;
    return (at & 0x3ffffu) >> 4 | 1ull << 16 | kBytesOfEightLines >> 4 << 32 | kInterchanged << 62;
}
// Before products: what this thread wrote to shared memory is seen by them.
__device__ __forceinline__ void show_shared_to_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// Products of a warp group, four warps, are queued between the first two; the third waits for all.
__device__ __forceinline__ void begin_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void commit_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void await_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}
// d[64, 128] = a[64, 16] · b[128, 16]ᵀ, or added to it, BF16 in FP32. a, b: tile_descriptor(), and 2 more for
// each 16 columns. Warp w of the group has rows 16 w on, and of these a lane what it has in multiply_add(),
// four numbers of each of the 16 pieces of eight columns.
__device__ __forceinline__ void queue_product(uint64_t a, uint64_t b, bool adds, float (&d)[64]) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm volatile(
        "{.reg .pred adds; setp.ne.b32 adds, %66, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, "
        "%8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, "
        "%24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, "
        "%56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, adds, 1, 1, 0, 0;}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
          "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),
          "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),
          "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
          "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),
          "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),
          "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
          "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "l"(a), "l"(b), "r"(static_cast<int>(adds)));
#endif
}

}  // namespace nibble::cuda
