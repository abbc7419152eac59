// GPUs: their memory, and the line with which a function hands its work to its CUDA form.
//
// A function that exists on both devices has its CUDA form in the .cu file of its name, in namespace
// nibble::cuda, with the same name and arguments. Its body begins with
//
//   NIBBLE_ON_CUDA(context, rmsnorm_forward(context, x, ...));
//
// A build without CUDA never calls the CUDA forms, so that they need no stand-ins.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/build.h"
#include "core/context.h"

#define NIBBLE_ON_CUDA(context, call)                                      \
    if constexpr (::nibble::kHasCuda) {                                    \
        if ((context).device == Device::cuda) return ::nibble::cuda::call; \
    }                                                                      \
    static_assert(true)

namespace nibble {

struct CudaDevice {
    std::string name;          // "NVIDIA H100 80GB HBM3"
    int major = 0, minor = 0;  // compute capability
    int multiprocessors = 0;
    size_t memory = 0, available_memory = 0;  // bytes
};
// Those that this process sees; none in a build without CUDA, or without a driver.
std::vector<CudaDevice> cuda_devices();
// "13.0, driver 13.0"; empty in a build without CUDA.
std::string cuda_version();
// What a machine says of its GPUs.
struct CudaState {
    int driver = 0;  // the CUDA version that it serves, 13000 for 13.0; 0: there is none
    bool driver_is_too_old = false;
    int built_with = 0;        // the CUDA version of this build
    int gpus = 0;              // that this process sees
    CudaDevice first = {};     // of them
    bool has_kernels = false;  // whether this build has machine code for it
};
// Why nibble cannot run on the first GPU, in one line; empty: it can.
std::string reason_against(const CudaState& state);
// Throws Error with the reason, one line, if this build has no CUDA or reason_against() finds one. The
// machine is asked once a process.
void require_cuda();
// "13.0" of 13000.
std::string cuda_version_text(int version);

// to <- from, of one dtype and count, on any devices, after what the context's stream holds already. Returns
// when it is done if one of them is the CPU's.
void copy(const Context& context, const Tensor& from, const Tensor& to);
// The same where one of them lies in a HostBuffer or both on the GPU: does not wait.
void queue_copy(const Context& context, const Tensor& from, const Tensor& to);
// The same as copy() outside of a step: returns when it is done.
void copy(const Tensor& from, const Tensor& to);
// `tensor` where the context works: itself, or a copy in the context's arena.
Tensor on_device(const Context& context, const Tensor& tensor);
// A tensor where the CPU reads it: itself, or a copy.
class OnCpu {
  public:
    explicit OnCpu(const Tensor& tensor);
    const Tensor& tensor() const { return tensor_; }

  private:
    Buffer copy_;
    Tensor tensor_;
};
void fill_zero(const Context& context, const Tensor& tensor);
// Waits until all that was queued is done. Throws Error if some of it failed.
void synchronize(const Context& context);

namespace cuda {
std::vector<CudaDevice> devices();
std::string version();
CudaState machine_state();
std::byte* allocate_zeroed(size_t bytes);
void free(std::byte* p);
void copy(const Context& context, const Tensor& from, const Tensor& to);
void queue_copy(const Context& context, const Tensor& from, const Tensor& to);
void fill_zero(const Context& context, const Tensor& tensor);
void synchronize(const Context& context);
}  // namespace cuda

}  // namespace nibble
