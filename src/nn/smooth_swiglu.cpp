#include "nn/smooth_swiglu.h"

#include <algorithm>
#include <cmath>

#include "core/cuda.h"
#include "nn/cuda_forms.h"
#include "nn/element.h"
#include "nn/smooth_swiglu_reference.h"

namespace nibble {

namespace {

void check_columns(const Tensor& x, const Tensor& scales, std::string_view name) {
    require(scales.dtype == DType::f32 && scales.count() == x.cols(), "{}: {} scales for the columns of {}",
            name, scales.count(), x.shape.str());
}

// Calls body(row, column) for all elements, in parallel over rows.
template <typename Body>
void each_element(const Tensor& x, Body&& body) {
    const int64_t cols = x.cols();
    parallel_for(x.rows(), rows_per_task(cols), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r)
            for (int64_t c = 0; c < cols; ++c) body(r * cols + c, c);
    });
}

void find_column_maxima(const Tensor& h, float* maxima) {
    constexpr int64_t kColumns = 64;  // a task's
    const int64_t rows = h.rows(), cols = h.cols();
    std::fill_n(maxima, cols, 0.0f);
    with_elements(h, [&](const auto* values) {
        parallel_for((cols + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
            const int64_t last = std::min(end * kColumns, cols);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t c = begin * kColumns; c < last; ++c)
                    maxima[c] = std::max(maxima[c], std::fabs(to_float(values[r * cols + c])));
        });
    });
}

}  // namespace

void channel_scales(Context& context, const SmoothSwiglu& options, const Tensor& h, const Tensor& scales) {
    check_columns(h, scales, "channel_scales");
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, channel_scales(context, options, h, scales));
    float* const s = scales.as<float>();
    find_column_maxima(h, s);
    const float amax = *std::max_element(s, s + h.cols());
    for (float& scale : scales.span<float>())
        scale = channel_scale(options.strength, options.scale == "exact", amax, scale);
}

void multiply_columns(Context& context, const Tensor& x, const Tensor& scales) {
    check_columns(x, scales, "multiply_columns");
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, multiply_columns(context, x, scales));
    const float* const s = scales.as<float>();
    with_elements(x, [&]<typename Element>(Element* v) {
        each_element(x, [=](int64_t i, int64_t c) { v[i] = store_as<Element>(to_float(v[i]) * s[c]); });
    });
}

void divide_columns(Context& context, const Tensor& x, const Tensor& scales, const Tensor& out,
                    bool accumulate) {
    check_columns(x, scales, "divide_columns");
    require(out.shape == x.shape, "divide_columns: {} does not fit {}", x.shape.str(), out.shape.str());
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, divide_columns(context, x, scales, out, accumulate));
    const float *const s = scales.as<float>(), *const from = x.as<float>();
    float* const to = out.as<float>();
    each_element(x, [=](int64_t i, int64_t c) {
        const float quotient = from[i] / s[c];
        to[i] = accumulate ? to[i] + quotient : quotient;
    });
}

}  // namespace nibble
