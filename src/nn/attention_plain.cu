// Causal attention, readable: a block of threads computes one row of the result, in tiles of the rows that it
// reads. Its warps share out the scores of a tile; then every thread sums its columns of the row.
#include <cmath>

#include "core/cuda_check.cuh"
#include "nn/attention_cuda.h"
#include "nn/element.h"

namespace nibble::cuda {

namespace {

constexpr int kTile = 128;  // rows, and threads of a block
constexpr int kWarps = kTile / kWarp;

// Sizes, and where the rows of a head begin.
struct Heads {
    int64_t sequence, width;  // of a row of qkv
    int count, kv_count, size;
    float scale;

    explicit Heads(const AttentionShape& s)
        : sequence(s.sequence),
          width((s.heads + 2 * int64_t{s.kv_heads}) * s.head_dim),
          count(s.heads),
          kv_count(s.kv_heads),
          size(s.head_dim),
          scale(static_cast<float>(1.0 / std::sqrt(static_cast<double>(s.head_dim)))) {}

    __device__ int64_t q(int64_t row, int head) const { return row * width + int64_t{head} * size; }
    __device__ int64_t k(int64_t row, int kv) const { return q(row, count + kv); }
    __device__ int64_t v(int64_t row, int kv) const { return k(row, kv_count + kv); }
    __device__ int64_t out(int64_t row, int head) const { return (row * count + head) * size; }
    // Of logsumexp: [sequences, heads, sequence].
    __device__ int64_t lse(int64_t row, int head) const {
        return (row / sequence * count + head) * sequence + row % sequence;
    }
    __device__ int group() const { return count / kv_count; }
};

// The sum over a warp's lanes, in every lane.
__device__ float warp_sum(float x) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

__device__ float warp_max(float x) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

// The sum of a[i] * b(i) for i < count, in every lane of the warp.
template <typename Values>
__device__ float warp_dot(const float* a, Values b, int count) {
    float sum = 0;
    for (int i = threadIdx.x % kWarp; i < count; i += kWarp) sum = fmaf(a[i], b(i), sum);
    return warp_sum(sum);
}

// Copies a row to shared memory.
template <typename Element>
__device__ void load_row(const Element* from, int count, float* to) {
    for (int i = threadIdx.x; i < count; i += kTile) to[i] = load_as<float>(from[i]);
}

// One row of queries of one head: grid (rows, heads).
template <typename Element>
__global__ void __launch_bounds__(kTile)
    forward_kernel(Heads heads, const Element* qkv, Element* out, float* logsumexp) {
    float* const rows = dynamic_shared<float>();
    __shared__ float p[kTile];
    float* const q = rows;
    float* const sum = q + heads.size;
    const int64_t row = blockIdx.x, first = row - row % heads.sequence;
    const int head = blockIdx.y, kv = head / heads.group();
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

    load_row(qkv + heads.q(row, head), heads.size, q);
    for (int d = threadIdx.x; d < heads.size; d += kTile) sum[d] = 0;
    float max = -INFINITY, total = 0;
    __syncthreads();
    for (int64_t begin = first; begin <= row; begin += kTile) {
        const int keys = static_cast<int>(min(int64_t{kTile}, row + 1 - begin));
        for (int j = warp; j < kTile; j += kWarps) {
            const Element* const k = qkv + heads.k(begin + j, kv);
            const float score =
                j < keys ? heads.scale * warp_dot(
                                             q, [&](int i) { return load_as<float>(k[i]); }, heads.size)
                         : -INFINITY;
            if (lane == 0) p[j] = score;
        }
        __syncthreads();
        float tile_max = -INFINITY;  // every warp finds the same one
        for (int j = lane; j < kTile; j += kWarp) tile_max = fmaxf(tile_max, p[j]);
        const float new_max = fmaxf(max, warp_max(tile_max));
        const float rescale = expf(max - new_max);
        max = new_max;
        __syncthreads();
        p[threadIdx.x] = expf(p[threadIdx.x] - max);
        __syncthreads();
        float tile_total = 0;
        for (int j = lane; j < kTile; j += kWarp) tile_total += p[j];
        total = fmaf(total, rescale, warp_sum(tile_total));
        for (int d = threadIdx.x; d < heads.size; d += kTile) {
            float x = sum[d] * rescale;
            for (int j = 0; j < keys; ++j) x = fmaf(p[j], load_as<float>(qkv[heads.v(begin + j, kv) + d]), x);
            sum[d] = x;
        }
        __syncthreads();
    }
    for (int d = threadIdx.x; d < heads.size; d += kTile)
        out[heads.out(row, head) + d] = store_as<Element>(sum[d] / total);
    if (threadIdx.x == 0) logsumexp[heads.lse(row, head)] = max + logf(total);
}

// With p = exp(scale * q·k - logsumexp) and ds = p dout·(v - out):  dq = scale * sum of ds k over the keys,
// dk = scale * sum of ds q and dv = sum of p dout over the queries of the group's heads.

// dq of one row of queries of one head: grid (rows, heads).
template <typename Element>
__global__ void __launch_bounds__(kTile)
    dq_kernel(Heads heads, const Element* dout, const Element* qkv, const Element* out,
              const float* logsumexp, Element* dqkv) {
    float* const rows = dynamic_shared<float>();
    __shared__ float ds[kTile];
    float* const q = rows;
    float* const d_row = q + heads.size;
    float* const out_row = d_row + heads.size;
    float* const sum = out_row + heads.size;
    const int64_t row = blockIdx.x, first = row - row % heads.sequence;
    const int head = blockIdx.y, kv = head / heads.group();
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const float lse = logsumexp[heads.lse(row, head)];

    load_row(qkv + heads.q(row, head), heads.size, q);
    load_row(dout + heads.out(row, head), heads.size, d_row);
    load_row(out + heads.out(row, head), heads.size, out_row);
    for (int d = threadIdx.x; d < heads.size; d += kTile) sum[d] = 0;
    __syncthreads();
    for (int64_t begin = first; begin <= row; begin += kTile) {
        const int keys = static_cast<int>(min(int64_t{kTile}, row + 1 - begin));
        for (int j = warp; j < keys; j += kWarps) {
            const Element* const k = qkv + heads.k(begin + j, kv);
            const Element* const v = qkv + heads.v(begin + j, kv);
            const float score = warp_dot(
                q, [&](int i) { return load_as<float>(k[i]); }, heads.size);
            const float dp = warp_dot(
                d_row, [&](int i) { return load_as<float>(v[i]) - out_row[i]; }, heads.size);
            if (lane == 0) ds[j] = expf(heads.scale * score - lse) * dp;
        }
        __syncthreads();
        for (int d = threadIdx.x; d < heads.size; d += kTile) {
            float x = sum[d];
            for (int j = 0; j < keys; ++j)
                x = fmaf(ds[j], load_as<float>(qkv[heads.k(begin + j, kv) + d]), x);
            sum[d] = x;
        }
        __syncthreads();
    }
    for (int d = threadIdx.x; d < heads.size; d += kTile)
        dqkv[heads.q(row, head) + d] = store_as<Element>(heads.scale * sum[d]);
}

// dk and dv of one row of keys of one group: grid (rows, kv heads).
template <typename Element>
__global__ void __launch_bounds__(kTile)
    dkv_kernel(Heads heads, const Element* dout, const Element* qkv, const Element* out,
               const float* logsumexp, Element* dqkv) {
    float* const rows = dynamic_shared<float>();
    __shared__ float p[kTile], ds[kTile];
    float* const k = rows;
    float* const v = k + heads.size;
    float* const dk = v + heads.size;
    float* const dv = dk + heads.size;
    const int64_t row = blockIdx.x, end = row - row % heads.sequence + heads.sequence;
    const int kv = blockIdx.y;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

    load_row(qkv + heads.k(row, kv), heads.size, k);
    load_row(qkv + heads.v(row, kv), heads.size, v);
    for (int d = threadIdx.x; d < heads.size; d += kTile) dk[d] = dv[d] = 0;
    __syncthreads();
    for (int head = kv * heads.group(); head < (kv + 1) * heads.group(); ++head) {
        for (int64_t begin = row; begin < end; begin += kTile) {
            const int queries = static_cast<int>(min(int64_t{kTile}, end - begin));
            for (int j = warp; j < queries; j += kWarps) {
                const Element* const q = qkv + heads.q(begin + j, head);
                const Element* const d_row = dout + heads.out(begin + j, head);
                const Element* const out_row = out + heads.out(begin + j, head);
                const float score = warp_dot(
                    k, [&](int i) { return load_as<float>(q[i]); }, heads.size);
                float dp = 0;
                for (int i = lane; i < heads.size; i += kWarp)
                    dp = fmaf(load_as<float>(d_row[i]), v[i] - load_as<float>(out_row[i]), dp);
                dp = warp_sum(dp);
                if (lane == 0) {
                    p[j] = expf(heads.scale * score - logsumexp[heads.lse(begin + j, head)]);
                    ds[j] = p[j] * dp;
                }
            }
            __syncthreads();
            for (int d = threadIdx.x; d < heads.size; d += kTile) {
                float x = dk[d], y = dv[d];
                for (int j = 0; j < queries; ++j) {
                    x = fmaf(ds[j], load_as<float>(qkv[heads.q(begin + j, head) + d]), x);
                    y = fmaf(p[j], load_as<float>(dout[heads.out(begin + j, head) + d]), y);
                }
                dk[d] = x;
                dv[d] = y;
            }
            __syncthreads();
        }
    }
    for (int d = threadIdx.x; d < heads.size; d += kTile) {
        dqkv[heads.k(row, kv) + d] = store_as<Element>(heads.scale * dk[d]);
        dqkv[heads.v(row, kv) + d] = store_as<Element>(dv[d]);
    }
}

dim3 grid(const Tensor& qkv, int heads) {
    return {static_cast<unsigned>(qkv.rows()), static_cast<unsigned>(heads), 1};
}

// Shared memory for so many rows of a head.
size_t shared_rows(const AttentionShape& shape, int count) {
    const size_t bytes = sizeof(float) * count * shape.head_dim;
    require(bytes <= 40 * 1024, "attention: heads of {} are too large for a GPU; the most is {}",
            shape.head_dim, 40 * 1024 / sizeof(float) / count);
    return bytes;
}

}  // namespace

void plain_attention_forward(Context& context, const AttentionShape& shape, const Tensor& qkv,
                             const Tensor& out, const Tensor& logsumexp) {
    const size_t shared = shared_rows(shape, 2);
    if (context.planning()) return;
    with_elements(qkv, [&]<typename Element>(const Element* x) {
        launch(context, forward_kernel<Element>, grid(qkv, shape.heads), kTile, shared, Heads(shape), x,
               out.as<Element>(), logsumexp.as<float>());
    });
}

void plain_attention_backward(Context& context, const AttentionShape& shape, const Tensor& dout,
                              const Tensor& qkv, const Tensor& out, const Tensor& logsumexp,
                              const Tensor& dqkv) {
    const size_t shared = shared_rows(shape, 4);
    if (context.planning()) return;
    with_elements(qkv, [&]<typename Element>(const Element* x) {
        const auto run = [&](auto kernel, int heads) {
            launch(context, kernel, grid(qkv, heads), kTile, shared, Heads(shape), dout.as<Element>(), x,
                   out.as<Element>(), logsumexp.as<float>(), dqkv.as<Element>());
        };
        run(dq_kernel<Element>, shape.heads);
        run(dkv_kernel<Element>, shape.kv_heads);
    });
}

}  // namespace nibble::cuda
