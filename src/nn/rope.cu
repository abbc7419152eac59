#include "core/cuda_vector.cuh"
#include "nn/cuda_forms.h"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 128;

struct Rotation {
    int64_t rows, sequence, width;
    int heads, half;  // heads to rotate; half of their dimension
    const float *cos, *sin;
    float direction;
    const float* bias;  // of all_heads heads, or null
    int all_heads;      // those to rotate, and others that have a bias
};

// A thread turns the same pairs in every head of a row: those of one piece of neighbours, or of two pieces
// half a head apart.
template <typename Element, int kWidth, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) rotate_kernel(const Rotation r, Element* qkv) {
    using Values = Piece<Element, kWidth>;
    constexpr int kPieces = kInterleaved ? 1 : 2, kAngles = kWidth * kPieces / 2;
    constexpr int kHeads = 8 / kPieces;  // whose loads are in flight together
    const int64_t threads = r.half / kAngles, index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    const int64_t t = index / threads, i = (index - t * threads) * kAngles;
    if (t >= r.rows) return;
    const int64_t angles = t % r.sequence * r.half + i;
    float cos[kAngles], sin[kAngles];
    load_floats(r.cos + angles, cos);
    load_floats(r.sin + angles, sin);
    for (float& s : sin) s *= r.direction;
    Element *const row = qkv + t * r.width, *const first = row + (kInterleaved ? 2 * i : i);
    const auto at = [&](int head, int piece) { return first + (int64_t{head} * 2 + piece) * r.half; };
    for (int h0 = 0; h0 < r.all_heads; h0 += kHeads) {
        Values held[kHeads][kPieces];
#pragma unroll
        for (int h = 0; h < kHeads; ++h)
            for (int p = 0; p < kPieces; ++p)
                if (h0 + h < r.all_heads) held[h][p] = Values::load(at(h0 + h, p));
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
            if (h0 + h >= r.all_heads) break;
            for (int p = 0; p < kPieces && r.bias != nullptr; ++p) {
                float sum[kWidth];
                load_floats(r.bias + (at(h0 + h, p) - row), sum);
                for (int j = 0; j < kWidth; ++j) sum[j] = held[h][p][j] + sum[j];
                held[h][p] = Values::of(sum);
            }
            float x[kPieces * kWidth];
            for (int j = 0; j < kPieces * kWidth; ++j) x[j] = held[h][j / kWidth][j % kWidth];
            for (int j = 0; j < kAngles && h0 + h < r.heads; ++j) {
                float& a = x[kInterleaved ? 2 * j : j];
                float& b = x[kInterleaved ? 2 * j + 1 : j + kWidth];
                const float turned = a * cos[j] - b * sin[j];
                b = b * cos[j] + a * sin[j];
                a = turned;
            }
            for (int p = 0; p < kPieces; ++p) {
                float out[kWidth];
                for (int j = 0; j < kWidth; ++j) out[j] = x[p * kWidth + j];
                store_floats(out, at(h0 + h, p));
            }
        }
    }
}

template <typename Element, int kWidth, bool kInterleaved>
void launch_rotation(Context& context, const Rotation& rotation, Element* qkv) {
    const int64_t threads = rotation.rows * (rotation.half * 2 / kWidth / (kInterleaved ? 1 : 2));
    launch(context, rotate_kernel<Element, kWidth, kInterleaved>,
           static_cast<unsigned>(divide_up<int64_t>(threads, kThreads)), kThreads, 0, rotation, qkv);
}

}  // namespace

void rotate_heads(Context& context, RopeLayout layout, const Tensor& qkv, int64_t sequence, int heads,
                  int kv_heads, const Tensor& cos, const Tensor& sin, float direction, const Tensor& bias) {
    const int64_t half = cos.cols();
    const bool has_bias = bias.shape.rank() > 0;
    const Rotation rotation{.rows = qkv.rows(),
                            .sequence = sequence,
                            .width = qkv.cols(),
                            .heads = heads + kv_heads,
                            .half = static_cast<int>(half),
                            .cos = cos.as<float>(),
                            .sin = sin.as<float>(),
                            .direction = direction,
                            .bias = has_bias ? bias.as<float>() : nullptr,
                            .all_heads = heads + (has_bias ? 2 : 1) * kv_heads};
    with_elements(qkv, [&]<typename Element>(Element* values) {
        constexpr int kWidth = kPerAccess<Element>;
        const bool wide = fits_width<Element>(kWidth, half, {values}) &&
                          fits_width<float>(4, half, {rotation.cos, rotation.sin, rotation.bias});
        if (layout == RopeLayout::interleaved) {
            // A pair always begins at a multiple of its size.
            (wide ? launch_rotation<Element, kWidth, true>
                  : launch_rotation<Element, 2, true>)(context, rotation, values);
        } else {
            (wide ? launch_rotation<Element, kWidth, false>
                  : launch_rotation<Element, 1, false>)(context, rotation, values);
        }
    });
}

}  // namespace nibble::cuda
