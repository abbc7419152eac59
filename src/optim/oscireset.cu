#include "optim/cuda_forms.h"
#include "optim/each_weight.cuh"

namespace nibble::cuda {

namespace {

struct Watch {
    const float *w, *before, *after;
    float *weight_path, *quantized_path, *previous;
    __device__ void operator()(int64_t i, int64_t padded) const {
        const float now = w[i];
        weight_path[i] += fabsf(now - previous[i]);
        quantized_path[i] += fabsf(after[padded] - before[padded]);
        previous[i] = now;
    }
};

struct Reset {
    float threshold;
    const float *values, *weight_path, *quantized_path;
    float* w;
    unsigned long long* count;
    __device__ void operator()(int64_t i, int64_t padded) const {
        const float path = quantized_path[i];
        if (path == 0 || !(path >= threshold * weight_path[i])) return;
        w[i] = values[padded];
        atomicAdd(count, 1ull);
    }
};

}  // namespace

void add_paths(Context& context, const Tensor& before, const Tensor& after, const Tensor& w,
               const Oscillation& seen) {
    each_weight(context, w, after.cols(),
                Watch{w.as<float>(), before.as<float>(), after.as<float>(), seen.weight_path.as<float>(),
                      seen.quantized_path.as<float>(), seen.previous.as<float>()});
}

int64_t reset_oscillating(Context& context, const Tensor& values, float threshold, const Tensor& count,
                          const Tensor& w, const Oscillation& seen) {
    cuda::fill_zero(context, count);
    each_weight(
        context, w, values.cols(),
        Reset{threshold, values.as<float>(), seen.weight_path.as<float>(), seen.quantized_path.as<float>(),
              w.as<float>(), reinterpret_cast<unsigned long long*>(count.as<int64_t>())});
    int64_t resets = 0;
    cuda::copy(context, count, {&resets, DType::i64, Device::cpu, {1}});
    return resets;
}

}  // namespace nibble::cuda
