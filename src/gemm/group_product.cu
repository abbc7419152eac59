#include "gemm/group_product.h"

#include "core/cuda_check.cuh"
#include "gemm/pack.cuh"

namespace nibble::cuda {

namespace {

// A thread block makes 128 x 128 elements of C from 64 columns of A and B at a time; of these a warp makes
// 64 x 32, in pieces of 16 x 8, which an instruction multiplies by 16 columns.
constexpr int kTile = 128, kDepth = 64, kStages = 3, kThreads = 256;
constexpr int kWarpRows = 64, kWarpCols = 32, kPieceRows = 16, kPieceCols = 8, kStep = 16;
constexpr int kDown = kWarpRows / kPieceRows, kAcross = kWarpCols / kPieceCols;  // pieces of a warp
constexpr int kChunk = 8, kChunks = kDepth / kChunk;                             // of 16 bytes; in a line

struct Product {
    GroupOperand a, b;
    int64_t m, n, k;
    const float *alpha, *beta;
    bool in_pairs;  // neighbours in C are stored at once
};

// 64 columns of 128 rows of A and of B. Chunks are interchanged within a line, so that eight lines' are in all
// banks.
struct Stage {
    alignas(16) uint16_t a[kTile * kDepth];
    alignas(16) uint16_t b[kTile * kDepth];

    static __device__ int at(int line, int chunk) {
        return line * kDepth + (chunk ^ line % kChunks) * kChunk;
    }
};

// Zeros where the matrix ends.
__device__ __forceinline__ void load_tile(const GroupOperand& from, int64_t first_row, int64_t rows,
                                          int64_t first_col, int64_t cols, uint16_t* to) {
#pragma unroll
    for (int i = 0; i < kTile * kChunks / kThreads; ++i) {
        const int at = i * kThreads + static_cast<int>(threadIdx.x), line = at / kChunks, chunk = at % kChunks;
        const int64_t row = first_row + line, col = first_col + chunk * kChunk;
        const bool is_there = row < rows && col < cols;
        copy_async(to + Stage::at(line, chunk), from.values + (is_there ? row * from.stride + col : 0), is_there);
    }
}

// Of the rows and columns of C that a thread has.
struct Scales {
    float of_rows[kDown][2], of_cols[kAcross][2];

    __device__ __forceinline__ void load(const Product& p, int64_t row, int64_t col, int64_t k) {
#pragma unroll
        for (int i = 0; i < kDown; ++i)
            for (int half = 0; half < 2; ++half)
                of_rows[i][half] = scale_of(p.a, row + i * kPieceRows + half * 8, p.m, k);
#pragma unroll
        for (int j = 0; j < kAcross; ++j)
            for (int half = 0; half < 2; ++half)
                of_cols[j][half] = scale_of(p.b, col + j * kPieceCols + half, p.n, k);
    }

  private:
    static __device__ __forceinline__ float scale_of(const GroupOperand& from, int64_t row, int64_t rows,
                                                     int64_t k) {
        if (from.scales == nullptr) return 1.0f;
        return row < rows ? __ldg(from.scales + row * from.scale_stride + k / from.group) : 0.0f;
    }
};

using Pieces = float[kDown][kAcross][4];

__device__ __forceinline__ void add_scaled(const Scales& scales, Pieces& part, Pieces& sums) {
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
        for (int j = 0; j < kAcross; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                sums[i][j][e] += part[i][j][e] * (scales.of_rows[i][e / 2] * scales.of_cols[j][e % 2]);
                part[i][j][e] = 0.0f;
            }
        }
    }
}

// The products of 16 columns of a stage, for the warp's rows and columns of C.
__device__ __forceinline__ void multiply_step(const Stage& stage, int step, int first_row, int first_col,
                                              Pieces& part) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, line = lane % 8;
    const int chunk = step * kStep / kChunk;
    uint32_t a[kDown][4], b[kAcross / 2][4];
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
        const int row = first_row + i * kPieceRows + lane / 8 % 2 * 8 + line;
        load_matrices(stage.a + Stage::at(row, chunk + lane / 16), a[i]);
    }
#pragma unroll
    for (int j = 0; j < kAcross / 2; ++j) {
        const int row = first_col + j * 2 * kPieceCols + lane / 16 * 8 + line;
        load_matrices(stage.b + Stage::at(row, chunk + lane / 8 % 2), b[j]);
    }
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
        for (int j = 0; j < kAcross; ++j)
            multiply_add(a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], part[i][j]);
    }
}

