#include "quant/round_towards.h"

#include "quant/cuda_forms.h"
#include "quant/internal.h"
#include "quant/round_towards_reference.h"

namespace nibble {

namespace {

void round_to_bf16(Context& context, const Tensor& x) {
    NIBBLE_ON_CUDA(context, round_to_bf16(context, x));
    for (float& value : x.span<float>()) value = nibble::round_to_bf16(value);
}

// A copy of x in the space that q was quantised in, F32 [q.rows, q.padded_cols].
Tensor rotated(Context& context, const Tensor& x, const SignBits& signs, const QuantizedMatrix& q) {
    const Tensor out = context.arena.allocate(DType::f32, {q.rows, q.padded_cols});
    if (context.planning()) return out;
    widen(context, x, out);
    rotate(context, q.spec.rotation_size, signs, out, q.spec.rotation_rounds());
    if (q.spec.out_bf16) round_to_bf16(context, out);
    return out;
}

void choose_codes(Context& context, const Tensor& x, const Tensor& target, QuantizedMatrix& q) {
    NIBBLE_ON_CUDA(context, choose_codes(context, x, target, q));
    const int block = q.spec.block_size();
    const int64_t cols = x.cols();
    const float tensor_scale = *q.tensor_scale_ptr();
    parallel_for(q.rows, rows_per_task(q.padded_cols), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            uint8_t* const codes = q.codes.as<uint8_t>() + r * q.padded_cols / 2;
            const float *const row = x.as<float>() + r * cols, *const goal = target.as<float>() + r * cols;
            for (int64_t first = 0; first < cols; first += block) {
                const float scale = byte_scale(q, r, first);
                if (scale == 0.0f) continue;  // all its codes are 0
                const BlockValues values = block_values(scale, tensor_scale);
                for (int64_t k = first; k < std::min(first + block, cols); k += 2) {
                    uint8_t& pair = codes[k / 2];
                    if (k + 1 < cols) {
                        pair = codes_near(values, row[k], goal[k], row[k + 1], goal[k + 1], pair);
                    } else {  // the padding's code stays
                        pair = static_cast<uint8_t>((pair & 0xf0) |
                                                    neighbour_near(values, row[k], goal[k], pair & 15));
                    }
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
    require(q.codes.shape.rank() > 0, "rounding towards a target needs the codes, not the operand alone");
    const ArenaScope scope(context.arena);
    const bool rotates = q.spec.rotation != Rotation::none;
    const Tensor from = rotates ? rotated(context, x, signs, q) : x;
    const Tensor to = rotates ? rotated(context, target, signs, q) : target;
    if (context.planning()) return;
    choose_codes(context, from, to, q);
    if (q.operand.shape.rank() > 0) dequantize_operand(context, q, q.operand);
}

}  // namespace nibble
