// Running one QuantLinear in tests: a step planned, then executed in exactly the planned memory.
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "core/core.h"
#include "core/cuda.h"
#include "nn/quant_linear.h"

namespace nibble::test {

// A matrix that owns its values, F32 or BF16.
class Matrix {
  public:
    Matrix(DType dtype, int64_t rows, int64_t cols) : buffer_(dtype, {rows, cols}) {}
    Matrix(DType dtype, int64_t rows, int64_t cols, const std::vector<float>& values)
        : Matrix(dtype, rows, cols) {
        for (int64_t i = 0; i < rows * cols; ++i) {
            const float value = values.at(static_cast<size_t>(i));
            if (dtype == DType::bf16) {
                tensor().as<Bf16>()[i] = bf16_encode(value);
            } else {
                tensor().as<float>()[i] = value;
            }
        }
    }
    Matrix(const Matrix& other) : Matrix(other.tensor().dtype, other.rows(), other.cols()) {
        std::memcpy(buffer_.data(), other.buffer_.data(), other.tensor().bytes());
    }
    Matrix(Matrix&&) = default;
    Tensor tensor() const { return buffer_.tensor(); }
    int64_t rows() const { return tensor().rows(); }
    int64_t cols() const { return tensor().cols(); }
    float at(int64_t row, int64_t col) const {
        const int64_t i = row * cols() + col;
        return tensor().dtype == DType::bf16 ? bf16_decode(tensor().as<Bf16>()[i]) : tensor().as<float>()[i];
    }
    std::vector<float> values() const {
        std::vector<float> all;
        for (int64_t r = 0; r < rows(); ++r) {
            for (int64_t c = 0; c < cols(); ++c) all.push_back(at(r, c));
        }
        return all;
    }

  private:
    Buffer buffer_;
};

// What one step of a layer reads; tokens may be split into micro-batches.
struct LinearInput {
    Matrix x, w, dy;  // [T, K], F32 [N, K], [T, N]
};

struct LinearOutput {
    std::vector<float> y, dx, dw;
};

struct Keys {
    uint64_t seed = 1;
    uint32_t step = 0;
};

// prepare, then forward and backward of each of `micro_batches` equal parts of the tokens. Outputs are F32.
inline LinearOutput run_linear(const QuantLinear& layer, const LinearInput& input, const Keys& keys = {},
                               int micro_batches = 1, AmaxHistory* history = nullptr,
                               Device device = Device::cpu) {
    const int64_t tokens = input.x.rows(), part = tokens / micro_batches;
    const auto on = [&](const Matrix& m) {
        Buffer there(m.tensor().dtype, m.tensor().shape, device);
        copy(m.tensor(), there.tensor());
        return there;
    };
    const Buffer x = on(input.x), w = on(input.w), dy = on(input.dy);
    const Buffer y(DType::f32, {tokens, layer.out()}, device), dx(DType::f32, {tokens, layer.in()}, device),
        dw(DType::f32, {layer.out(), layer.in()}, device);
    const Buffer state(DType::f32, {2, 6}, device);
    const Tensor remembered{history, DType::f32, Device::cpu, {2, 6}};
    if (history != nullptr) copy(remembered, state.tensor());
    auto* const there = history != nullptr ? reinterpret_cast<AmaxHistory*>(state.data()) : nullptr;
    const auto step = [&](Context& context) {
        const ArenaScope scope(context.arena);
        const QuantLinear::Weight weight = layer.prepare(context, w.tensor(), there);
        for (int i = 0; i < micro_batches; ++i) {
            const ArenaScope micro_scope(context.arena);
            context.micro_step = static_cast<uint32_t>(i);
            const auto of = [&](const Buffer& b) { return b.tensor().slice(i * part, (i + 1) * part); };
            const QuantLinear::Saved saved = layer.forward(context, weight, of(x), of(y));
            layer.backward(context, weight, saved, of(dy), of(dx), dw.tensor());
        }
    };
    Arena arena(device);
    Context context{arena};
    context.seed = keys.seed;
    context.step = keys.step;
    step(context);
    arena.commit();
    step(context);
    if (history != nullptr) copy(state.tensor(), remembered);
    const auto values = [](const Buffer& b) {
        const OnCpu here(b.tensor());
        const auto all = here.tensor().span<float>();
        return std::vector<float>(all.begin(), all.end());
    };
    return {values(y), values(dx), values(dw)};
}

// a [M, K] times b [N, K], transposed, in FP64.
inline std::vector<double> product(const Matrix& a, const Matrix& b) {
    std::vector<double> c(static_cast<size_t>(a.rows() * b.rows()));
    const std::vector<float> av = a.values(), bv = b.values();
    for (int64_t i = 0; i < a.rows(); ++i) {
        for (int64_t j = 0; j < b.rows(); ++j) {
            const float *x = &av[static_cast<size_t>(i * a.cols())],
                        *y = &bv[static_cast<size_t>(j * b.cols())];
            double sum = 0;
            for (int64_t k = 0; k < a.cols(); ++k) sum += double{x[k]} * y[k];
            c[static_cast<size_t>(i * b.rows() + j)] = sum;
        }
    }
    return c;
}

inline Matrix transposed(const Matrix& m) {
    std::vector<float> values;
    for (int64_t c = 0; c < m.cols(); ++c) {
        for (int64_t r = 0; r < m.rows(); ++r) values.push_back(m.at(r, c));
    }
    return Matrix(m.tensor().dtype, m.cols(), m.rows(), values);
}

// |a - b| / |b| over all elements (Frobenius).
template <typename A, typename B>
double relative_error(const std::vector<A>& a, const std::vector<B>& b) {
    double error = 0, power = 0;
    for (size_t i = 0; i < b.size(); ++i) {
        const double d = static_cast<double>(a.at(i)) - static_cast<double>(b[i]);
        error += d * d;
        power += static_cast<double>(b[i]) * static_cast<double>(b[i]);
    }
    return std::sqrt(error / power);
}

// <a, b> / <b, b>: the slope of a on b.
template <typename A, typename B>
double projection(const std::vector<A>& a, const std::vector<B>& b) {
    double product = 0, power = 0;
    for (size_t i = 0; i < b.size(); ++i) {
        product += static_cast<double>(a.at(i)) * static_cast<double>(b[i]);
        power += static_cast<double>(b[i]) * static_cast<double>(b[i]);
    }
    return product / power;
}

// A copy of each quantised operand of a layer, in order of appearance.
struct Bytes {
    std::string operand;
    int64_t rows = 0, cols = 0;  // as stored
    std::vector<uint8_t> codes, scales, fp32_scales, mask;
    float tensor_scale = 0;
};

inline std::vector<uint8_t> bytes_of(const Tensor& t) {
    const auto* p = static_cast<const uint8_t*>(t.data);
    return p == nullptr ? std::vector<uint8_t>() : std::vector<uint8_t>(p, p + t.bytes());
}

inline void collect_operands(QuantLinear& layer, std::vector<Bytes>& into) {
    layer.observe([&into](Context& context, const QuantLinear::Observation& seen) {
        if (context.planning() || seen.quantized == nullptr) return;
        const QuantizedMatrix& q = *seen.quantized;
        into.push_back({std::string(seen.operand), q.rows, q.padded_cols, bytes_of(q.codes),
                        bytes_of(q.scales), bytes_of(q.fp32_scales),
                        q.spec.mask_clip ? bytes_of(q.mask) : std::vector<uint8_t>(), *q.tensor_scale_ptr()});
    });
}

}  // namespace nibble::test
