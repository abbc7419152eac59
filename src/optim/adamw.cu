// One launch for all tensors: a block takes a chunk of one of them.
#include <vector>

#include "core/cuda_vector.cuh"
#include "optim/cuda_forms.h"
#include "optim/moments.h"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 8192;  // elements

struct Chunk {
    const void* gradient;  // of BF16 where `narrow_gradient`, else of F32
    float* master;
    void *m, *v;
    int64_t first;  // its first element's place in the tensor
    int32_t count;
    uint16_t tensor;
    bool decay, wide, narrow_gradient;
};

// The order of operations of adamw_reference().
__device__ void update_element(const AdamWFactors& f, float keep, float gradient, float& master, float& m,
                               float& v) {
    const float g = f.gradient * gradient;
    m = f.beta1 * m + f.rest1 * g;
    v = f.beta2 * v + f.rest2 * (g * g);
    const float root = sqrtf(v * f.correction2) + f.epsilon;
    master = master * keep - f.lr * ((m * f.correction1) / root);
}

__device__ void store_moments(const float (&from)[4], float* to, const Philox&, int) {
    store_floats(from, to);
}
__device__ void store_moments(const float (&from)[1], float* to, const Philox&, int) { *to = from[0]; }
template <int kWidth>
__device__ void store_moments(const float (&from)[kWidth], Bf16* to, const Philox& coins, int first_coin) {
    Piece<Bf16, kWidth> piece{};
    for (int j = 0; j < kWidth; ++j)
        piece.words[j / 2] |=
            static_cast<uint32_t>(bf16_round_stochastic(from[j], coins.coin(first_coin + 2 * j)).bits)
            << (16 * (j % 2));
    piece.store(to);
}

template <int kWidth, typename Gradient, typename Moment>
__device__ void update_chunk(const AdamWFactors& f, const Chunk& chunk) {
    static_assert(kWidth == 1 || kWidth == kMomentCoins);
    const float keep = chunk.decay ? f.keep : 1.0f;
    const auto* const gradient = static_cast<const Gradient*>(chunk.gradient);
    auto *const m_of = static_cast<Moment*>(chunk.m), *const v_of = static_cast<Moment*>(chunk.v);
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x) * kWidth; i < chunk.count; i += kThreads * kWidth) {
        float g[kWidth], w[kWidth], m[kWidth], v[kWidth];
        load_floats(gradient + i, g);
        load_floats(chunk.master + i, w);
        load_floats(m_of + i, m);
        load_floats(v_of + i, v);
        for (int j = 0; j < kWidth; ++j) update_element(f, keep, g[j], w[j], m[j], v[j]);
        store_floats(w, chunk.master + i);
        const int64_t at = chunk.first + i;
        Philox coins{};
        if constexpr (std::is_same_v<Moment, Bf16>)
            coins = moment_coins(f.seed, f.update, chunk.tensor, at / kMomentCoins);
        // Known here for whole pieces, so that the draw stays in registers.
        const int coin = kWidth == kMomentCoins ? 0 : 2 * static_cast<int>(at % kMomentCoins);
        store_moments(m, m_of + i, coins, coin);
        store_moments(v, v_of + i, coins, coin + 1);
    }
}

template <typename Gradient, typename Moment>
__device__ void update_chunk(const AdamWFactors& f, const Chunk& chunk) {
    if (chunk.wide) {
        update_chunk<4, Gradient, Moment>(f, chunk);
    } else {
        update_chunk<1, Gradient, Moment>(f, chunk);
    }
}

__global__ void set_kernel(const AdamWFactors factors, AdamWFactors* there) { *there = factors; }

template <typename Moment>
__global__ void __launch_bounds__(kThreads)
    update_kernel(const Chunk* chunks, const AdamWFactors* of_update, const float* gradient_factor) {
    const Chunk chunk = chunks[blockIdx.x];
    AdamWFactors factors = *of_update;
    if (gradient_factor != nullptr) factors.gradient *= *gradient_factor;
    if (isnan(factors.gradient)) return;
    if (chunk.narrow_gradient) {
        update_chunk<Bf16, Moment>(factors, chunk);
    } else {
        update_chunk<float, Moment>(factors, chunk);
    }
}

}  // namespace

Buffer adamw_chunks(std::span<const OptimizedTensor> tensors, std::span<const AdamW::State> state) {
    std::vector<Chunk> chunks;
    for (size_t t = 0; t < tensors.size(); ++t) {
        const Tensor &master = tensors[t].master, &gradient = tensors[t].gradient;
        const Tensor &m = state[t].m, &v = state[t].v;
        // Four neighbours lie together in each of them.
        const auto is_aligned = [](const Tensor& x) {
            return reinterpret_cast<uintptr_t>(x.data) % (4 * size_of(x.dtype)) == 0;
        };
        const bool wide = is_aligned(gradient) && is_aligned(master) && is_aligned(m) && is_aligned(v);
        const auto at = [](const Tensor& x, int64_t i) {
            return static_cast<void*>(static_cast<std::byte*>(x.data) +
                                      static_cast<size_t>(i) * size_of(x.dtype));
        };
        const int64_t count = master.count();
        for (int64_t first = 0; first < count; first += kChunk) {
            const int64_t left = std::min(kChunk, count - first), whole = wide ? left / 4 * 4 : left;
            const auto add = [&](int64_t begin, int64_t size, bool is_wide) {
                if (size == 0) return;
                chunks.push_back({.gradient = at(gradient, begin),
                                  .master = static_cast<float*>(at(master, begin)),
                                  .m = at(m, begin),
                                  .v = at(v, begin),
                                  .first = begin,
                                  .count = static_cast<int32_t>(size),
                                  .tensor = static_cast<uint16_t>(t),
                                  .decay = tensors[t].decay,
                                  .wide = is_wide,
                                  .narrow_gradient = gradient.dtype == DType::bf16});
            };
            add(first, whole, wide);
            add(first + whole, left - whole, false);
        }
    }
    Buffer table(chunks.size() * sizeof(Chunk), Device::cuda);
    check(cudaMemcpy(table.data(), chunks.data(), table.bytes(), cudaMemcpyHostToDevice), "copy to the GPU");
    return table;
}

void set_adamw_factors(const Context& context, const AdamWFactors& factors, AdamWFactors* there) {
    launch(context, set_kernel, 1, 1, 0, factors, there);
}

void adamw_update(Context& context, const Buffer& chunks, const AdamWFactors* factors,
                  const float* gradient_factor, DType moments) {
    launch(context, moments == DType::bf16 ? update_kernel<Bf16> : update_kernel<float>,
           static_cast<unsigned>(chunks.bytes() / sizeof(Chunk)), kThreads, 0,
           reinterpret_cast<const Chunk*>(chunks.data()), factors, gradient_factor);
}

}  // namespace nibble::cuda
