// The recorded outputs of public implementations (tests/golden) and how to compare with them.
#pragma once

#include <string>
#include <vector>

#include "core/core.h"
#include "io/safetensors.h"
#include "numerics/numerics.h"

namespace nibble::test {

inline SafetensorsFile golden(const std::string& name) {
    return SafetensorsFile(fs::path(NIBBLE_SOURCE_DIR) / "tests" / "golden" / (name + ".safetensors"));
}

// F32 or BF16 values as floats.
inline std::vector<float> floats_of(const Tensor& t) {
    std::vector<float> values(static_cast<size_t>(t.count()));
    for (size_t i = 0; i < values.size(); ++i) {
        values[i] =
            t.dtype == DType::bf16 ? bf16_decode(static_cast<const Bf16*>(t.data)[i]) : t.as<float>()[i];
    }
    return values;
}

template <typename T>
std::vector<T> transposed(const std::vector<T>& x, int64_t rows, int64_t cols) {
    std::vector<T> y(x.size());
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c)
            y[static_cast<size_t>(c * rows + r)] = x[static_cast<size_t>(r * cols + c)];
    }
    return y;
}

// The inputs that the recorded outputs belong to: tests/golden/inputs.
inline const std::vector<std::string> kInputs = {"normal", "heavy", "ties", "small"};

struct Input {
    int64_t rows, cols;
    std::vector<float> values;
    Tensor tensor() { return view_of(values, {rows, cols}); }
};

inline Input input(const std::string& name, bool transpose = false) {
    static const SafetensorsFile file = golden("inputs");
    const Tensor& x = file.tensor("x." + name);
    Input result{x.rows(), x.cols(), floats_of(x)};
    if (transpose) {
        result.values = transposed(result.values, x.rows(), x.cols());
        std::swap(result.rows, result.cols);
    }
    return result;
}

// Codes 0 and 8 are both zero: comparisons treat them as equal.
inline bool same_code(int a, int b) { return a == b || ((a | b) & 7) == 0; }

}  // namespace nibble::test
