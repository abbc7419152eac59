#include "core/cuda_check.cuh"
#include "nn/amax_history.h"
#include "nn/cuda_forms.h"

namespace nibble::cuda {

namespace {

// One warp.
__global__ void begin_kernel(float* previous, float* current, unsigned count) {
    const bool is_place = threadIdx.x < count;
    const float amax = is_place ? current[threadIdx.x] : 0.0f;
    if (__any_sync(0xffffffffu, amax > 0) == 0 || !is_place) return;
    previous[threadIdx.x] = amax;
    current[threadIdx.x] = 0.0f;
}

__global__ void record_kernel(const float* amax, float* largest) { *largest = fmaxf(*largest, *amax); }

}  // namespace

void begin_step(Context& context, AmaxHistory* history) {
    auto* const previous = reinterpret_cast<float*>(history);  // only addresses: the memory is the GPU's
    constexpr unsigned kCount = sizeof(AmaxHistory) / sizeof(float) / 2;
    launch(context, begin_kernel, 1, kWarp, 0, previous, previous + kCount, kCount);
}

void record_amax(Context& context, const float* amax, float* largest) {
    launch(context, record_kernel, 1, 1, 0, amax, largest);
}

}  // namespace nibble::cuda
