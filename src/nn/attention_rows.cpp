#include "nn/attention_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "nn/attention_rows.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "gemm/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

// Element of the operand, and whether F32 values are rounded to BF16.
template <typename Stored, bool kRounded>
struct Form {
    using Element = Stored;
    static HWY_INLINE V round(V v) {
        if constexpr (kRounded) return rounded_to_bf16(v);
        return v;
    }
};

template <typename Visitor>
HWY_INLINE void with_form(ProbabilityForm form, Visitor&& visitor) {
    switch (form) {
        case ProbabilityForm::f32:
            return visitor(Form<float, false>());
        case ProbabilityForm::bf16:
            return visitor(Form<Bf16, false>());
        case ProbabilityForm::rounded_f32:
            return visitor(Form<float, true>());
    }
}

template <typename Element>
HWY_INLINE void clear(Element* p, int64_t begin, int64_t end) {
    if (begin < end)
        std::memset(static_cast<void*>(p + begin), 0, static_cast<size_t>(end - begin) * sizeof(Element));
}

float largest(const float* values, int64_t count) {
    V most = constant(-std::numeric_limits<float>::infinity());
    each_vector(count, [&](int64_t j, auto lanes) HWY_ATTR {
        most = hn::Max(most, load(values + j, lanes, -std::numeric_limits<float>::infinity()));
    });
    return hn::GetLane(hn::MaxOfLanes(kF32, most));
}

SoftmaxRow softmax(const float* scores, int64_t valid, int64_t width, float scale, ProbabilityForm form,
                   void* p) {
    const float max = largest(scores, valid);
    V sum = constant(0.0f);
    with_form(form, [&](auto f) HWY_ATTR {
        auto* to = static_cast<typename decltype(f)::Element*>(p);
        const V factor = constant(scale), shift = constant(max * scale);
        each_vector(valid, [&](int64_t j, auto lanes) HWY_ATTR {
            const V e = exp(hn::MulSub(load(scores + j, lanes), factor, shift));
            store(f.round(e), to + j, lanes);
            sum = hn::Add(sum, only(e, lanes));
        });
        clear(to, valid, width);
    });
    return {max, hn::GetLane(hn::SumOfLanes(kF32, sum))};
}

void softmax_backward(const float* scores, const float* dp, int64_t valid, int64_t width, float scale,
                      float logsumexp, float delta, ProbabilityForm form, void* p, void* ds) {
    with_form(form, [&](auto f) HWY_ATTR {
        using Element = typename decltype(f)::Element;
        auto* to_p = static_cast<Element*>(p);
        auto* to_ds = static_cast<Element*>(ds);
        const V factor = constant(scale), shift = constant(logsumexp), middle = constant(delta);
        each_vector(valid, [&](int64_t j, auto lanes) HWY_ATTR {
            const V e = exp(hn::MulSub(load(scores + j, lanes), factor, shift));
            const V d = hn::Mul(hn::Mul(e, factor), hn::Sub(load(dp + j, lanes), middle));
            store(f.round(e), to_p + j, lanes);
            store(f.round(d), to_ds + j, lanes);
        });
        clear(to_p, valid, width);
        clear(to_ds, valid, width);
    });
}

template <typename Element>
float dot_of(const Element* a, const Element* b, int64_t count) {
    V sum = constant(0.0f);
    each_vector(count, [&](int64_t i, auto lanes)
                           HWY_ATTR { sum = hn::MulAdd(load(a + i, lanes), load(b + i, lanes), sum); });
    return hn::GetLane(hn::SumOfLanes(kF32, sum));
}
float dot(const void* a, const void* b, bool is_bf16, int64_t count) {
    return is_bf16 ? dot_of(static_cast<const Bf16*>(a), static_cast<const Bf16*>(b), count)
                   : dot_of(static_cast<const float*>(a), static_cast<const float*>(b), count);
}

template <typename Element>
void transpose_into(const float* from, int64_t from_stride, int64_t rows, int64_t cols, Element* to,
                    int64_t to_stride) {
    // Columns of `from` are gathered in blocks that stay in the first-level cache.
    HWY_ALIGN float row[256];
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < cols; j += 256) {
            const int64_t count = std::min<int64_t>(256, cols - j);
            for (int64_t l = 0; l < count; ++l) row[l] = from[(j + l) * from_stride + i];
            each_vector(count, [&](int64_t l, auto lanes) HWY_ATTR {
                store(load(row + l, lanes), to + i * to_stride + j + l, lanes);
            });
        }
    }
}
void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t cols, bool is_bf16, void* to,
               int64_t to_stride) {
    is_bf16 ? transpose_into(from, from_stride, rows, cols, static_cast<Bf16*>(to), to_stride)
            : transpose_into(from, from_stride, rows, cols, static_cast<float*>(to), to_stride);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(softmax);
HWY_EXPORT(softmax_backward);
HWY_EXPORT(dot);
HWY_EXPORT(transpose);

SoftmaxRow softmax_row(const float* scores, int64_t valid, int64_t width, float scale, ProbabilityForm form,
                       void* p) {
    return HWY_DYNAMIC_DISPATCH(softmax)(scores, valid, width, scale, form, p);
}
void softmax_backward_row(const float* scores, const float* dp, int64_t valid, int64_t width, float scale,
                          float logsumexp, float delta, ProbabilityForm form, void* p, void* ds) {
    HWY_DYNAMIC_DISPATCH(softmax_backward)(scores, dp, valid, width, scale, logsumexp, delta, form, p, ds);
}
float dot_row(const void* a, const void* b, bool is_bf16, int64_t count) {
    return HWY_DYNAMIC_DISPATCH(dot)(a, b, is_bf16, count);
}
void store_transposed(const float* from, int64_t from_stride, int64_t rows, int64_t cols, bool is_bf16,
                      void* to, int64_t to_stride) {
    HWY_DYNAMIC_DISPATCH(transpose)(from, from_stride, rows, cols, is_bf16, to, to_stride);
}

}  // namespace nibble
#endif
