// A head belongs to a group of lanes of one warp, each of which keeps some of its elements in registers.
#include <bit>

#include "core/cuda_vector.cuh"
#include "nn/add_parts.cuh"
#include "nn/cuda_forms.h"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 32;  // tokens whose weight gradients a block sums
constexpr int kInFlight = 2;    // heads of a group of lanes in backward

struct Heads {
    int64_t tokens;
    int queries, normed, size, width;  // normed: queries and keys; width: of a row of qkv
};

// Calls body(p, c) for a lane's pieces of a head, at elements c.
template <int kWidth, int kLanes, int kPieces, typename Body>
__device__ void each_piece(int size, Body&& body) {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
        const int c = (p * kLanes + static_cast<int>(threadIdx.x) % kLanes) * kWidth;
        if (c < size) body(p, c);
    }
}

template <typename Element, int kWidth, int kLanes, int kPieces>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const Heads heads, const float* q_weight, const float* k_weight, float eps, Element* qkv,
                   Element* kept, float* kept_rstd) {
    constexpr int kGroups = kThreads / kLanes;
    const int64_t index = int64_t{blockIdx.x} * kGroups + threadIdx.x / kLanes;
    const int64_t t = index / heads.normed;
    const int h = static_cast<int>(index - t * heads.normed);
    const bool inside = t < heads.tokens;  // all lanes take part in the sums
    Element* const head = qkv + t * heads.width + int64_t{h} * heads.size;
    const float* const weight = h < heads.queries ? q_weight : k_weight;
    Piece<Element, kWidth> values[kPieces];
    float squares = 0.0f;
    each_piece<kWidth, kLanes, kPieces>(inside ? heads.size : 0, [&](int p, int c) {
        values[p] = Piece<Element, kWidth>::load(head + c);
        for (int i = 0; i < kWidth; ++i) squares += values[p][i] * values[p][i];
    });
    const float mean = lanes_sum<kLanes>(squares) / static_cast<float>(heads.size);
    const float rstd = 1.0f / sqrtf(mean + eps);
    each_piece<kWidth, kLanes, kPieces>(inside ? heads.size : 0, [&](int p, int c) {
        float weights[kWidth], out[kWidth];
        load_floats(weight + c, weights);
        for (int i = 0; i < kWidth; ++i) out[i] = values[p][i] * rstd * weights[i];
        store_floats(out, head + c);
        if (kept != nullptr) values[p].store(kept + index * heads.size + c);
    });
    if (kept != nullptr && inside && threadIdx.x % kLanes == 0) kept_rstd[index] = rstd;
}

// The queries of a chunk of tokens, then its keys; `parts` [chunks, 2, size].
template <typename Element, int kWidth, int kLanes, int kPieces>
__global__ void __launch_bounds__(kThreads, kPieces == 1 ? 4 : 1)
    backward_kernel(const Heads heads, const float* q_weight, const float* k_weight, const Element* kept,
                    const float* kept_rstd, Element* dqkv, float* parts) {
    constexpr int kGroups = kThreads / kLanes, kSize = kLanes * kPieces * kWidth;
    __shared__ float sums[kGroups][kSize];
    const int group = static_cast<int>(threadIdx.x) / kLanes;
    const int64_t first = blockIdx.x * kChunk;
    const int tokens = static_cast<int>(min(kChunk, heads.tokens - first));
    for (int is_key = 0; is_key < 2; ++is_key) {
        const float* const weight = is_key ? k_weight : q_weight;
        const int head0 = is_key ? heads.queries : 0;
        const int count = is_key ? heads.normed - heads.queries : heads.queries;
        float weights[kPieces][kWidth], dweights[kPieces][kWidth] = {};
        each_piece<kWidth, kLanes, kPieces>(heads.size,
                                            [&](int p, int c) { load_floats(weight + c, weights[p]); });
        const int rounds = (tokens * count + kGroups - 1) / kGroups;
        for (int round = 0; round < rounds; round += kInFlight) {
            Piece<Element, kWidth> values[kInFlight][kPieces], gradients[kInFlight][kPieces];
            Element* gradient[kInFlight];
            float rstd[kInFlight];
            int size[kInFlight];  // 0 beyond the chunk: all lanes take part in the sums
#pragma unroll
            for (int n = 0; n < kInFlight; ++n) {
                const int index = (round + n) * kGroups + group, h = head0 + index % count;
                const int64_t t = first + index / count;
                size[n] = index < tokens * count ? heads.size : 0;
                gradient[n] = dqkv + t * heads.width + int64_t{h} * heads.size;
                rstd[n] = size[n] > 0 ? kept_rstd[t * heads.normed + h] : 0.0f;
                each_piece<kWidth, kLanes, kPieces>(size[n], [&](int p, int c) {
                    const Element* const head = kept + (t * heads.normed + h) * heads.size;
                    values[n][p] = Piece<Element, kWidth>::load(head + c);
                    gradients[n][p] = Piece<Element, kWidth>::load(gradient[n] + c);
                });
            }
#pragma unroll
            for (int n = 0; n < kInFlight; ++n) {
                float dot = 0.0f;
                each_piece<kWidth, kLanes, kPieces>(size[n], [&](int p, int) {
                    for (int i = 0; i < kWidth; ++i) {
                        const float normed = values[n][p][i] * rstd[n];
                        dot += gradients[n][p][i] * weights[p][i] * normed;
                        dweights[p][i] += gradients[n][p][i] * normed;
                    }
                });
                const float mean = lanes_sum<kLanes>(dot) / static_cast<float>(heads.size);
                each_piece<kWidth, kLanes, kPieces>(size[n], [&](int p, int c) {
                    float out[kWidth];
                    for (int i = 0; i < kWidth; ++i) {
                        const float normed = values[n][p][i] * rstd[n];
                        out[i] = rstd[n] * (gradients[n][p][i] * weights[p][i] - normed * mean);
                    }
                    store_floats(out, gradient[n] + c);
                });
            }
        }
        each_piece<kWidth, kLanes, kPieces>(heads.size, [&](int p, int c) {
            for (int i = 0; i < kWidth; ++i) sums[group][c + i] = dweights[p][i];
        });
        __syncthreads();
        for (int c = static_cast<int>(threadIdx.x); c < heads.size; c += kThreads) {
            float sum = 0.0f;
            for (int g = 0; g < kGroups; ++g) sum += sums[g][c];
            parts[(int64_t{blockIdx.x} * 2 + is_key) * heads.size + c] = sum;
        }
        __syncthreads();
    }
}

