#include "core/cuda.h"

#include <cstring>

namespace nibble {

std::vector<CudaDevice> cuda_devices() {
    if constexpr (kHasCuda) return cuda::devices();
    return {};
}

std::string cuda_version() {
    if constexpr (kHasCuda) return cuda::version();
    return {};
}

void require_cuda() {
    require(kHasCuda,
            "this build of nibble has no CUDA; build the preset hopper, or use device.kind = \"cpu\"");
    if constexpr (kHasCuda) cuda::require_usable();
}

void require_cpu(const Context& context, std::string_view what) {
    require(context.device == Device::cpu, "{} runs on the cpu only; use device.kind = \"cpu\"", what);
}

void copy(const Context& context, const Tensor& from, const Tensor& to) {
    require(from.dtype == to.dtype && from.count() == to.count(), "{} {} cannot be copied to {} {}",
            name_of(from.dtype), from.shape.str(), name_of(to.dtype), to.shape.str());
    if constexpr (kHasCuda) {
        if (from.device == Device::cuda || to.device == Device::cuda) return cuda::copy(context, from, to);
    }
    if (from.bytes() > 0) std::memcpy(to.data, from.data, from.bytes());
}

void fill_zero(const Context& context, const Tensor& tensor) {
    NIBBLE_ON_CUDA(context, fill_zero(context, tensor));
    if (tensor.bytes() > 0) std::memset(tensor.data, 0, tensor.bytes());
}

void synchronize(const Context& context) { NIBBLE_ON_CUDA(context, synchronize(context)); }

}  // namespace nibble
