#include "core/host_buffer.h"

#include "core/cuda.h"

namespace nibble {

HostBuffer::HostBuffer(size_t bytes, const char* advice) : bytes_(bytes) {
    require_cuda();
    if constexpr (kHasCuda) data_.reset(cuda::allocate_on_host(bytes, advice));
}

void HostBuffer::Free::operator()(std::byte* p) const {
    if constexpr (kHasCuda) cuda::free_on_host(p);
}

}  // namespace nibble
