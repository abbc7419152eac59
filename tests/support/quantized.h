// Quantising in tests: a matrix with the memory that holds it.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "core/core.h"
#include "numerics/numerics.h"
#include "quant/quant.h"

namespace nibble::test {

enum class Path { reference, fast };

class Quantized {
  public:
    Quantized(const QuantSpec& spec, const Tensor& x, const RandomKey& key = {},
              const QuantizeOptions& options = {}, Path path = Path::reference)
        : arena_(std::make_unique<Arena>(bytes_for(spec, x))) {
        matrix_ = allocate_quantized(*arena_, spec, x.rows(), x.cols());
        Context context{*arena_};
        if (path == Path::reference) {
            quantize_reference(context, spec, x, key, matrix_, options);
        } else {
            quantize(context, spec, x, key, matrix_, options);
        }
    }
    Quantized(std::string_view spec, const Tensor& x, const RandomKey& key = {},
              const QuantizeOptions& options = {}, Path path = Path::reference)
        : Quantized(parse_spec(spec), x, key, options, path) {}

    const QuantizedMatrix& matrix() const { return matrix_; }
    int64_t rows() const { return matrix_.rows; }
    int64_t cols() const { return matrix_.padded_cols; }
    float tensor_scale() const { return *matrix_.tensor_scale_ptr(); }

    uint8_t code(int64_t row, int64_t col) const {
        if (matrix_.spec.code_bits() == 8) return matrix_.codes.as<uint8_t>()[row * cols() + col];
        const uint8_t byte = matrix_.codes.as<uint8_t>()[(row * cols() + col) / 2];
        return col % 2 == 0 ? byte & 15 : byte >> 4;
    }
    uint8_t scale(int64_t row, int64_t col) const {  // 0 without byte scales
        if (!matrix_.spec.has_scale_bytes()) return 0;
        return matrix_.scales.as<uint8_t>()[(row * cols() + col) / matrix_.spec.block_size()];
    }
    float fp32_scale(int64_t row, int64_t col) const {  // 1 without FP32 scales
        const QuantSpec& spec = matrix_.spec;
        if (!spec.has_fp32_scales()) return 1.0f;
        const int64_t group = spec.has_row_scales() ? 0 : col / spec.fp32_block_size();
        return matrix_.fp32_scales.as<float>()[row * matrix_.fp32_scales.cols() + group];
    }
    bool inside(int64_t row, int64_t col) const {
        return (matrix_.mask.as<uint8_t>()[(row * cols() + col) / 8] >> (col % 8) & 1) != 0;
    }

    std::vector<float> values() const {
        std::vector<float> result(static_cast<size_t>(rows() * cols()));
        Arena empty(64);
        Context context{empty};
        dequantize(context, matrix_, view_of(result, {rows(), cols()}));
        return result;
    }
    std::vector<uint8_t> bytes() const {  // codes, scales, mask, tensor scale, FP32 scales
        std::vector<uint8_t> result;
        for (const Tensor* t :
             {&matrix_.codes, &matrix_.scales, &matrix_.mask, &matrix_.tensor_scale, &matrix_.fp32_scales}) {
            if (t->data == nullptr) continue;
            const auto* p = static_cast<const uint8_t*>(t->data);
            result.insert(result.end(), p, p + t->bytes());
        }
        return result;
    }

  private:
    static size_t bytes_for(const QuantSpec& spec, const Tensor& x) {
        // A rotation along the rows is made in a copy.
        const int64_t copy = spec.rotates_rows() ? 4 * spec.padded_rows(x.rows()) * spec.padded(x.cols()) : 0;
        return static_cast<size_t>(2 * spec.padded_rows(x.rows()) * spec.padded(x.cols()) + copy) + 4096 +
               8 * static_cast<size_t>(x.rows());
    }
    std::unique_ptr<Arena> arena_;
    QuantizedMatrix matrix_;
};

// Sum of squared errors over sum of squares, against x of the quantised (padded) shape.
inline double relative_mse(const std::vector<float>& x, const std::vector<float>& values) {
    double error = 0, power = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        const double d = double{values[i]} - x[i];
        error += d * d;
        power += double{x[i]} * x[i];
    }
    return error / power;
}

// <values, x> / <x, x>: 1 if the quantiser keeps magnitudes on average.
inline double slope(const std::vector<float>& x, const std::vector<float>& values) {
    double product = 0, power = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        product += double{values[i]} * x[i];
        power += double{x[i]} * x[i];
    }
    return product / power;
}

}  // namespace nibble::test
