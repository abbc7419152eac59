#include <algorithm>
#include <cstring>

#include "core/cuda_check.cuh"
#include "core/host_buffer.h"

namespace nibble::cuda {

std::byte* allocate_on_host(size_t bytes, const char* advice) {
    void* memory = nullptr;
    const size_t size = std::max<size_t>(bytes, 1);
    const cudaError_t status = cudaHostAlloc(&memory, size, cudaHostAllocMapped | cudaHostAllocPortable);
    if (status != cudaSuccess) {
        cudaGetLastError();  // or the next launch would report it
        fail("the host gives the GPU no {} bytes of page-locked memory ({}); {}", bytes,
             cudaGetErrorString(status), advice);
    }
    std::memset(memory, 0, size);
    return static_cast<std::byte*>(memory);
}

// In a destructor: what failed before has been reported by its own call.
void free_on_host(std::byte* p) { cudaFreeHost(p); }

}  // namespace nibble::cuda
