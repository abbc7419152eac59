#include "nn/cross_entropy_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "nn/cross_entropy_rows.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "gemm/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

// As numerics/elements.h rounds to E5M2, to nearest even; |v| is at most 57344.
HWY_INLINE V rounded_to_e5m2(V v) {
    const hn::RebindToUnsigned<decltype(kF32)> u32;
    constexpr int kDropped = 23 - 2;  // bits of the mantissa
    const auto bits = hn::BitCast(u32, v);
    const auto odd = hn::And(hn::ShiftRight<kDropped>(bits), hn::Set(u32, 1u));
    const auto up = hn::Add(bits, hn::Add(odd, hn::Set(u32, (1u << (kDropped - 1)) - 1)));
    const V normal = hn::BitCast(kF32, hn::And(up, hn::Set(u32, ~0u << kDropped)));
    const V whole = constant(0x1.8p7f);  // adding it leaves no bits below 2^-16
    const V subnormal = hn::Sub(hn::Add(v, whole), whole);
    return hn::IfThenElse(hn::Lt(hn::Abs(v), constant(0x1p-14f)), subnormal, normal);
}

template <LossRow::Rounding kRounding, typename Element>
void store_gradient(const float* exponentials, int64_t count, float factor, Element* gradient) {
    each_vector(count, [&](int64_t j, auto lanes) HWY_ATTR {
        V g = hn::Mul(load(exponentials + j, lanes), constant(factor));
        if constexpr (kRounding == LossRow::Rounding::bf16) g = rounded_to_bf16(g);
        if constexpr (kRounding == LossRow::Rounding::e5m2) g = rounded_to_e5m2(g);
        store(g, gradient + j, lanes);
    });
}

template <typename Element>
void store_rounded(const LossRow& row, const float* exponentials, int64_t count, float factor,
                   Element* gradient) {
    switch (row.rounding) {
        case LossRow::Rounding::none:
            return store_gradient<LossRow::Rounding::none>(exponentials, count, factor, gradient);
        case LossRow::Rounding::bf16:
            return store_gradient<LossRow::Rounding::bf16>(exponentials, count, factor, gradient);
        case LossRow::Rounding::e5m2:
            return store_gradient<LossRow::Rounding::e5m2>(exponentials, count, factor, gradient);
    }
}

float loss(const LossRow& row, float* logits, int64_t vocabulary, int64_t target, void* gradient) {
    const V scaled = constant(row.factor);
    V most = constant(-std::numeric_limits<float>::infinity());
    each_vector(vocabulary, [&](int64_t j, auto lanes) HWY_ATTR {
        most = hn::Max(most, load(logits + j, lanes, -std::numeric_limits<float>::infinity()));
    });
    const float max = row.factor * hn::GetLane(hn::MaxOfLanes(kF32, most));
    const float at_target = row.factor * logits[target];
    V sum = constant(0.0f);
    each_vector(vocabulary, [&](int64_t j, auto lanes) HWY_ATTR {
        const V e = exp(hn::Sub(hn::Mul(load(logits + j, lanes), scaled), constant(max)));
        store(e, logits + j, lanes);
        sum = hn::Add(sum, only(e, lanes));
    });
    const float total = hn::GetLane(hn::SumOfLanes(kF32, sum));
    if (gradient != nullptr) {
        logits[target] -= total;
        const float factor = row.scale / total;
        if (row.is_bf16) {
            store_rounded(row, logits, vocabulary, factor, static_cast<Bf16*>(gradient));
        } else {
            store_rounded(row, logits, vocabulary, factor, static_cast<float*>(gradient));
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
