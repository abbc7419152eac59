// What the reference and the fast path of quant/ share. Not for other rooms.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <string_view>

#include "numerics/numerics.h"
#include "quant/quant.h"

namespace nibble {

// The last byte of the counter (docs/numerics.md, section 6).
NIBBLE_HD uint8_t operand_of(const RandomKey& key) {
    return static_cast<uint8_t>(static_cast<int>(key.gemm) * 2 + static_cast<int>(key.side));
}
// Coins of elements 8i .. 8i + 7, counted over [rows, padded columns].
NIBBLE_HD Philox element_coins(const RandomKey& key, uint64_t i) {
    return philox_draw(key.seed, Purpose::elements, i, key.step, key.layer, key.micro_step, operand_of(key));
}
// Coins of the scales of groups 8i .. 8i + 7.
NIBBLE_HD Philox scale_coins(const RandomKey& key, uint64_t i) {
    return philox_draw(key.seed, Purpose::scales, i, key.step, key.layer, key.micro_step, operand_of(key));
}

// The signs of one round of a rotation. Never by the side: both operands of a product share their signs, or
// nothing cancels.
NIBBLE_HD Philox sign_draw(const RandomKey& key, int round, uint32_t step, uint8_t micro_step) {
    return philox_draw(key.seed, Purpose::signs, static_cast<uint64_t>(round), step, key.layer, micro_step,
                       static_cast<uint8_t>(static_cast<int>(key.gemm) * 2));
}

// Throws the error of an input that holds a NaN or an infinity, naming the first; if there is none, the
// rotation of huge values has overflowed.
[[noreturn]] void fail_not_finite(const Tensor& x, std::string_view name);

// Throws unless quantize() was called with a spec, an input and an output that belong together.
void check_quantize_arguments(const QuantSpec& spec, const Tensor& x, const QuantizedMatrix& out,
                              const QuantizeOptions& options);

// The signs of one call: those of the options, or what spec and key give.
inline SignBits signs_of(const QuantSpec& spec, const RandomKey& key, const QuantizeOptions& options) {
    return options.signs != nullptr ? *options.signs : rotation_signs(spec, key);
}

// The end of a call: the tensor scale receives the factor of the options.
inline void apply_scale(QuantizedMatrix& out, const QuantizeOptions& options) {
    if (options.scale != nullptr) *out.tensor_scale_ptr() *= *options.scale;
}

// quantize() and quantize_reference() of a spec with rotate=...@rows: the rotation in an F32 copy of x, then
// the quantiser of the spec without it.
void quantize_rotated_rows(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                           QuantizedMatrix& out, const QuantizeOptions& options, bool by_reference);

// values, F32 <- x with zeros for what `values` has more of rows and columns.
void widen(Context& context, const Tensor& x, const Tensor& values);

inline float decode_scale(const QuantSpec& spec, uint8_t byte) {
    return spec.is_mx() ? e8m0_decode(byte) : e4m3_decode(byte);
}
// The byte scale of an element; 1 where the format has none.
inline float byte_scale(const QuantizedMatrix& q, int64_t row, int64_t col) {
    if (!q.spec.has_scale_bytes()) return 1.0f;
    return decode_scale(q.spec, q.scales.as<uint8_t>()[row * q.scales.cols() + col / q.spec.block_size()]);
}
// The FP32 scale of an element; the spec has_fp32_scales().
inline float fp32_scale_at(const QuantizedMatrix& q, int64_t row, int64_t col) {
    const int64_t group = q.spec.has_row_scales() ? 0 : col / q.spec.fp32_block_size();
    return q.fp32_scales.as<float>()[row * q.fp32_scales.cols() + group];
}

// A maximum of non-negative floats that threads share; their bit patterns are ordered as they are.
class SharedMaximum {
  public:
    void raise(float value) {
        const uint32_t bits = std::bit_cast<uint32_t>(value);
        uint32_t seen = bits_.load(std::memory_order_relaxed);
        while (bits > seen && !bits_.compare_exchange_weak(seen, bits, std::memory_order_relaxed)) {
        }
    }
    float value() const { return std::bit_cast<float>(bits_.load(std::memory_order_relaxed)); }

  private:
    std::atomic<uint32_t> bits_{0};
};

}  // namespace nibble
