// Tensors for tests: random values of known origin, and calls that plan their memory before they run.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/core.h"
#include "numerics/numerics.h"

namespace nibble {

// About N(0, 1): the sum of four uniform numbers, centred and scaled.
inline std::vector<float> random_values(uint64_t seed, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
        const Philox draw = philox_draw(seed, Purpose::sampling, static_cast<uint64_t>(i));
        double sum = 0;
        for (const uint32_t word : draw.word) sum += static_cast<double>(word) / 4294967296.0 - 0.5;
        values[static_cast<size_t>(i)] = static_cast<float>(sum * std::sqrt(3.0));
    }
    return values;
}

// A buffer of F32 or BF16 that holds the (rounded) values.
inline Buffer buffer_of(DType dtype, Shape shape, const std::vector<float>& values) {
    Buffer buffer(dtype, shape);
    for (size_t i = 0; i < values.size(); ++i) {
        if (dtype == DType::bf16) {
            buffer.tensor().as<Bf16>()[i] = bf16_encode(values[i]);
        } else {
            buffer.tensor().as<float>()[i] = values[i];
        }
    }
    return buffer;
}

inline Buffer random_buffer(DType dtype, Shape shape, uint64_t seed) {
    return buffer_of(dtype, shape, random_values(seed, shape.count()));
}

// Multiples of 1/16, the largest of which is element `seed`, 3.5 = 448 / 128: sums of their products are
// exact in FP32, and of their codes in fp8:e4m3, whose scale is a power of two, too.
inline Buffer exact_buffer(DType dtype, Shape shape, uint64_t seed) {
    std::vector<float> values = random_values(seed, shape.count());
    for (float& v : values) v = std::round(v * 16) / 16;
    values[seed] = 3.5f;
    return buffer_of(dtype, shape, values);
}

inline std::vector<double> values_of(const Tensor& t) {
    std::vector<double> values(static_cast<size_t>(t.count()));
    for (size_t i = 0; i < values.size(); ++i) {
        values[i] = t.dtype == DType::bf16 ? bf16_decode(t.as<Bf16>()[i]) : t.as<float>()[i];
    }
    return values;
}

// Calls f(context) twice: in a planning arena, then in one that has exactly the planned memory.
template <typename F>
void run_planned(F&& f) {
    Arena arena;
    Context context{arena};
    f(context);
    arena.commit();
    f(context);
}

}  // namespace nibble
