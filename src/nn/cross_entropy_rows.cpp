#include "nn/cross_entropy_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "nn/cross_entropy_rows.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "gemm/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

template <bool kRounded, typename Element>
void store_gradient(const float* exponentials, int64_t count, float factor, Element* gradient) {
    each_vector(count, [&](int64_t j, auto lanes) HWY_ATTR {
        V g = hn::Mul(load(exponentials + j, lanes), constant(factor));
        if constexpr (kRounded) g = rounded_to_bf16(g);
        store(g, gradient + j, lanes);
    });
}

float loss(const LossRow& row, float* logits, int64_t vocabulary, int64_t target, void* gradient) {
    V most = constant(-std::numeric_limits<float>::infinity());
    each_vector(vocabulary, [&](int64_t j, auto lanes) HWY_ATTR {
        most = hn::Max(most, load(logits + j, lanes, -std::numeric_limits<float>::infinity()));
    });
    const float max = hn::GetLane(hn::MaxOfLanes(kF32, most)), at_target = logits[target];
    V sum = constant(0.0f);
    each_vector(vocabulary, [&](int64_t j, auto lanes) HWY_ATTR {
        const V e = exp(hn::Sub(load(logits + j, lanes), constant(max)));
        store(e, logits + j, lanes);
        sum = hn::Add(sum, only(e, lanes));
    });
    const float total = hn::GetLane(hn::SumOfLanes(kF32, sum));
    if (gradient != nullptr) {
        logits[target] -= total;
        const float factor = row.scale / total;
        if (row.is_bf16) {
            store_gradient<false>(logits, vocabulary, factor, static_cast<Bf16*>(gradient));
        } else if (row.rounded) {
            store_gradient<true>(logits, vocabulary, factor, static_cast<float*>(gradient));
        } else {
            store_gradient<false>(logits, vocabulary, factor, static_cast<float*>(gradient));
        }
    }
    return max - at_target + std::log(total);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(loss);

float loss_row(const LossRow& row, float* logits, int64_t vocabulary, int64_t target, void* gradient) {
    return HWY_DYNAMIC_DISPATCH(loss)(row, logits, vocabulary, target, gradient);
}

}  // namespace nibble
#endif
