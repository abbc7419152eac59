#include "nn/swiglu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "nn/swiglu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/cuda.h"
#include "gemm/simd-inl.h"
#include "nn/cuda_forms.h"
#include "nn/element.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

HWY_INLINE V sigmoid(V x) {
    const V most = constant(88.0f);  // where exp() ends
    return hn::Div(constant(1.0f), hn::Add(constant(1.0f), exp(hn::Min(most, hn::Neg(x)))));
}

template <typename Element>
float forward_row(int64_t cols, const Element* gate_up, Element* h) {
    V amax = constant(0.0f);
    each_vector(cols, [&](int64_t c, auto lanes) HWY_ATTR {
        const V gate = load(gate_up + c, lanes);
        const V silu = hn::Mul(gate, sigmoid(gate));
        const V v = hn::Mul(silu, load(gate_up + cols + c, lanes));
        store(v, h + c, lanes);
        amax = hn::Max(amax, hn::Abs(v));
    });
    return hn::GetLane(as_stored<Element>(hn::MaxOfLanes(kF32, amax)));  // rounding keeps the order
}
float swiglu_forward_f32(int64_t cols, const float* gate_up, float* h) {
    return forward_row(cols, gate_up, h);
}
float swiglu_forward_bf16(int64_t cols, const Bf16* gate_up, Bf16* h) {
    return forward_row(cols, gate_up, h);
}

template <typename Element>
float backward_row(int64_t cols, const Element* dh, const Element* gate_up, Element* dgate_up) {
    const V one = constant(1.0f);
    V amax = constant(0.0f);
    each_vector(cols, [&](int64_t c, auto lanes) HWY_ATTR {
        const V gate = load(gate_up + c, lanes), up = load(gate_up + cols + c, lanes);
        const V gradient = load(dh + c, lanes);
        const V s = sigmoid(gate);
        const V slope = hn::Mul(s, hn::MulAdd(gate, hn::Sub(one, s), one));
        const V d_gate = hn::Mul(hn::Mul(gradient, up), slope), d_up = hn::Mul(hn::Mul(gradient, gate), s);
        store(d_gate, dgate_up + c, lanes);
        store(d_up, dgate_up + cols + c, lanes);
        amax = hn::Max(amax, hn::Max(hn::Abs(d_gate), hn::Abs(d_up)));
    });
    return hn::GetLane(as_stored<Element>(hn::MaxOfLanes(kF32, amax)));
}
float swiglu_backward_f32(int64_t cols, const float* dh, const float* gate_up, float* dgate_up) {
    return backward_row(cols, dh, gate_up, dgate_up);
}
float swiglu_backward_bf16(int64_t cols, const Bf16* dh, const Bf16* gate_up, Bf16* dgate_up) {
    return backward_row(cols, dh, gate_up, dgate_up);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(swiglu_forward_f32);
HWY_EXPORT(swiglu_forward_bf16);
HWY_EXPORT(swiglu_backward_f32);
HWY_EXPORT(swiglu_backward_bf16);

namespace {

constexpr int64_t kChunk = 16;  // rows a maximum

// of_row(t) makes row t and gives its largest magnitude; *amax <- the largest of all, unless it is null.
template <typename OfRow>
void make_rows(Context& context, int64_t rows, float* amax, OfRow&& of_row) {
    const int64_t chunks = (rows + kChunk - 1) / kChunk;
    const ArenaScope scope(context.arena);
    const Tensor maxima = context.arena.allocate(DType::f32, {chunks});
    if (context.planning()) return;
    parallel_for(chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            float largest = 0.0f;
            for (int64_t t = i * kChunk; t < std::min(rows, (i + 1) * kChunk); ++t)
                largest = std::max(largest, of_row(t));
            maxima.as<float>()[i] = largest;
        }
    });
    if (amax == nullptr) return;
    *amax = 0.0f;
    for (const float m : maxima.span<float>()) *amax = std::max(*amax, m);
}

}  // namespace

void swiglu_forward(Context& context, const Tensor& gate_up, const Tensor& h, float* amax) {
    require_activations({&gate_up, &h}, "swiglu_forward");
    const int64_t rows = h.rows(), cols = h.cols();
    require(gate_up.count() == 2 * h.count() && gate_up.cols() == 2 * cols,
            "swiglu_forward: gate_up {} is not twice as wide as h {}", gate_up.shape.str(), h.shape.str());
    NIBBLE_ON_CUDA(context, swiglu_forward(context, gate_up, h, amax));
    make_rows(context, rows, amax, [&](int64_t t) {
        const int64_t at = t * cols;
        return h.dtype == DType::bf16 ? HWY_DYNAMIC_DISPATCH(swiglu_forward_bf16)(
                                            cols, gate_up.as<Bf16>() + 2 * at, h.as<Bf16>() + at)
                                      : HWY_DYNAMIC_DISPATCH(swiglu_forward_f32)(
                                            cols, gate_up.as<float>() + 2 * at, h.as<float>() + at);
    });
}

void swiglu_backward(Context& context, const Tensor& dh, const Tensor& gate_up, const Tensor& dgate_up,
                     float* amax) {
    require_activations({&dh, &gate_up, &dgate_up}, "swiglu_backward");
    const int64_t rows = dh.rows(), cols = dh.cols();
    require(
        gate_up.count() == 2 * dh.count() && gate_up.cols() == 2 * cols && dgate_up.shape == gate_up.shape,
        "swiglu_backward: dh {}, gate_up {} and dgate_up {} do not fit", dh.shape.str(), gate_up.shape.str(),
        dgate_up.shape.str());
    NIBBLE_ON_CUDA(context, swiglu_backward(context, dh, gate_up, dgate_up, amax));
    make_rows(context, rows, amax, [&](int64_t t) {
        const int64_t at = t * cols;
        return dh.dtype == DType::bf16
                   ? HWY_DYNAMIC_DISPATCH(swiglu_backward_bf16)(
                         cols, dh.as<Bf16>() + at, gate_up.as<Bf16>() + 2 * at, dgate_up.as<Bf16>() + 2 * at)
                   : HWY_DYNAMIC_DISPATCH(swiglu_backward_f32)(cols, dh.as<float>() + at,
                                                               gate_up.as<float>() + 2 * at,
                                                               dgate_up.as<float>() + 2 * at);
    });
}

}  // namespace nibble
#endif
