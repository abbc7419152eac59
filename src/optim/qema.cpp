#include "optim/qema.h"

#include "core/cuda.h"
#include "optim/cuda_forms.h"

namespace nibble {

namespace {

// average <- kept * average + added * w
void add_to_average(Context& context, float kept, float added, const Tensor& w, const Tensor& average) {
    NIBBLE_ON_CUDA(context, add_to_average(context, kept, added, w, average));
    constexpr int64_t kGrain = 1 << 14;
    const float* const from = w.as<float>();
    float* const to = average.as<float>();
    parallel_for(w.count(), kGrain, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) to[i] = kept * to[i] + added * from[i];
    });
}

}  // namespace

void qema_update(Context& context, double decay, bool is_first, const Tensor& w, const Tensor& average) {
    require(w.dtype == DType::f32 && average.dtype == DType::f32 && w.shape == average.shape,
            "the average of {} {} is {} {}", name_of(w.dtype), w.shape.str(), name_of(average.dtype),
            average.shape.str());
    if (context.planning()) return;
    if (is_first) {
        copy(context, w, average);
    } else {
        add_to_average(context, static_cast<float>(decay), static_cast<float>(1 - decay), w, average);
    }
}

}  // namespace nibble
