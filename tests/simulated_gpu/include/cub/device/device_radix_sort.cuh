#pragma once

#include <cuda_runtime.h>

#include <numeric>
#include <vector>

namespace cub {

struct DeviceRadixSort {
    // Stable. `scratch` null: bytes <- what the sort needs.
    template <typename Key, typename Value>
    static cudaError_t SortPairs(void* scratch, size_t& bytes, const Key* keys, Key* sorted_keys,
                                 const Value* values, Value* sorted_values, int64_t count, int, int,
                                 cudaStream_t) {
        bytes = 1;
        if (scratch == nullptr) return cudaSuccess;
        simulated_gpu::queue([=] {
            std::vector<int64_t> order(static_cast<size_t>(count));
            std::iota(order.begin(), order.end(), int64_t{0});
            std::ranges::stable_sort(order, {}, [&](int64_t i) { return keys[i]; });
            for (int64_t i = 0; i < count; ++i) {
                sorted_keys[i] = keys[order[static_cast<size_t>(i)]];
                sorted_values[i] = values[order[static_cast<size_t>(i)]];
            }
        });
        return cudaSuccess;
    }
};

}  // namespace cub
