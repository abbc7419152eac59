#include "nn/bias.h"

#include <algorithm>

#include "core/cuda.h"
#include "nn/cuda_forms.h"
#include "nn/element.h"

namespace nibble {

namespace {

void check(const Tensor& rows, const Tensor& bias, std::string_view function) {
    require_activations({&rows}, function);
    require(bias.dtype == DType::f32 && bias.count() == rows.cols(), "{}: {} is no bias of {}", function,
            bias.shape.str(), rows.shape.str());
}

}  // namespace

void add_bias(Context& context, const Tensor& y, const Tensor& bias) {
    check(y, bias, "add_bias");
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, add_bias(context, y, bias));
    const int64_t cols = y.cols();
    const float* const b = bias.as<float>();
    with_elements(y, [&]<typename Element>(Element* values) {
        parallel_for(y.rows(), rows_per_task(cols), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
                Element* const row = values + r * cols;
                for (int64_t c = 0; c < cols; ++c) row[c] = store_as<Element>(to_float(row[c]) + b[c]);
            }
        });
    });
}

void bias_backward(Context& context, const Tensor& dy, const Tensor& dbias) {
    check(dy, dbias, "bias_backward");
    NIBBLE_ON_CUDA(context, bias_backward(context, dy, dbias));
    if (context.planning()) return;
    constexpr int64_t kColumns = 64;  // a task's
    const int64_t rows = dy.rows(), cols = dy.cols();
    float* const gradient = dbias.as<float>();
    with_elements(dy, [&](const auto* values) {
        parallel_for((cols + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
            for (int64_t block = begin; block < end; ++block) {
                const int64_t first = block * kColumns, count = std::min(kColumns, cols - first);
                double sums[kColumns] = {};
                for (int64_t r = 0; r < rows; ++r)
                    for (int64_t c = 0; c < count; ++c)
                        sums[c] += double{to_float(values[r * cols + first + c])};
                for (int64_t c = 0; c < count; ++c) gradient[first + c] += static_cast<float>(sums[c]);
            }
        });
    });
}

}  // namespace nibble
