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
    require(kHasCuda, "this build of nibble has no CUDA; build the preset hopper, or choose the device cpu");
    if constexpr (kHasCuda) {
        static const std::string reason = reason_against(cuda::machine_state());
        if (!reason.empty()) fail("{}", reason);
    }
}

std::string cuda_version_text(int version) {
    return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string reason_against(const CudaState& state) {
    if (state.driver == 0) return "there is no NVIDIA driver on this machine; choose the device cpu";
    if (state.driver_is_too_old)
        return fmt::format(
            "the NVIDIA driver of this machine serves CUDA {}, nibble was built with CUDA {}; install a "
            "newer driver",
            cuda_version_text(state.driver), cuda_version_text(state.built_with));
    if (state.gpus == 0) return "this machine shows no NVIDIA GPU to nibble; choose the device cpu";
    const CudaDevice& gpu = state.first;
    const std::string kind = fmt::format("{} is an sm_{}{}", gpu.name, gpu.major, gpu.minor);
    if (gpu.major < 8) return kind + "; nibble needs sm_80 or newer (BF16); choose the device cpu";
    if (state.has_kernels) return {};
    return fmt::format("{}, for which this build has no kernels; build nibble with {}", kind,
                       gpu.major == 8 ? "the preset ampere"
                       : gpu.major == 9
                           ? "the preset hopper"
                           : fmt::format("-DCMAKE_CUDA_ARCHITECTURES={}{}-real", gpu.major, gpu.minor));
}

namespace {

void require_same_size(const Tensor& from, const Tensor& to) {
    require(from.dtype == to.dtype && from.count() == to.count(), "{} {} cannot be copied to {} {}",
            name_of(from.dtype), from.shape.str(), name_of(to.dtype), to.shape.str());
}

}  // namespace

void queue_copy(const Context& context, const Tensor& from, const Tensor& to) {
    require_same_size(from, to);
    NIBBLE_ON_CUDA(context, queue_copy(context, from, to));
    copy(context, from, to);
}

void copy(const Context& context, const Tensor& from, const Tensor& to) {
    require_same_size(from, to);
    if constexpr (kHasCuda) {
        if (from.device == Device::cuda || to.device == Device::cuda) return cuda::copy(context, from, to);
    }
    if (from.bytes() > 0) std::memcpy(to.data, from.data, from.bytes());
}

void copy(const Tensor& from, const Tensor& to) {
    Arena none(0);
    const Context context{none};
    copy(context, from, to);
    if constexpr (kHasCuda) {
        if (to.device == Device::cuda) cuda::synchronize(context);
    }
}

Tensor on_device(const Context& context, const Tensor& tensor) {
    if (tensor.device == context.device) return tensor;
    const Tensor there = context.arena.allocate(tensor.dtype, tensor.shape);
    if (!context.planning()) copy(context, tensor, there);
    return there;
}

OnCpu::OnCpu(const Tensor& tensor) : tensor_(tensor) {
    if (tensor.device == Device::cpu) return;
    copy_ = Buffer(tensor.dtype, tensor.shape);
    tensor_ = copy_.tensor();
    copy(tensor, tensor_);
}

void fill_zero(const Context& context, const Tensor& tensor) {
    NIBBLE_ON_CUDA(context, fill_zero(context, tensor));
    if (tensor.bytes() > 0) std::memset(tensor.data, 0, tensor.bytes());
}

void synchronize(const Context& context) { NIBBLE_ON_CUDA(context, synchronize(context)); }

}  // namespace nibble
