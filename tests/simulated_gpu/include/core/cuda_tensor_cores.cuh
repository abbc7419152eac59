// The simulated GPU's form of src/core/cuda_tensor_cores.cuh, without Hopper's products of warp groups.
#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <cstring>

namespace nibble::cuda {

template <int kBytes>
void copy_async(void* shared, const void* from, bool is_there) {
    is_there ? std::memcpy(shared, from, kBytes) : std::memset(shared, 0, kBytes);
}
inline void commit_copies() {}
template <int kGroups>
void await_copies() {}

inline void load_matrices(const void* line, uint32_t (&to)[4]) {
    const simulated_gpu::Lanes& lines = simulated_gpu::exchange("ldmatrix", reinterpret_cast<uint64_t>(line));
    const int lane = simulated_gpu::lane();
    for (int i = 0; i < 4; ++i)
        to[i] = reinterpret_cast<const uint32_t*>(lines.values[i * 8 + lane / 4])[lane % 4];
}

inline void multiply_add(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (&c)[4]) {
    const auto exchanged = [](uint32_t first, uint32_t second) {
        return simulated_gpu::exchange("mma", first | uint64_t{second} << 32);
    };
    // Of eight columns each: rows 0 to 7 in the low half, 8 to 15 in the high one; b's columns likewise.
    const simulated_gpu::Lanes of_a[2] = {exchanged(a[0], a[1]), exchanged(a[2], a[3])},
                               of_b = exchanged(b0, b1);
    const auto number = [](uint64_t pairs, int pair, int k) {
        const auto word = static_cast<uint32_t>(pairs >> 32 * pair);
        return double{std::bit_cast<float>(word >> k % 2 * 16 << 16)};
    };
    const int row = simulated_gpu::lane() / 4, col = simulated_gpu::lane() % 4 * 2;
    for (int i = 0; i < 4; ++i) {
        double sum = double{c[i]};
        for (int k = 0; k < 16; ++k) {
            const int half = k / 8, at = k % 8 / 2;
            sum += number(of_a[half].values[row * 4 + at], i / 2, k) *
                   number(of_b.values[(col + i % 2) * 4 + at], half, k);
        }
        c[i] = static_cast<float>(sum);
    }
}

}  // namespace nibble::cuda
