// HostBuffer: memory of the host that a GPU reads and writes where it lies, across the bus.
#pragma once

#include <cstddef>
#include <memory>

namespace nibble {

// Owns page-locked memory, zero at first, aligned to 256 bytes. Tensors in it are the GPU's, which work on
// the context's stream and copies touch; or the host's, of which queue_copy() takes copies. Throws Error when
// there is not enough, or no GPU.
class HostBuffer {
  public:
    HostBuffer() = default;
    // advice: what to do where there is not enough.
    HostBuffer(size_t bytes, const char* advice);

    std::byte* data() const { return data_.get(); }
    size_t bytes() const { return bytes_; }

  private:
    struct Free {
        void operator()(std::byte* p) const;
    };
    std::unique_ptr<std::byte[], Free> data_;
    size_t bytes_ = 0;
};

namespace cuda {
std::byte* allocate_on_host(size_t bytes, const char* advice);
void free_on_host(std::byte* p);
}  // namespace cuda

}  // namespace nibble
