// One block a row: each thread keeps its columns of the row in registers, so that memory is read once.
#include "core/cuda_vector.cuh"
#include "nn/add_parts.cuh"
#include "nn/cuda_forms.h"

namespace nibble::cuda {

namespace {

constexpr int kMostThreads = 512;
// Rows whose gradients of the weight a block sums: few enough that there are blocks for a whole GPU.
constexpr int64_t kWideChunk = 32, kNarrowChunk = 16;
int64_t rows_of_chunk(int64_t cols) { return cols > 768 ? kWideChunk : kNarrowChunk; }

struct Forward {
    int64_t rows, cols;
    const void *x, *delta;
    const float* weight;
    float eps;
    void *sum, *y;
    float *rstd, *amax;
};

struct Backward {
    int64_t rows, cols, chunk;
    const void *dy, *x;
    const float *weight, *rstd;
    const void* d_sum;
    void* dx;
    float* parts;  // [chunks, cols]
};

// Calls body(p, c) for a thread's pieces of a row, at columns c: kPieces of them, or any number (0).
template <int kWidth, int kPieces, typename Body>
__device__ void each_piece(int64_t cols, Body&& body) {
    if constexpr (kPieces > 0) {
#pragma unroll
        for (int p = 0; p < kPieces; ++p) {
            const int c = (p * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * kWidth;
            if (c < cols) body(p, c);
        }
    } else {
        for (int64_t c = int64_t{threadIdx.x} * kWidth; c < cols; c += int64_t{blockDim.x} * kWidth)
            body(0, c);
    }
}

template <typename Element, int kWidth, int kPieces>
__global__ void __launch_bounds__(kMostThreads) forward_kernel(const Forward n) {
    using Values = Piece<Element, kWidth>;
    constexpr bool kHolds = kPieces > 0;
    __shared__ float warp_sums[2][kWarp];
    const auto* x = static_cast<const Element*>(n.x);
    const auto* delta = static_cast<const Element*>(n.delta);
    auto* sum = static_cast<Element*>(n.sum);
    auto* y = static_cast<Element*>(n.y);
    constexpr bool kFetches = kPieces >= 2;  // the next row, while this one waits for its sum
    constexpr int kHeld = kHolds ? kPieces : 1;
    Values held[kHeld], added[kHeld], next[kHeld], next_added[kHeld];
    float weights[kHeld][kWidth];
    if constexpr (kHolds)
        each_piece<kWidth, kPieces>(n.cols, [&](int p, int64_t c) { load_floats(n.weight + c, weights[p]); });
    const auto fetch = [&](int64_t t) {
        if (t >= n.rows) return;
        each_piece<kWidth, kPieces>(n.cols, [&](int p, int64_t c) {
            next[p] = Values::load(x + t * n.cols + c);
            if (delta != nullptr) next_added[p] = Values::load(delta + t * n.cols + c);
        });
    };
    if constexpr (kFetches) fetch(blockIdx.x);
    float largest = 0.0f;
    int turn = 0;
    for (int64_t t = blockIdx.x; t < n.rows; t += gridDim.x, turn ^= 1) {
        const int64_t row = t * n.cols;
        if constexpr (kFetches) {
            for (int p = 0; p < kHeld; ++p) {
                held[p] = next[p];
                added[p] = next_added[p];
            }
            fetch(t + gridDim.x);
        }
        float squares = 0.0f;
        each_piece<kWidth, kPieces>(n.cols, [&](int p, int64_t c) {
            if constexpr (!kFetches) held[p] = Values::load(x + row + c);
            if (delta != nullptr) {
                if constexpr (!kFetches) added[p] = Values::load(delta + row + c);
                float both[kWidth];
                for (int i = 0; i < kWidth; ++i) both[i] = held[p][i] + added[p][i];
                held[p] = Values::of(both);
                held[p].store(sum + row + c);
            }
            for (int i = 0; i < kWidth; ++i) squares += held[p][i] * held[p][i];
        });
        const float mean = block_sum(squares, warp_sums[turn]) / static_cast<float>(n.cols);
        const float rstd = 1.0f / sqrtf(mean + n.eps);
        if (threadIdx.x == 0) n.rstd[t] = rstd;
        each_piece<kWidth, kPieces>(n.cols, [&](int p, int64_t c) {
            if constexpr (!kHolds) {
                held[p] = Values::load((delta != nullptr ? sum : x) + row + c);
                load_floats(n.weight + c, weights[p]);
            }
            float out[kWidth];
            for (int i = 0; i < kWidth; ++i) {
                out[i] = held[p][i] * rstd * weights[p][i];
                largest = fmaxf(largest, fabsf(out[i]));
            }
            store_floats(out, y + row + c);
        });
    }
    if (n.amax == nullptr) return;
    float rounded[1] = {largest};  // rounding keeps the order
    raise_to(n.amax, Piece<Element, 1>::of(rounded)[0]);
}

template <typename Element, int kWidth, int kPieces>
__global__ void __launch_bounds__(kMostThreads) backward_kernel(const Backward n) {
    using Values = Piece<Element, kWidth>;
    constexpr bool kHolds = kPieces > 0;
    constexpr bool kHoldsWeights = kHolds && kPieces <= 2;  // more than that spills
    constexpr int kHeld = kHolds ? kPieces : 1;
    __shared__ float warp_sums[2][kWarp];
    const auto* dy = static_cast<const Element*>(n.dy);
    const auto* x = static_cast<const Element*>(n.x);
    const auto* d_sum = static_cast<const Element*>(n.d_sum);
    auto* dx = static_cast<Element*>(n.dx);
    float* const parts = n.parts + blockIdx.x * n.cols;
    struct Held {
        Values dy, x, past;
    };
    Held held[kHeld];
    float weights[kHeld][kWidth], sums[kHeld][kWidth] = {};
    each_piece<kWidth, kPieces>(n.cols, [&](int p, int64_t c) {
        if constexpr (kHoldsWeights) load_floats(n.weight + c, weights[p]);
        if constexpr (!kHolds) store_floats(sums[p], parts + c);
    });
    const int64_t first = blockIdx.x * n.chunk, end = min(n.rows, first + n.chunk);
    const auto load = [&](int64_t t, int64_t c, Held& to) {
        to.dy = Values::load(dy + t * n.cols + c);
        to.x = Values::load(x + t * n.cols + c);
        if (d_sum != nullptr) to.past = Values::load(d_sum + t * n.cols + c);
    };
    int turn = 0;
    for (int64_t t = first; t < end; ++t, turn ^= 1) {
        const float rstd = n.rstd[t];
        if constexpr (kHolds)
            each_piece<kWidth, kPieces>(n.cols, [&](int p, int64_t c) { load(t, c, held[p]); });
        float dot = 0.0f;
        each_piece<kWidth, kPieces>(n.cols, [&](int p, int64_t c) {
            if constexpr (!kHolds) load(t, c, held[p]);
            if constexpr (!kHoldsWeights) load_floats(n.weight + c, weights[p]);
            for (int i = 0; i < kWidth; ++i) dot += held[p].dy[i] * weights[p][i] * held[p].x[i];
        });
        const float mean = block_sum(dot, warp_sums[turn]) * rstd / static_cast<float>(n.cols);
        each_piece<kWidth, kPieces>(n.cols, [&](int p, int64_t c) {
            if constexpr (!kHolds) {
                load(t, c, held[p]);
                load_floats(parts + c, sums[p]);
            }
            if constexpr (!kHoldsWeights) load_floats(n.weight + c, weights[p]);
            float out[kWidth];
            for (int i = 0; i < kWidth; ++i) {
                const float g = held[p].dy[i], xhat = held[p].x[i] * rstd;
                const float past = d_sum != nullptr ? held[p].past[i] : 0.0f;
                out[i] = past + rstd * (g * weights[p][i] - xhat * mean);
                sums[p][i] += g * xhat;
            }
            store_floats(out, dx + t * n.cols + c);
            if constexpr (!kHolds) store_floats(sums[p], parts + c);
        });
    }
    if constexpr (kHolds)
        each_piece<kWidth, kPieces>(n.cols, [&](int p, int64_t c) { store_floats(sums[p], parts + c); });
}

int threads_for(int64_t pieces) { return static_cast<int>(divide_up<int64_t>(pieces, kWarp) * kWarp); }

// Calls body(Constant<width>(), Constant<pieces>(), threads) with what a row of `cols` elements needs.
template <typename Element, typename Body>
void with_shape(bool wide, int64_t cols, Body&& body) {
    constexpr int kWidth = kPerAccess<Element>;
    const int64_t pieces = cols / kWidth;
    if (!wide || pieces > 4 * kMostThreads) {
        with_width<Element>(wide, [&](auto width) { body(width, Constant<0>(), kMostThreads / 2); });
    } else if (pieces <= kMostThreads / 2) {
        body(Constant<kWidth>(), Constant<1>(), threads_for(pieces));
    } else if (pieces <= kMostThreads) {
        body(Constant<kWidth>(), Constant<2>(), threads_for(divide_up<int64_t>(pieces, 2)));
    } else {
        body(Constant<kWidth>(), Constant<4>(), threads_for(divide_up<int64_t>(pieces, 4)));
    }
}

}  // namespace

void rmsnorm_forward(Context& context, const Tensor& x, const Tensor& delta, const Tensor& weight, float eps,
                     const Tensor& sum, const Tensor& y, const Tensor& rstd, float* amax) {
    if (context.planning()) return;
    const Forward args{x.rows(), x.cols(), x.data, delta.data,       weight.as<float>(),
                       eps,      sum.data, y.data, rstd.as<float>(), amax};
    if (amax != nullptr)
        check(cudaMemsetAsync(amax, 0, sizeof(float), context.stream), "clearing memory of the GPU");
    with_elements(y, [&]<typename Element>(Element* out) {
        constexpr int kWidth = kPerAccess<Element>;
        const bool has_delta = delta.data != nullptr;
        const bool wide =
            fits_width<Element>(kWidth, args.cols,
                                {x.as<Element>(), out, has_delta ? delta.as<Element>() : nullptr,
                                 has_delta ? sum.as<Element>() : nullptr}) &&
            fits_width<float>(4, args.cols, {args.weight});
        with_shape<Element>(wide, args.cols, [&](auto width, auto pieces, int threads) {
            launch(context, forward_kernel<Element, width(), pieces()>, resident_blocks(args.rows, threads),
                   threads, 0, args);
        });
    });
}

void rmsnorm_backward(Context& context, const Tensor& dy, const Tensor& x, const Tensor& weight,
                      const Tensor& rstd, const Tensor& d_sum, const Tensor& dx, const Tensor& dweight) {
    const int64_t rows = x.rows(), cols = x.cols(), chunk = rows_of_chunk(cols);
    const int64_t chunks = divide_up(rows, chunk);
    const ArenaScope scope(context.arena);
    const Tensor parts = context.arena.allocate(DType::f32, {chunks, cols});
    if (context.planning()) return;
    const Backward args{rows,
                        cols,
                        chunk,
                        dy.data,
                        x.data,
                        weight.as<float>(),
                        rstd.as<float>(),
                        d_sum.data,
                        dx.data,
                        parts.as<float>()};
    with_elements(dx, [&]<typename Element>(Element* out) {
        constexpr int kWidth = kPerAccess<Element>;
        const bool wide = fits_width<Element>(kWidth, cols,
                                              {x.as<Element>(), dy.as<Element>(), out,
                                               d_sum.data != nullptr ? d_sum.as<Element>() : nullptr}) &&
                          fits_width<float>(4, cols, {args.weight});
        with_shape<Element>(wide, cols, [&](auto width, auto pieces, int threads) {
            launch(context, backward_kernel<Element, width(), pieces()>, static_cast<unsigned>(chunks),
                   threads, 0, args);
        });
    });
    add_parts(context, chunks, cols, cols, args.parts, dweight.as<float>());
}

}  // namespace nibble::cuda
