#include "quant/round_towards.h"

#include <cmath>
#include <cstring>

#include "quant/internal.h"

namespace nibble {

namespace {

constexpr int kMagnitudes = 8;

// The code of x, given the values of its block in ascending order and the code that it has.
uint8_t neighbour_near(const float (&values)[kMagnitudes], float x, float target, uint8_t code) {
    const float a = std::fabs(x);
    int below = 0;
    while (below + 1 < kMagnitudes && values[below + 1] <= a) ++below;
    const int above = below + 1 < kMagnitudes && values[below] != a ? below + 1 : below;
    const float t = std::signbit(x) ? -target : target;
    const float to_below = std::fabs(t - values[below]), to_above = std::fabs(t - values[above]);
    if (to_below == to_above && above != below) return code;
    return static_cast<uint8_t>(e2m1_sign(x) | (to_above < to_below ? above : below));
}

// A copy of x in the space that q was quantised in, F32 [q.rows, q.padded_cols].
Tensor rotated(Context& context, const Tensor& x, const SignBits& signs, const QuantizedMatrix& q) {
    const Tensor out = context.arena.allocate(DType::f32, {q.rows, q.padded_cols});
    if (context.planning()) return out;
    const size_t row_bytes = static_cast<size_t>(x.cols()) * sizeof(float);
    std::memset(out.data, 0, out.bytes());
    for (int64_t r = 0; r < q.rows; ++r)
        std::memcpy(out.as<float>() + r * q.padded_cols, x.as<float>() + r * x.cols(), row_bytes);
    rotate(context, q.spec.rotation_size, signs, out, q.spec.rotation_rounds());
    if (q.spec.out_bf16)
        for (float& value : out.span<float>()) value = round_to_bf16(value);
    return out;
}

void choose_codes(const Tensor& x, const Tensor& target, QuantizedMatrix& q) {
    const int block = q.spec.block_size();
    const int64_t cols = x.cols();
    const float tensor_scale = *q.tensor_scale_ptr();
    parallel_for(q.rows, rows_per_task(q.padded_cols), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            uint8_t* const codes = q.codes.as<uint8_t>() + r * q.padded_cols / 2;
            for (int64_t first = 0; first < cols; first += block) {
                const float scale = byte_scale(q, r, first);
                if (scale == 0.0f) continue;  // all its codes are 0
                float values[kMagnitudes];
                for (int m = 0; m < kMagnitudes; ++m) values[m] = e2m1_magnitude(m) * scale * tensor_scale;
                for (int64_t k = first; k < std::min(first + block, cols); ++k) {
                    uint8_t& pair = codes[k / 2];
                    const int shift = k % 2 == 0 ? 0 : 4;
                    const auto old = static_cast<uint8_t>(pair >> shift & 15);
                    const uint8_t code = neighbour_near(values, x.as<float>()[r * cols + k],
                                                        target.as<float>()[r * cols + k], old);
                    pair = static_cast<uint8_t>((pair & ~(15 << shift)) | code << shift);
                }
            }
        }
    });
}

}  // namespace

void round_towards(Context& context, const Tensor& x, const Tensor& target, const SignBits& signs,
                   QuantizedMatrix& q) {
    require(x.dtype == DType::f32 && target.dtype == DType::f32 && x.shape == target.shape &&
                x.rows() == q.rows && x.cols() <= q.cols,
            "{} {} is not rounded towards {} {} in an output of [{}, {}]", name_of(x.dtype), x.shape.str(),
            name_of(target.dtype), target.shape.str(), q.rows, q.cols);
    const ArenaScope scope(context.arena);
    const bool rotates = q.spec.rotation != Rotation::none;
    const Tensor from = rotates ? rotated(context, x, signs, q) : x;
    const Tensor to = rotates ? rotated(context, target, signs, q) : target;
    if (!context.planning()) choose_codes(from, to, q);
}

}  // namespace nibble