template <int kGroup, typename Element>
__global__ void __launch_bounds__(kThreads, 1)
    group_product_kernel(const __grid_constant__ Product p, Element* c) {
    auto* const stages = dynamic_shared<Stage>();
    // Neighbouring thread blocks share rows of A and of B: bands of eight tiles of rows.
    constexpr unsigned kBand = 8;
    const auto down = static_cast<unsigned>(divide_up<int64_t>(p.m, kTile)),
               across = static_cast<unsigned>(divide_up<int64_t>(p.n, kTile));
    const unsigned band = blockIdx.x / (kBand * across), in_band = blockIdx.x % (kBand * across),
                   height = min(kBand, down - band * kBand);
    const int64_t first_row = int64_t{band * kBand + in_band % height} * kTile,
                  first_col = int64_t{in_band / height} * kTile;
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp_row = warp / (kTile / kWarpCols) * kWarpRows, warp_col = warp % (kTile / kWarpCols) * kWarpCols;
    // The first of this thread.
    const int64_t row = first_row + warp_row + lane / 4, col = first_col + warp_col + lane % 4 * 2;

    const int tiles = static_cast<int>(divide_up<int64_t>(p.k, kDepth));
    const auto load = [&](int tile) {
        if (tile < tiles) {
            Stage& stage = stages[tile % kStages];
            load_tile(p.a, first_row, p.m, int64_t{tile} * kDepth, p.k, stage.a);
            load_tile(p.b, first_col, p.n, int64_t{tile} * kDepth, p.k, stage.b);
        }
        commit_copies();
    };
    for (int tile = 0; tile < kStages - 1; ++tile) load(tile);
    Pieces part = {}, sums = {};
    Scales scales;
    for (int tile = 0; tile < tiles; ++tile) {
        await_copies<kStages - 2>();
        __syncthreads();
        load(tile + kStages - 1);
        const Stage& stage = stages[tile % kStages];
        const int64_t first = int64_t{tile} * kDepth;
#pragma unroll
        for (int step = 0; step < kDepth / kStep; ++step) {
            const int64_t k = first + step * kStep;
            if (step * kStep % kGroup == 0 && k % kGroup == 0 && k < p.k) scales.load(p, row, col, k);
            multiply_step(stage, step, warp_row, warp_col, part);
            const bool is_last_of_tile = (step + 1) * kStep % kGroup == 0 || step + 1 == kDepth / kStep;
            if (is_last_of_tile && ((k + kStep) % kGroup == 0 || tile + 1 == tiles)) add_scaled(scales, part, sums);
        }
    }

    const float alpha = *p.alpha, beta = *p.beta;
#pragma unroll
    for (int i = 0; i < kDown; ++i) {
#pragma unroll
        for (int j = 0; j < kAcross; ++j) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int64_t r = row + i * kPieceRows + half * 8, first = col + j * kPieceCols;
                if (r >= p.m || first >= p.n) continue;
                Element* const to = c + r * p.n + first;
                float two[2] = {sums[i][j][2 * half] * alpha, sums[i][j][2 * half + 1] * alpha};
                if (p.in_pairs) {
                    auto& pair = *reinterpret_cast<Pack<Element, 2>*>(to);
                    Pack<Element, 2> out;
                    if (beta != 0.0f) out = pair;
                    for (int e = 0; e < 2; ++e) {
                        if (beta != 0.0f) two[e] += beta * to_float(out.v[e]);
                        out.v[e] = store_as<Element>(two[e]);
                    }
                    pair = out;
                } else {
                    for (int e = 0; e < 2 && first + e < p.n; ++e) {
                        if (beta != 0.0f) two[e] += beta * to_float(to[e]);
                        to[e] = store_as<Element>(two[e]);
                    }
                }
            }
        }
    }
}

}  // namespace

void multiply_groups(const Context& context, const GroupOperand& a, const GroupOperand& b, int64_t k,
                     const float* alpha, const float* beta, const Tensor& c) {
    constexpr size_t kShared = kStages * sizeof(Stage);
    static_assert(kShared <= 99 << 10);  // what a thread block may have on sm_86 and sm_89
    const int64_t n = c.cols(), m = c.count() / n;
    const auto blocks = static_cast<unsigned>(divide_up<int64_t>(m, kTile) * divide_up<int64_t>(n, kTile));
    const bool in_small = (a.scales != nullptr && a.group == 32) || (b.scales != nullptr && b.group == 32);
    with_elements(c, [&]<typename Element>(Element* to) {
        const Product product = {a, b, m, n, k, alpha, beta, fits_packs<Element, 2>(to, n)};
        auto* const kernel = in_small ? group_product_kernel<32, Element> : group_product_kernel<128, Element>;
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int{kShared}),
              "shared memory of a kernel");
        launch(context, kernel, blocks, kThreads, kShared, product, to);
    });
}

}  // namespace nibble::cuda
