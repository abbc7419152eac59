#include "nn/rope.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "nn/rope.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/cuda.h"
#include "gemm/simd-inl.h"
#include "nn/bias.h"
#include "nn/cuda_forms.h"
#include "nn/element.h"

#ifndef NIBBLE_NN_ROPE_ROW
#define NIBBLE_NN_ROPE_ROW
namespace nibble {

struct RopeRow {
    RopeLayout layout;
    int64_t heads, half;     // heads to rotate; half of their dimension
    const float *cos, *sin;  // of the row's position
    float direction;         // 1, or -1 for the inverse
};

}  // namespace nibble
#endif

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

struct Pair {
    V first, second;
};

HWY_INLINE Pair rotated(Pair p, V cos, V sin) {
    return {hn::NegMulAdd(p.second, sin, hn::Mul(p.first, cos)),
            hn::MulAdd(p.first, sin, hn::Mul(p.second, cos))};
}

// Neighbours in memory: 2i and 2i + 1.
HWY_INLINE Pair load_pairs(const float* p) {
    Pair pair;
    hn::LoadInterleaved2(kF32, p, pair.first, pair.second);
    return pair;
}
HWY_INLINE void store_pairs(Pair pair, float* p) { hn::StoreInterleaved2(pair.first, pair.second, kF32, p); }
// Two BF16 numbers share a word of 32 bits, the first in its low half (little endian).
HWY_INLINE Pair load_pairs(const Bf16* p) {
    const U32s u32;
    const auto words = hn::LoadU(u32, reinterpret_cast<const uint32_t*>(p));
    return {hn::BitCast(kF32, hn::ShiftLeft<16>(words)),
            hn::BitCast(kF32, hn::And(words, hn::Set(u32, 0xffff0000u)))};
}
HWY_INLINE void store_pairs(Pair pair, Bf16* p) {
    const auto words = hn::Or(bf16_bits(pair.first), hn::ShiftLeft<16>(bf16_bits(pair.second)));
    hn::StoreU(words, U32s(), reinterpret_cast<uint32_t*>(p));
}
template <typename Element>
HWY_INLINE Pair load_pairs(const Element* p, AllLanes) {
    return load_pairs(p);
}
template <typename Element>
HWY_INLINE void store_pairs(Pair pair, Element* p, AllLanes) {
    store_pairs(pair, p);
}
template <typename Element>
HWY_INLINE Pair load_pairs(const Element* p, SomeLanes lanes) {
    HWY_ALIGN Element part[2 * hn::MaxLanes(kF32)] = {};
    std::memcpy(part, p, 2 * lanes.count * sizeof(Element));
    return load_pairs(part);
}
template <typename Element>
HWY_INLINE void store_pairs(Pair pair, Element* p, SomeLanes lanes) {
    HWY_ALIGN Element part[2 * hn::MaxLanes(kF32)];
    store_pairs(pair, part);
    std::memcpy(p, part, 2 * lanes.count * sizeof(Element));
}

template <typename Element>
void rotate_heads(const RopeRow& r, Element* row) {
    each_vector(r.half, [&](int64_t i, auto lanes) HWY_ATTR {
        const V cos = load(r.cos + i, lanes);
        const V sin = hn::Mul(load(r.sin + i, lanes), constant(r.direction));
        for (int64_t h = 0; h < r.heads; ++h) {
            Element* head = row + 2 * h * r.half;
            if (r.layout == RopeLayout::interleaved) {
                store_pairs(rotated(load_pairs(head + 2 * i, lanes), cos, sin), head + 2 * i, lanes);
            } else {
                const Pair pair = rotated({load(head + i, lanes), load(head + r.half + i, lanes)}, cos, sin);
                store(pair.first, head + i, lanes);
                store(pair.second, head + r.half + i, lanes);
            }
        }
    });
}
void rope_row_f32(const RopeRow& r, float* row) { rotate_heads(r, row); }
void rope_row_bf16(const RopeRow& r, Bf16* row) { rotate_heads(r, row); }

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(rope_row_f32);
HWY_EXPORT(rope_row_bf16);

namespace {

void rotate_rows(Context& context, RopeLayout layout, const Tensor& qkv, int64_t sequence, int heads,
                 int kv_heads, const Tensor& cos, const Tensor& sin, float direction, const Tensor& bias) {
    require_activations({&qkv}, "rope");
    const int64_t half = cos.cols(), width = qkv.cols();
    require(heads > 0 && kv_heads > 0 && width == (heads + 2 * int64_t{kv_heads}) * 2 * half,
            "rope: rows of {} do not hold {} query and {} key and value heads of {}", width, heads, kv_heads,
            2 * half);
    require(bias.shape.rank() == 0 || bias.count() == width, "rope: a bias of {} does not fit rows of {}",
            bias.count(), width);
    require(sequence > 0 && sequence <= cos.rows() && cos.shape == sin.shape,
            "rope: a table of {} positions is too short for sequences of {}", cos.rows(), sequence);
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context,
                   rotate_heads(context, layout, qkv, sequence, heads, kv_heads, cos, sin, direction, bias));
    if (bias.shape.rank() > 0) add_bias(context, qkv, bias);
    const float* cosines = cos.as<float>();
    const float* sines = sin.as<float>();
    parallel_for(qkv.rows(), 16, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            const int64_t position = t % sequence;
            const RopeRow row{
                layout,   heads + kv_heads, half, cosines + position * half, sines + position * half,
                direction};
            if (qkv.dtype == DType::bf16) {
                HWY_DYNAMIC_DISPATCH(rope_row_bf16)(row, qkv.as<Bf16>() + t * width);
            } else {
                HWY_DYNAMIC_DISPATCH(rope_row_f32)(row, qkv.as<float>() + t * width);
            }
        }
    });
}

}  // namespace

void rope_table(double theta, const Tensor& cos, const Tensor& sin) {
    const int64_t half = cos.cols();
    for (int64_t position = 0; position < cos.rows(); ++position) {
        for (int64_t i = 0; i < half; ++i) {
            const double exponent = -static_cast<double>(i) / static_cast<double>(half);
            const double angle = static_cast<double>(position) * std::pow(theta, exponent);
            cos.as<float>()[position * half + i] = static_cast<float>(std::cos(angle));
            sin.as<float>()[position * half + i] = static_cast<float>(std::sin(angle));
        }
    }
}

void rope_forward(Context& context, RopeLayout layout, const Tensor& qkv, int64_t sequence, int heads,
                  int kv_heads, const Tensor& cos, const Tensor& sin, const Tensor& bias) {
    rotate_rows(context, layout, qkv, sequence, heads, kv_heads, cos, sin, 1.0f, bias);
}

void rope_backward(Context& context, RopeLayout layout, const Tensor& dqkv, int64_t sequence, int heads,
                   int kv_heads, const Tensor& cos, const Tensor& sin) {
    rotate_rows(context, layout, dqkv, sequence, heads, kv_heads, cos, sin, -1.0f, {});
}

}  // namespace nibble
#endif
