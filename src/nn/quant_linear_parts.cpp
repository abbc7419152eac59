#include "nn/quant_linear_parts.h"

#include <algorithm>
#include <cstring>

#include "core/cuda.h"
#include "gemm/cuda_forms.h"
#include "nn/cuda_forms.h"
#include "nn/element.h"

namespace nibble::detail {

namespace {

constexpr int64_t kGrain = 1 << 15;  // elements that are worth a thread

void pad_columns(Context& context, const Tensor& x, const Tensor& out) {
    NIBBLE_ON_CUDA(context, convert(context, x, out));
    const size_t from_bytes = static_cast<size_t>(x.cols()) * size_of(x.dtype);
    const size_t to_bytes = static_cast<size_t>(out.cols()) * size_of(x.dtype);
    const auto* from = static_cast<const std::byte*>(x.data);
    auto* to = static_cast<std::byte*>(out.data);
    parallel_for(x.rows(), rows_per_task(out.cols(), kGrain), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            std::byte* row = to + static_cast<size_t>(r) * to_bytes;
            std::memcpy(row, from + static_cast<size_t>(r) * from_bytes, from_bytes);
            std::memset(row + from_bytes, 0, to_bytes - from_bytes);
        }
    });
}

}  // namespace

void convert(Context& context, const Tensor& x, const Tensor& out) {
    require(x.count() == out.count(), "{} does not convert into {}", x.shape.str(), out.shape.str());
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, convert(context, x, out));
    with_elements(x, [&](const auto* from) {
        with_elements(out, [&]<typename Element>(Element* to) {
            parallel_for(x.count(), kGrain, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) to[i] = store_as<Element>(to_float(from[i]));
            });
        });
    });
}

Tensor as_bf16(Context& context, const Tensor& x) {
    if (x.dtype == DType::bf16) return x;
    const Tensor out = context.arena.allocate(DType::bf16, {x.rows(), x.cols()});
    convert(context, x, out);
    return out;
}

Tensor padded_columns(Context& context, const Tensor& x, int64_t count) {
    if (x.cols() == count) return x;
    const Tensor out = context.arena.allocate(x.dtype, {x.rows(), count});
    if (!context.planning()) pad_columns(context, x, out);
    return out;
}

Tensor padded_rows(Context& context, const Tensor& x, int64_t count) {
    if (x.rows() == count) return x;
    const Tensor out = context.arena.allocate(x.dtype, {count, x.cols()});
    if (context.planning()) return out;
    copy(context, x, out.slice(0, x.rows()));
    fill_zero(context, out.slice(x.rows(), count));
    return out;
}

void finish_gradient(Context& context, const Tensor& gradient, const Tensor& mask, const QuantSpec* rotation,
                     const SignBits& signs, const Tensor& out, bool accumulate) {
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context,
                   detail::finish_gradient(context, gradient, mask, rotation, signs, out, accumulate));
    const int64_t cols = gradient.cols(), wanted = out.cols();
    float* const g = gradient.as<float>();
    if (mask.shape.rank() > 0) {
        const auto* bits = mask.as<uint8_t>();
        const int64_t stride = mask.cols();
        parallel_for(gradient.rows(), rows_per_task(cols, kGrain), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
                for (int64_t k = 0; k < cols; ++k) {
                    if ((bits[r * stride + k / 8] >> (k % 8) & 1) == 0) g[r * cols + k] = 0.0f;
                }
            }
        });
    }
    if (rotation != nullptr) {
        unrotate(context, rotation->rotation_size, signs, gradient, rotation->rotation_rounds());
    }
    with_elements(out, [&]<typename Element>(Element* to) {
        parallel_for(gradient.rows(), rows_per_task(cols, kGrain), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
                Element* const row = to + r * wanted;
                for (int64_t k = 0; k < wanted; ++k) {
                    const float value = g[r * cols + k];
                    row[k] = store_as<Element>(accumulate ? to_float(row[k]) + value : value);
                }
            }
        });
    });
}

}  // namespace nibble::detail
