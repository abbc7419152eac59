#include "nn/embedding.h"

#include <cstring>

#include "core/cuda.h"
#include "gemm/row_kernels.h"
#include "nn/cuda_forms.h"
#include "nn/element.h"

namespace nibble {

namespace {

void check(const Tensor& tokens, const Tensor& weight, const Tensor& y, std::string_view function) {
    require_activations({&y}, function);
    require(y.rows() == tokens.count() && y.cols() == weight.cols(),
            "{}: tokens {}, weight {} and activations {} do not fit", function, tokens.shape.str(),
            weight.shape.str(), y.shape.str());
}

int64_t checked_token(const Tensor& tokens, int64_t t, int64_t vocabulary) {
    const int64_t token = tokens.as<int32_t>()[t];
    require(0 <= token && token < vocabulary, "token {} at position {} is not in the vocabulary of {}", token,
            t, vocabulary);
    return token;
}

}  // namespace

void embedding_forward(Context& context, const Tensor& tokens, const Tensor& weight, const Tensor& y) {
    check(tokens, weight, y, "embedding_forward");
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, embedding_forward(context, tokens, weight, y));
    const int64_t cols = weight.cols();
    parallel_for(tokens.count(), 64, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            const float* row = weight.as<float>() + checked_token(tokens, t, weight.rows()) * cols;
            if (y.dtype == DType::bf16) {
                to_bf16(row, y.as<Bf16>() + t * cols, cols);
            } else {
                std::memcpy(y.as<float>() + t * cols, row, static_cast<size_t>(cols) * sizeof(float));
            }
        }
    });
}

constexpr int64_t kAhead = 8;  // tokens whose rows are on their way into the cache

void embedding_backward(Context& context, const Tensor& dy, const Tensor& tokens, const Tensor& dweight) {
    check(tokens, dweight, dy, "embedding_backward");
    NIBBLE_ON_CUDA(context, embedding_backward(context, dy, tokens, dweight));
    if (context.planning()) return;
    const int64_t cols = dweight.cols();
    for (int64_t t = 0; t < tokens.count(); ++t) checked_token(tokens, t, dweight.rows());
    // Each thread takes some columns of every token, in the order of the tokens.
    parallel_for(cols, 16, [&](int64_t begin, int64_t end) {
        FinishRow add;
        add.accumulate = true;
        float widened[256];
        const auto row_of = [&](int64_t t) { return dweight.as<float>() + tokens.as<int32_t>()[t] * cols; };
        for (int64_t t = 0; t < tokens.count(); ++t) {
            if (t + kAhead < tokens.count()) {
                const float* later = row_of(t + kAhead);
                for (int64_t c = begin; c < end; c += 16) __builtin_prefetch(later + c, 1);
            }
            float* to = row_of(t);
            for (int64_t c = begin; c < end; c += 256) {
                const int64_t count = std::min<int64_t>(256, end - c);
                if (dy.dtype == DType::bf16) {
                    to_f32(dy.as<Bf16>() + t * cols + c, widened, count);
                    add.sums = widened;
                } else {
                    add.sums = dy.as<float>() + t * cols + c;
                }
                finish_row(add, to + c, count);
            }
        }
    });
}

}  // namespace nibble