// Calls body(Constant<width>(), Constant<lanes>(), Constant<pieces>()) with what a head of `size` needs.
template <typename Element, typename Body>
void with_shape(bool wide, int64_t size, Body&& body) {
    constexpr int kWidth = kPerAccess<Element>;
    const int64_t pieces = wide ? size / kWidth : size;
    require(pieces <= (wide ? 2 : 8) * kWarp, "qk_norm: heads of {} are too large for the GPU", size);
    if (!wide) {
        body(Constant<1>(), Constant<kWarp>(), Constant<8>());
    } else if (pieces <= 8) {
        body(Constant<kWidth>(), Constant<8>(), Constant<1>());
    } else if (pieces <= 16) {
        body(Constant<kWidth>(), Constant<16>(), Constant<1>());
    } else if (pieces <= 32) {
        body(Constant<kWidth>(), Constant<32>(), Constant<1>());
    } else {
        body(Constant<kWidth>(), Constant<32>(), Constant<2>());
    }
}

Heads heads_of(const AttentionShape& shape, const Tensor& qkv) {
    return {qkv.rows(), static_cast<int>(shape.heads), static_cast<int>(shape.heads + shape.kv_heads),
            static_cast<int>(shape.head_dim), static_cast<int>(qkv.cols())};
}

}  // namespace

void qk_norm_forward(Context& context, const AttentionShape& shape, const Tensor& qkv, const Tensor& q_weight,
                     const Tensor& k_weight, float eps, const Tensor& x, const Tensor& rstd) {
    const Heads heads = heads_of(shape, qkv);
    const bool keeps = x.shape.rank() > 0;
    with_elements(qkv, [&]<typename Element>(Element* values) {
        Element* const kept = keeps ? x.as<Element>() : nullptr;
        const bool wide = fits_width<Element>(kPerAccess<Element>, heads.size, {values, kept}) &&
                          fits_width<float>(4, heads.size, {q_weight.as<float>(), k_weight.as<float>()});
        with_shape<Element>(wide, heads.size, [&](auto width, auto lanes, auto pieces) {
            const int64_t blocks = divide_up<int64_t>(heads.tokens * heads.normed, kThreads / lanes());
            launch(context, forward_kernel<Element, width(), lanes(), pieces()>,
                   static_cast<unsigned>(blocks), kThreads, 0, heads, q_weight.as<float>(),
                   k_weight.as<float>(), eps, values, kept, keeps ? rstd.as<float>() : nullptr);
        });
    });
}

void qk_norm_backward(Context& context, const AttentionShape& shape, const Tensor& dqkv,
                      const Tensor& q_weight, const Tensor& k_weight, const Tensor& x, const Tensor& rstd,
                      const Tensor& dq_weight, const Tensor& dk_weight) {
    const Heads heads = heads_of(shape, dqkv);
    const int64_t chunks = divide_up(heads.tokens, kChunk), size = heads.size;
    const ArenaScope scope(context.arena);
    const Tensor sums = context.arena.allocate(DType::f32, {chunks, 2, size});
    if (context.planning()) return;
    auto* const parts = sums.as<float>();
    with_elements(dqkv, [&]<typename Element>(Element* gradients) {
        const auto* kept = x.as<Element>();
        const bool wide = fits_width<Element>(kPerAccess<Element>, size, {gradients, kept}) &&
                          fits_width<float>(4, size, {q_weight.as<float>(), k_weight.as<float>()});
        with_shape<Element>(wide, size, [&](auto width, auto lanes, auto pieces) {
            launch(context, backward_kernel<Element, width(), lanes(), pieces()>,
                   static_cast<unsigned>(chunks), kThreads, 0, heads, q_weight.as<float>(),
                   k_weight.as<float>(), kept, rstd.as<float>(), gradients, parts);
        });
    });
    add_parts(context, chunks, size, 2 * size, parts, dq_weight.as<float>());
    add_parts(context, chunks, size, 2 * size, parts + size, dk_weight.as<float>());
}

}  // namespace nibble::cuda
