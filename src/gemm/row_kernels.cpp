#include "gemm/row_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "gemm/row_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "gemm/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

template <typename From, typename To>
void convert_row(const From* from, To* to, int64_t count) {
    each_vector(count, [&](int64_t i, auto lanes) HWY_ATTR { store(load(from + i, lanes), to + i, lanes); });
}
void to_f32_row(const Bf16* from, float* to, int64_t count) { convert_row(from, to, count); }
void to_bf16_row(const float* from, Bf16* to, int64_t count) { convert_row(from, to, count); }
void round_row(const float* from, float* to, int64_t count) {
    each_vector(count, [&](int64_t i, auto lanes)
                           HWY_ATTR { store(rounded_to_bf16(load(from + i, lanes)), to + i, lanes); });
}

template <typename Element>
void finish(const FinishRow& row, Element* c, int64_t count) {
    const V factor = constant(row.factor);
    each_vector(count, [&](int64_t i, auto lanes) HWY_ATTR {
        V sum = load(row.sums + i, lanes);
        for (int64_t part = 1; part < row.parts; ++part) {
            sum = hn::Add(sum, load(row.sums + part * row.stride + i, lanes));
        }
        sum = hn::Mul(sum, factor);
        if (row.cols != nullptr) sum = hn::Mul(sum, load(row.cols + i, lanes));
        if (row.accumulate) sum = hn::Add(sum, load(c + i, lanes));
        store(sum, c + i, lanes);
    });
}
void finish_f32(const FinishRow& row, float* c, int64_t count) { finish(row, c, count); }
void finish_bf16(const FinishRow& row, Bf16* c, int64_t count) { finish(row, c, count); }

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(to_f32_row);
HWY_EXPORT(to_bf16_row);
HWY_EXPORT(round_row);
HWY_EXPORT(finish_f32);
HWY_EXPORT(finish_bf16);

void to_f32(const Bf16* from, float* to, int64_t count) { HWY_DYNAMIC_DISPATCH(to_f32_row)(from, to, count); }
void to_bf16(const float* from, Bf16* to, int64_t count) {
    HWY_DYNAMIC_DISPATCH(to_bf16_row)(from, to, count);
}
void round_to_bf16(const float* from, float* to, int64_t count) {
    HWY_DYNAMIC_DISPATCH(round_row)(from, to, count);
}
void finish_row(const FinishRow& row, float* c, int64_t count) {
    HWY_DYNAMIC_DISPATCH(finish_f32)(row, c, count);
}
void finish_row(const FinishRow& row, Bf16* c, int64_t count) {
    HWY_DYNAMIC_DISPATCH(finish_bf16)(row, c, count);
}

}  // namespace nibble
#endif
