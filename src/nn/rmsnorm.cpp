#include "nn/rmsnorm.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "nn/rmsnorm.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/cuda.h"
#include "gemm/simd-inl.h"
#include "nn/cuda_forms.h"
#include "nn/element.h"

#ifndef NIBBLE_NN_RMSNORM_ROWS
#define NIBBLE_NN_RMSNORM_ROWS
namespace nibble {

struct RmsnormForward {
    bool is_bf16;
    int64_t cols;
    const void *x, *delta;
    const float* weight;
    float eps;
    void *sum, *y;
    float* rstd;
};

struct RmsnormBackward {
    bool is_bf16;
    int64_t cols;
    const void *dy, *x;
    const float *weight, *rstd;
    const void* d_sum;
    void* dx;
    float* dweight;  // of these rows alone, overwritten
};

}  // namespace nibble
#endif

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

template <typename Element>
float forward_rows(const RmsnormForward& n, int64_t begin, int64_t end) {
    const auto* x = static_cast<const Element*>(n.x);
    const auto* delta = static_cast<const Element*>(n.delta);
    auto* sum = static_cast<Element*>(n.sum);
    auto* y = static_cast<Element*>(n.y);
    V amax = constant(0.0f);
    for (int64_t t = begin; t < end; ++t) {
        const int64_t row = t * n.cols;
        V squares = constant(0.0f);
        if (delta != nullptr) {
            each_vector(n.cols, [&](int64_t c, auto lanes) HWY_ATTR {
                const V both = hn::Add(load(x + row + c, lanes), load(delta + row + c, lanes));
                const V v = store_rounded(both, sum + row + c, lanes);
                squares = hn::MulAdd(v, v, squares);
            });
        } else {
            each_vector(n.cols, [&](int64_t c, auto lanes) HWY_ATTR {
                const V v = load(x + row + c, lanes);
                squares = hn::MulAdd(v, v, squares);
            });
        }
        const float mean = hn::GetLane(hn::SumOfLanes(kF32, squares)) / static_cast<float>(n.cols);
        const float rstd = 1.0f / std::sqrt(mean + n.eps);
        n.rstd[t] = rstd;
        const Element* normalised = delta != nullptr ? sum + row : x + row;
        each_vector(n.cols, [&](int64_t c, auto lanes) HWY_ATTR {
            const V scaled = hn::Mul(load(normalised + c, lanes), constant(rstd));
            const V v = hn::Mul(scaled, load(n.weight + c, lanes));
            store(v, y + row + c, lanes);
            amax = hn::Max(amax, hn::Abs(v));
        });
    }
    return hn::GetLane(as_stored<Element>(hn::MaxOfLanes(kF32, amax)));  // rounding keeps the order
}
float rmsnorm_forward_rows(const RmsnormForward& n, int64_t begin, int64_t end) {
    return n.is_bf16 ? forward_rows<Bf16>(n, begin, end) : forward_rows<float>(n, begin, end);
}

