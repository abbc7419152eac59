#include "nn/attention_rows.h"

#include <hwy/cache_control.h>

#include <algorithm>
#include <cstring>

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

// Whole vectors that cover `valid` elements, then zeros up to `width`: step(j, mask) gets a mask of the lanes
// that count. Stores may reach beyond the row: rows are written in ascending order.
template <typename Step, typename Clear>
HWY_INLINE void cover_row(int64_t valid, int64_t width, Step&& step, Clear&& clear) {
    const auto lanes = static_cast<int64_t>(hn::Lanes(kF32));
    int64_t j = 0;
    for (; j + lanes <= valid; j += lanes) step(j, AllLanes());
    if (j < valid) {
        step(j, SomeLanes{static_cast<size_t>(valid - j)});
        j += lanes;
    }
    for (; j < width; j += lanes) clear(j);
}

float largest(const float* values, int64_t count) {
    const auto lanes = static_cast<int64_t>(hn::Lanes(kF32));
    const V lowest = constant(-std::numeric_limits<float>::infinity());
    V most = lowest;
    int64_t j = 0;
    for (; j + lanes <= count; j += lanes) most = hn::Max(most, load(values + j));
    const auto rest = hn::FirstN(kF32, static_cast<size_t>(count - j));
    most = hn::Max(most, hn::IfThenElse(rest, load(values + j), lowest));
    return hn::GetLane(hn::MaxOfLanes(kF32, most));
}

template <typename Form>
void softmax_as(const ScoreBlock& block, const float* scores, void* p, float* max, float* sum) {
    using Element = typename Form::Element;
    const V factor = constant(block.scale), zero = constant(0.0f);
    for (int64_t i = 0; i < block.rows; ++i) {
        const int64_t valid = block.first_valid + i;
        const float* row = scores + i * block.width;
        Element* to = static_cast<Element*>(p) + i * block.width;
        max[i] = largest(row, valid);
        const V shift = constant(max[i] * block.scale);
        V total = zero;
        cover_row(
            valid, block.width,
            [&](int64_t j, auto lanes) HWY_ATTR {
                const V e = only(exp(hn::MulSub(load(row + j), factor, shift)), lanes);
                store_product(Form::round(e), to + j);
                total = hn::Add(total, e);
            },
            [&](int64_t j) HWY_ATTR { store(zero, to + j); });
        sum[i] = hn::GetLane(hn::SumOfLanes(kF32, total));
    }
}
void softmax(const ScoreBlock& block, const float* scores, void* p, float* max, float* sum) {
    switch (block.form) {
        case ProbabilityForm::f32:
            return softmax_as<Form<float, false>>(block, scores, p, max, sum);
        case ProbabilityForm::bf16:
            return softmax_as<Form<Bf16, false>>(block, scores, p, max, sum);
        case ProbabilityForm::rounded_f32:
            return softmax_as<Form<float, true>>(block, scores, p, max, sum);
    }
}

template <typename Form>
void softmax_backward_as(const ScoreBlock& block, const float* scores, const float* dp,
                         const float* logsumexp, const float* delta, void* p, void* ds) {
    using Element = typename Form::Element;
    const V factor = constant(block.scale), zero = constant(0.0f);
    for (int64_t i = 0; i < block.rows; ++i) {
        const int64_t at = i * block.width;
        Element* to_p = static_cast<Element*>(p) + at;
        Element* to_ds = static_cast<Element*>(ds) + at;
        const V shift = constant(logsumexp[i]), middle = constant(delta[i]);
        cover_row(
            block.first_valid + i, block.width,
            [&](int64_t j, auto lanes) HWY_ATTR {
                const V e = only(exp(hn::MulSub(load(scores + at + j), factor, shift)), lanes);
                const V slope = only(hn::Sub(load(dp + at + j), middle), lanes);
                store_product(Form::round(e), to_p + j);
                store_product(Form::round(hn::Mul(hn::Mul(e, factor), slope)), to_ds + j);
            },
            [&](int64_t j) HWY_ATTR {
                store(zero, to_p + j);
                store(zero, to_ds + j);
            });
    }
}
void softmax_backward(const ScoreBlock& block, const float* scores, const float* dp, const float* logsumexp,
                      const float* delta, void* p, void* ds) {
    const auto as = [&](auto form) {
        softmax_backward_as<decltype(form)>(block, scores, dp, logsumexp, delta, p, ds);
    };
    switch (block.form) {
        case ProbabilityForm::f32:
            return as(Form<float, false>());
        case ProbabilityForm::bf16:
            return as(Form<Bf16, false>());
        case ProbabilityForm::rounded_f32:
            return as(Form<float, true>());
    }
}

