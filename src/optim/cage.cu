#include "optim/cuda_forms.h"
#include "optim/each_weight.cuh"

namespace nibble::cuda {

namespace {

struct Pull {
    float pull;
    const float* values;
    float* w;
    __device__ void operator()(int64_t i, int64_t padded) const { w[i] -= pull * (w[i] - values[padded]); }
};

}  // namespace

void pull_towards(Context& context, const Tensor& values, float pull, const Tensor& w) {
    each_weight(context, w, values.cols(), Pull{pull, values.as<float>(), w.as<float>()});
}

}  // namespace nibble::cuda
