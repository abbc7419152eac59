#include "optim/cuda_forms.h"
#include "optim/each_weight.cuh"

namespace nibble::cuda {

namespace {

struct Average {
    float kept, added;
    const float* w;
    float* average;
    __device__ void operator()(int64_t i, int64_t) const { average[i] = kept * average[i] + added * w[i]; }
};

}  // namespace

void add_to_average(Context& context, float kept, float added, const Tensor& w, const Tensor& average) {
    each_weight(context, w, w.cols(), Average{kept, added, w.as<float>(), average.as<float>()});
}

}  // namespace nibble::cuda