template <typename Element>
void dot_rows_as(const StridedRows& a, const StridedRows& b, int64_t rows, int64_t cols, float* sums) {
    for (int64_t i = 0; i < rows; ++i) {
        const Element* x = static_cast<const Element*>(a.data) + i * a.stride;
        const Element* y = static_cast<const Element*>(b.data) + i * b.stride;
        V sum = constant(0.0f);
        each_vector(cols, [&](int64_t j, auto lanes)
                              HWY_ATTR { sum = hn::MulAdd(load(x + j, lanes), load(y + j, lanes), sum); });
        sums[i] = hn::GetLane(hn::SumOfLanes(kF32, sum));
    }
}
void dots(const StridedRows& a, const StridedRows& b, int64_t rows, int64_t cols, float* sums) {
    a.is_bf16 ? dot_rows_as<Bf16>(a, b, rows, cols, sums) : dot_rows_as<float>(a, b, rows, cols, sums);
}

template <typename Element>
void scale_rows_as(const float* from, const float* factor, int64_t rows, int64_t cols,
                   const StridedRows& to) {
    for (int64_t i = 0; i < rows; ++i) {
        const V f = constant(factor == nullptr ? 1.0f : factor[i]);
        Element* row = static_cast<Element*>(to.data) + i * to.stride;
        each_vector(cols, [&](int64_t j, auto lanes) HWY_ATTR {
            store(hn::Mul(load(from + i * cols + j, lanes), f), row + j, lanes);
        });
    }
}
void scale(const float* from, const float* factor, int64_t rows, int64_t cols, const StridedRows& to) {
    to.is_bf16 ? scale_rows_as<Bf16>(from, factor, rows, cols, to)
               : scale_rows_as<float>(from, factor, rows, cols, to);
}

// Heads lie far apart in memory: the rows to come are fetched while one is copied.
template <typename Row>
HWY_INLINE void each_row(const StridedRows& from, size_t size, int64_t rows, Row&& row) {
    constexpr int64_t kAhead = 8;
    const auto* bytes = static_cast<const std::byte*>(from.data);
    const int64_t stride = from.stride * static_cast<int64_t>(size);
    for (int64_t i = 0; i < rows; ++i) {
        hwy::Prefetch(bytes + std::min(i + kAhead, rows - 1) * stride);
        row(i, bytes + i * stride);
    }
}

template <typename Element>
void copy_as(const StridedRows& from, int64_t rows, int64_t cols, const StridedRows& to) {
    const hn::ScalableTag<Element> tag;
    const auto lanes = static_cast<int64_t>(hn::Lanes(tag));
    each_row(from, sizeof(Element), rows, [&](int64_t i, const std::byte* row) HWY_ATTR {
        const auto* source = reinterpret_cast<const Element*>(row);
        Element* target = static_cast<Element*>(to.data) + i * to.stride;
        int64_t j = 0;
        for (; j + lanes <= cols; j += lanes) hn::StoreU(hn::LoadU(tag, source + j), tag, target + j);
        std::memcpy(target + j, source + j, static_cast<size_t>(cols - j) * sizeof(Element));
    });
}
void copy_widened(const StridedRows& from, int64_t rows, int64_t cols, const StridedRows& to) {
    each_row(from, sizeof(Bf16), rows, [&](int64_t i, const std::byte* row) HWY_ATTR {
        const auto* source = reinterpret_cast<const Bf16*>(row);
        float* target = static_cast<float*>(to.data) + i * to.stride;
        each_vector(
            cols, [&](int64_t j, auto lanes) HWY_ATTR { store(load(source + j, lanes), target + j, lanes); });
    });
}
void copy(const StridedRows& from, int64_t rows, int64_t cols, const StridedRows& to) {
    if (from.is_bf16 && to.is_bf16) {
        copy_as<uint16_t>(from, rows, cols, to);
    } else if (from.is_bf16) {
        copy_widened(from, rows, cols, to);
    } else {
        copy_as<float>(from, rows, cols, to);
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(softmax);
HWY_EXPORT(softmax_backward);
HWY_EXPORT(dots);
HWY_EXPORT(scale);
HWY_EXPORT(copy);

void softmax_block(const ScoreBlock& block, const float* scores, void* p, float* max, float* sum) {
    HWY_DYNAMIC_DISPATCH(softmax)(block, scores, p, max, sum);
}
void softmax_backward_block(const ScoreBlock& block, const float* scores, const float* dp,
                            const float* logsumexp, const float* delta, void* p, void* ds) {
    HWY_DYNAMIC_DISPATCH(softmax_backward)(block, scores, dp, logsumexp, delta, p, ds);
}
void dot_rows(const StridedRows& a, const StridedRows& b, int64_t rows, int64_t cols, float* sums) {
    HWY_DYNAMIC_DISPATCH(dots)(a, b, rows, cols, sums);
}
void scale_rows(const float* from, const float* factor, int64_t rows, int64_t cols, const StridedRows& to) {
    HWY_DYNAMIC_DISPATCH(scale)(from, factor, rows, cols, to);
}
void copy_rows(const StridedRows& from, int64_t rows, int64_t cols, const StridedRows& to) {
    HWY_DYNAMIC_DISPATCH(copy)(from, rows, cols, to);
}

}  // namespace nibble
#endif