template <typename Element>
void backward_rows(const RmsnormBackward& n, int64_t begin, int64_t end) {
    const auto* x = static_cast<const Element*>(n.x);
    const auto* dy = static_cast<const Element*>(n.dy);
    const auto* d_sum = static_cast<const Element*>(n.d_sum);
    auto* dx = static_cast<Element*>(n.dx);
    std::fill_n(n.dweight, n.cols, 0.0f);
    for (int64_t t = begin; t < end; ++t) {
        const int64_t row = t * n.cols;
        V dot = constant(0.0f);
        each_vector(n.cols, [&](int64_t c, auto lanes) HWY_ATTR {
            const V g = hn::Mul(load(dy + row + c, lanes), load(n.weight + c, lanes));
            dot = hn::MulAdd(g, load(x + row + c, lanes), dot);
        });
        const float rstd = n.rstd[t];
        const float mean = hn::GetLane(hn::SumOfLanes(kF32, dot)) * rstd / static_cast<float>(n.cols);
        each_vector(n.cols, [&](int64_t c, auto lanes) HWY_ATTR {
            const V g = load(dy + row + c, lanes);
            const V xhat = hn::Mul(load(x + row + c, lanes), constant(rstd));
            const V inner = hn::NegMulAdd(xhat, constant(mean), hn::Mul(g, load(n.weight + c, lanes)));
            V gradient = hn::Mul(inner, constant(rstd));
            if (d_sum != nullptr) gradient = hn::Add(gradient, load(d_sum + row + c, lanes));
            store(gradient, dx + row + c, lanes);
            store(hn::MulAdd(g, xhat, load(n.dweight + c, lanes)), n.dweight + c, lanes);
        });
    }
}
void rmsnorm_backward_rows(const RmsnormBackward& n, int64_t begin, int64_t end) {
    n.is_bf16 ? backward_rows<Bf16>(n, begin, end) : backward_rows<float>(n, begin, end);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(rmsnorm_forward_rows);
HWY_EXPORT(rmsnorm_backward_rows);

namespace {
// Rows whose gradients of the weight are summed together: fixed, so that the sum does not depend on threads.
constexpr int64_t kChunk = 64;
}  // namespace

void rmsnorm_forward(Context& context, const Tensor& x, const Tensor& delta, const Tensor& weight, float eps,
                     const Tensor& sum, const Tensor& y, const Tensor& rstd, float* amax) {
    const bool has_delta = delta.data != nullptr;
    require_activations({&x, &y}, "rmsnorm_forward");
    if (has_delta) require_activations({&x, &delta, &sum}, "rmsnorm_forward");
    const int64_t rows = x.rows(), cols = x.cols(), chunks = (rows + kChunk - 1) / kChunk;
    require(y.count() == x.count() && weight.count() == cols && rstd.count() == rows,
            "rmsnorm_forward: x {}, y {}, weight {} and rstd {} do not fit", x.shape.str(), y.shape.str(),
            weight.shape.str(), rstd.shape.str());
    NIBBLE_ON_CUDA(context, rmsnorm_forward(context, x, delta, weight, eps, sum, y, rstd, amax));
    const ArenaScope scope(context.arena);
    const Tensor maxima = context.arena.allocate(DType::f32, {chunks});
    if (context.planning()) return;
    const RmsnormForward args{x.dtype == DType::bf16, cols, x.data,   has_delta ? delta.data : nullptr,
                              weight.as<float>(),     eps,  sum.data, y.data,
                              rstd.as<float>()};
    parallel_for(chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            maxima.as<float>()[i] = HWY_DYNAMIC_DISPATCH(rmsnorm_forward_rows)(
                args, i * kChunk, std::min(rows, (i + 1) * kChunk));
        }
    });
    if (amax != nullptr) {
        *amax = 0.0f;
        for (const float m : maxima.span<float>()) *amax = std::max(*amax, m);
    }
}

void rmsnorm_backward(Context& context, const Tensor& dy, const Tensor& x, const Tensor& weight,
                      const Tensor& rstd, const Tensor& d_sum, const Tensor& dx, const Tensor& dweight) {
    require_activations({&dy, &x, &dx}, "rmsnorm_backward");
    if (d_sum.data != nullptr) require_activations({&x, &d_sum}, "rmsnorm_backward");
    const int64_t rows = x.rows(), cols = x.cols(), chunks = (rows + kChunk - 1) / kChunk;
    require(dy.count() == x.count() && dx.count() == x.count() && weight.count() == cols &&
                dweight.count() == cols && rstd.count() == rows,
            "rmsnorm_backward: dy {}, x {}, dx {}, weight {}, dweight {} and rstd {} do not fit",
            dy.shape.str(), x.shape.str(), dx.shape.str(), weight.shape.str(), dweight.shape.str(),
            rstd.shape.str());
    NIBBLE_ON_CUDA(context, rmsnorm_backward(context, dy, x, weight, rstd, d_sum, dx, dweight));
    const ArenaScope scope(context.arena);
    const Tensor parts = context.arena.allocate(DType::f32, {chunks, cols});
    if (context.planning()) return;
    parallel_for(chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const RmsnormBackward args{x.dtype == DType::bf16,
                                       cols,
                                       dy.data,
                                       x.data,
                                       weight.as<float>(),
                                       rstd.as<float>(),
                                       d_sum.data,
                                       dx.data,
                                       parts.as<float>() + i * cols};
            HWY_DYNAMIC_DISPATCH(rmsnorm_backward_rows)(args, i * kChunk, std::min(rows, (i + 1) * kChunk));
        }
    });
    for (int64_t i = 0; i < chunks; ++i) {
        for (int64_t c = 0; c < cols; ++c) dweight.as<float>()[c] += parts.as<float>()[i * cols + c];
    }
}

}  // namespace nibble
#endif
