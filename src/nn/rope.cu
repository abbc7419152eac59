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

// A thread turns the same pairs in kHeads heads of a row: those of one piece of neighbours, or of two pieces
// half a head apart. Neighbouring threads share a row.
template <int kWidth, bool kInterleaved>
struct Share {
    static constexpr int kPieces = kInterleaved ? 1 : 2, kAngles = kWidth * kPieces / 2;
    static constexpr int kHeads = 4 / kPieces;  // whose loads are in flight together

    static __host__ __device__ int64_t threads_of_head(const Rotation& r) { return r.half / kAngles; }
    static __host__ __device__ int64_t threads_of_row(const Rotation& r) {
        return divide_up(r.all_heads, kHeads) * threads_of_head(r);
    }
};

template <typename Element, int kWidth, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) rotate_kernel(const Rotation r, Element* qkv) {
    using Of = Share<kWidth, kInterleaved>;
    using Values = Piece<Element, kWidth>;
    constexpr int kPieces = Of::kPieces, kAngles = Of::kAngles, kHeads = Of::kHeads;
    // 32 bits divide faster.
    const uint32_t index = blockIdx.x * kThreads + threadIdx.x,
                   of_row = static_cast<uint32_t>(Of::threads_of_row(r)),
                   of_head = static_cast<uint32_t>(Of::threads_of_head(r));
    const uint32_t t = index / of_row, in_row = index - t * of_row, group = in_row / of_head;
    if (t >= r.rows) return;
    const auto h0 = static_cast<int>(group) * kHeads,
               i = static_cast<int>(in_row - group * of_head) * kAngles;
    const int64_t angles = int64_t{t % static_cast<uint32_t>(r.sequence)} * r.half + i;
    Element *const row = qkv + t * r.width, *const first = row + (kInterleaved ? 2 * i : i);
    const auto at = [&](int head, int piece) { return first + (int64_t{head} * 2 + piece) * r.half; };
    Values held[kHeads][kPieces];
#pragma unroll
    for (int h = 0; h < kHeads; ++h)
        for (int p = 0; p < kPieces; ++p)
            if (h0 + h < r.all_heads) held[h][p] = Values::load(at(h0 + h, p));
    float cos[kAngles], sin[kAngles];
    load_floats(r.cos + angles, cos);
    load_floats(r.sin + angles, sin);
    for (float& s : sin) s *= r.direction;
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

template <typename Element, int kWidth, bool kInterleaved>
void launch_rotation(Context& context, const Rotation& rotation, Element* qkv) {
    const int64_t threads = rotation.rows * Share<kWidth, kInterleaved>::threads_of_row(rotation);
    require(threads < int64_t{1} << 31,
            "rope: {} rows of {} heads are too many; make the micro-batch smaller", rotation.rows,
            rotation.all_heads);
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
