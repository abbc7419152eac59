// One launch for all tensors: a block takes a chunk of one of them.
#include <vector>

#include "core/cuda_vector.cuh"
#include "optim/cuda_forms.h"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 8192;  // elements

struct Chunk {
    const float* gradient;
    float *master, *m, *v;
    int32_t count;
    bool decay, wide;
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

template <int kWidth>
__device__ void update_chunk(const AdamWFactors& f, const Chunk& chunk) {
    const float keep = chunk.decay ? f.keep : 1.0f;
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x) * kWidth; i < chunk.count; i += kThreads * kWidth) {
        float g[kWidth], w[kWidth], m[kWidth], v[kWidth];
        load_floats(chunk.gradient + i, g);
        load_floats(chunk.master + i, w);
        load_floats(chunk.m + i, m);
        load_floats(chunk.v + i, v);
        for (int j = 0; j < kWidth; ++j) update_element(f, keep, g[j], w[j], m[j], v[j]);
        store_floats(w, chunk.master + i);
        store_floats(m, chunk.m + i);
        store_floats(v, chunk.v + i);
    }
}

__global__ void __launch_bounds__(kThreads)
    update_kernel(const Chunk* chunks, const __grid_constant__ AdamWFactors factors) {
    const Chunk chunk = chunks[blockIdx.x];
    if (chunk.wide) {
        update_chunk<4>(factors, chunk);
    } else {
        update_chunk<1>(factors, chunk);
    }
}

}  // namespace

Buffer adamw_chunks(std::span<const OptimizedTensor> tensors, std::span<const AdamW::State> state) {
    std::vector<Chunk> chunks;
    for (size_t t = 0; t < tensors.size(); ++t) {
        const auto* gradient = tensors[t].gradient.as<float>();
        auto *master = tensors[t].master.as<float>(), *m = state[t].m.as<float>(),
             *v = state[t].v.as<float>();
        const bool wide = fits_width<float>(4, 4, {gradient, master, m, v});
        const int64_t count = tensors[t].master.count();
        for (int64_t at = 0; at < count; at += kChunk) {
            const int64_t left = std::min(kChunk, count - at), whole = wide ? left / 4 * 4 : left;
            const auto add = [&](int64_t begin, int64_t size, bool is_wide) {
                if (size == 0) return;
                chunks.push_back({gradient + begin, master + begin, m + begin, v + begin,
                                  static_cast<int32_t>(size), tensors[t].decay, is_wide});
            };
            add(at, whole, wide);
            add(at + whole, left - whole, false);
        }
    }
    Buffer table(chunks.size() * sizeof(Chunk), Device::cuda);
    check(cudaMemcpy(table.data(), chunks.data(), table.bytes(), cudaMemcpyHostToDevice), "copy to the GPU");
    return table;
}

void adamw_update(Context& context, const Buffer& chunks, const AdamWFactors& factors) {
    launch(context, update_kernel, static_cast<unsigned>(chunks.bytes() / sizeof(Chunk)), kThreads, 0,
           reinterpret_cast<const Chunk*>(chunks.data()), factors);
}

}  // namespace nibble::cuda
