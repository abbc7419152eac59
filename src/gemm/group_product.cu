#include <algorithm>

#include "core/cuda_check.cuh"
#include "core/cuda_tensor_cores.cuh"
#include "gemm/group_product.h"
#include "gemm/pack.cuh"

namespace nibble::cuda {

namespace {

// A thread block makes 128 x 128 elements of C from 64 columns of A and B at a time.
constexpr int kTile = 128, kDepth = 64;
constexpr int kStep = 16, kPieceRows = 16, kPieceCols = 8;  // columns and parts of C of an instruction
constexpr int kChunk = 8, kChunks = kDepth / kChunk;        // of 16 bytes; in a line

struct Product {
    GroupOperand a, b;
    int64_t m, n, k;
    const float *alpha, *beta;
    bool in_pairs;  // neighbours in C are stored at once
};

// 128 lines of an operand, 64 columns. Chunks are interchanged within a line, so that those of eight lines
// are in all banks.
using Lines = uint16_t[kTile * kDepth];
__device__ __forceinline__ int place_of(int line, int chunk) {
    return line * kDepth + (chunk ^ line % kChunks) * kChunk;
}

template <int kGroup>
struct Stage {
    static constexpr int kGroups = std::max(kDepth / kGroup, 1);

    alignas(16) Lines a, b;
    float scales[kGroups][2 * kTile];  // of A's rows, of B's
};

// What a thread loads of an operand for the stages: zeros where the matrix ends.
template <int kThreads>
class Loader {
  public:
    __device__ Loader(const GroupOperand& from, int64_t first_row, int64_t rows, int k)
        : from_(from.values + (first_row + line()) * from.stride + chunk() * kChunk),
          step_(kLines * from.stride),
          lines_(static_cast<int>(min(rows - first_row, int64_t{kTile})) - line()),
          cols_(k - chunk() * kChunk) {}

    // From this column on.
    __device__ __forceinline__ void load(int col, uint16_t* to) const {
        const bool is_inside = col < cols_;
#pragma unroll
        for (int i = 0; i < kTile / kLines; ++i) {
            const bool is_there = is_inside && i * kLines < lines_;
            copy_async<16>(to + place_of(i * kLines + line(), chunk()),
                           is_there ? from_ + i * step_ + col : from_, is_there);
        }
    }

  private:
    static constexpr int kLines = kThreads / kChunks;  // that all threads load at once
    static __device__ int line() { return static_cast<int>(threadIdx.x) / kChunks; }
    static __device__ int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }

    const Bf16* const from_;
    const int64_t step_;
    const int lines_, cols_;  // that are there from the thread's own on
};

// The scales of one row of A or of B.
class ScaleLoader {
  public:
    __device__ ScaleLoader(const GroupOperand& from, int64_t row, int64_t rows)
        : is_there_(row < rows),
          from_(from.scales == nullptr ? nullptr : from.scales + (is_there_ ? row : 0)),
          rows_(rows),
          shift_(from.group == 128 ? 7 : 5) {}

    __device__ bool has_any() const { return from_ != nullptr; }
    // Of the group with column k.
    __device__ __forceinline__ void load(int k, int end, float* to) const {
        const bool is_there = is_there_ && k < end;
        copy_async<4>(to, from_ + (is_there ? (k >> shift_) * rows_ : 0), is_there);
    }

  private:
    const bool is_there_;
    const float* const from_;
    const int64_t rows_;
    const int shift_;
};

// --- what multiplies ---

// Parts of C that a thread has four elements of: in two rows, 8 apart, two neighbours each.
template <int kDown, int kAcross>
using Pieces = float[kDown][kAcross][4];

// Warps, on all GPUs: 32 x 32 elements each.
struct ByWarps {
    static constexpr int kThreads = 512, kDown = 2, kAcross = 4, kAlignment = 16;
    static constexpr bool kOverlaps = false;
    static constexpr int kRows = kDown * kPieceRows, kCols = kAcross * kPieceCols;

    static __device__ int row(int warp) { return warp / (kTile / kCols) * kRows; }
    static __device__ int col(int warp) { return warp % (kTile / kCols) * kCols; }
    static __device__ void loaded() {}
    // part = the products of kCount columns of a stage, or += where they do not begin a group.
    template <int kCount>
    static __device__ __forceinline__ void start(const Lines& of_a, const Lines& of_b, int first_col,
                                                 bool begins, Pieces<kDown, kAcross>& part) {
        const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
#pragma unroll
        for (int i = 0; i < kDown * kAcross * 4 && begins; ++i)
            part[i / 4 / kAcross][i / 4 % kAcross][i % 4] = 0.0f;
#pragma unroll
        for (int step = 0; step < kCount / kStep; ++step) {
            const int chunk = (first_col + step * kStep) / kChunk;
            uint32_t a[kDown][4], b[kAcross / 2][4];
#pragma unroll
            for (int i = 0; i < kDown; ++i)
                load_matrices(of_a + place_of(row(warp) + i * kPieceRows + lane % 16, chunk + lane / 16),
                              a[i]);
#pragma unroll
            for (int j = 0; j < kAcross / 2; ++j) {
                const int line = col(warp) + j * 2 * kPieceCols + lane / 16 * 8 + lane % 8;
                load_matrices(of_b + place_of(line, chunk + lane / 8 % 2), b[j]);
            }
#pragma unroll
            for (int i = 0; i < kDown; ++i) {
#pragma unroll
                for (int j = 0; j < kAcross; ++j)
                    multiply_add(a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], part[i][j]);
            }
        }
    }
    static __device__ void finish(Pieces<kDown, kAcross>&) {}
};

#if NIBBLE_HAS_SM_90A
// Groups of four warps, on Hopper: 64 x 128 elements each, without registers for A and B. A product runs
// while its threads do other things.
struct ByWarpGroups {
    static constexpr int kThreads = 256, kDown = 1, kAcross = kTile / kPieceCols;
    static constexpr int kAlignment = 1024;  // of stages
    static constexpr bool kOverlaps = true;

    static __device__ int row(int warp) { return warp * kPieceRows; }
    static __device__ int col(int) { return 0; }
    static __device__ void loaded() { show_shared_to_products(); }
    template <int kCount>
    static __device__ __forceinline__ void start(const Lines& of_a, const Lines& of_b, int first_col,
                                                 bool begins, Pieces<kDown, kAcross>& part) {
        const int first_row = static_cast<int>(threadIdx.x) / (4 * kWarp) * (4 * kPieceRows);
        constexpr int kOfColumns = static_cast<int>(sizeof(uint16_t)) * kStep / 16;
        const uint64_t a = tile_descriptor(of_a + first_row * kDepth), b = tile_descriptor(of_b);
        hold(part);
        begin_products();
#pragma unroll
        for (int step = 0; step < kCount / kStep; ++step) {
            const auto from = static_cast<uint64_t>((first_col / kStep + step) * kOfColumns);
            queue_product(a + from, b + from, step > 0 || !begins,
                          reinterpret_cast<float(&)[4 * kAcross]>(part));
        }
        commit_products();
    }
    static __device__ __forceinline__ void finish(Pieces<kDown, kAcross>& part) {
        await_products();
        hold(part);
    }

  private:
    // In its registers, to which products write unseen by the compiler.
    static __device__ __forceinline__ void hold(Pieces<kDown, kAcross>& part) {
#pragma unroll
        for (auto& piece : part[0])
            for (float& x : piece) keep(x);
    }
};
#endif

// sums += part times the scales of their rows and columns, which begin with those of the warp.
template <int kDown, int kAcross>
__device__ __forceinline__ void add_scaled(const float* of_rows, const float* of_cols,
                                           const Pieces<kDown, kAcross>& part, Pieces<kDown, kAcross>& sums) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    float rows[kDown][2];
#pragma unroll
    for (int i = 0; i < kDown; ++i)
        for (int half = 0; half < 2; ++half) rows[i][half] = of_rows[i * kPieceRows + half * 8 + lane / 4];
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
        const float2 cols = *reinterpret_cast<const float2*>(of_cols + j * kPieceCols + lane % 4 * 2);
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float scale = rows[i][e / 2] * (e % 2 == 0 ? cols.x : cols.y);
                sums[i][j][e] = __fmaf_rn(part[i][j][e], scale, sums[i][j][e]);
            }
        }
    }
}

template <typename Multiplier, int kGroup, int kStages, typename Element>
__global__ void __launch_bounds__(Multiplier::kThreads, 1)
    group_product_kernel(const __grid_constant__ Product p, Element* c) {
    constexpr int kThreads = Multiplier::kThreads, kDown = Multiplier::kDown, kAcross = Multiplier::kAcross;
    using StageOf = Stage<kGroup>;
    constexpr int kAlignment = Multiplier::kAlignment;
    auto* const shared = dynamic_shared<uint8_t>();
    const auto beyond = static_cast<int>(reinterpret_cast<uintptr_t>(shared) % kAlignment);
    auto* const stages = reinterpret_cast<StageOf*>(shared + (kAlignment - beyond) % kAlignment);
    // Neighbouring thread blocks share rows of A and of B: bands of eight tiles of rows.
    constexpr unsigned kBand = 8;
    const auto down = static_cast<unsigned>(divide_up<int64_t>(p.m, kTile)),
               across = static_cast<unsigned>(divide_up<int64_t>(p.n, kTile));
    const unsigned band = blockIdx.x / (kBand * across), in_band = blockIdx.x % (kBand * across),
                   height = min(kBand, down - band * kBand);
    const int64_t first_row = int64_t{band * kBand + in_band % height} * kTile,
                  first_col = int64_t{in_band / height} * kTile;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
    const int warp_row = Multiplier::row(warp), warp_col = Multiplier::col(warp);

    const int k = static_cast<int>(p.k), tiles = divide_up(k, kDepth);
    const Loader<kThreads> of_a(p.a, first_row, p.m, k), of_b(p.b, first_col, p.n, k);
    // A thread has the scales of a line, of A or of B, of all groups in a stage.
    static_assert(kThreads >= 2 * kTile);
    const ScaleLoader scales = thread < kTile ? ScaleLoader(p.a, first_row + thread, p.m)
                                              : ScaleLoader(p.b, first_col + thread - kTile, p.n);
    const bool has_line = thread < 2 * kTile, loads_scales = has_line && scales.has_any();
    for (int i = 0; i < kStages && has_line && !loads_scales; ++i)
        for (auto& of_group : stages[i].scales) of_group[thread] = 1.0f;
    const auto load = [&](int tile) {
        if (tile < tiles) {
            StageOf& stage = stages[tile % kStages];
            const int first = tile * kDepth;
            of_a.load(first, stage.a);
            of_b.load(first, stage.b);
#pragma unroll
            for (int group = 0; group < StageOf::kGroups && loads_scales; ++group)
                scales.load(first + group * kGroup, k, &stage.scales[group][thread]);
        }
        commit_copies();
    };
    constexpr int kTiles = std::max(kGroup / kDepth, 1), kGroups = StageOf::kGroups;  // of a group; of a tile
    // The products of a group run while the sums of the one before are scaled, whose scales stay for a tile.
    constexpr bool kOverlaps = Multiplier::kOverlaps;
    constexpr int kAhead = kOverlaps ? kStages - 2 : kStages - 1;
    for (int tile = 0; tile < kAhead; ++tile) load(tile);
    Pieces<kDown, kAcross> even = {}, odd = {}, sums = {};
    const float* of_group = nullptr;  // the scales of what was multiplied last
    const auto add = [&](const Pieces<kDown, kAcross>& part) {
        add_scaled<kDown, kAcross>(of_group + warp_row, of_group + kTile + warp_col, part, sums);
    };
    // kGroupOfTwo: which of two groups, one after the other. begins, ends: the group.
    const auto multiply = [&]<int kGroupOfTwo>(int tile, bool begins, bool ends) {
        constexpr int group = kGroupOfTwo % kGroups;  // of the tile
        auto& part = kOverlaps && kGroupOfTwo == 1 ? odd : even;
        const StageOf& stage = stages[tile % kStages];
        if (group == 0) {
            await_copies<kAhead - 1>();
            Multiplier::loaded();
            __syncthreads();
        }
        Multiplier::template start<std::min(kGroup, kDepth)>(stage.a, stage.b, group * kGroup, begins, part);
        if (group == 0) load(tile + kAhead);
        if (kOverlaps && begins && of_group != nullptr) add(kGroupOfTwo == 1 ? even : odd);
        Multiplier::finish(part);
        of_group = stage.scales[group];
        if (!kOverlaps && ends) add(part);
    };
    const auto multiply_group = [&]<int kGroupOfTwo>(int first) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
            const int tile = first + i;
            if (tile < tiles)
                multiply.template operator()<kGroupOfTwo>(tile, i == 0, i + 1 == kTiles || tile + 1 == tiles);
        }
    };
    for (int first = 0; first < tiles; first += 2 * kTiles / kGroups) {
        multiply_group.template operator()<0>(first);
        multiply_group.template operator()<1>(kGroups == 2 ? first : first + kTiles);
    }
    if (kOverlaps && of_group != nullptr) {
        const bool is_even = kGroups == 1 && (tiles - 1) / kTiles % 2 == 0;
        is_even ? add(even) : add(odd);
    }

    // The first of this thread.
    const int64_t row = first_row + warp_row + lane / 4, col = first_col + warp_col + lane % 4 * 2;
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

int attribute_of_gpu(cudaDeviceAttr which) {
    int device = 0, value = 0;
    check(cudaGetDevice(&device), "the GPU in use");
    check(cudaDeviceGetAttribute(&value, which, device), "kind of the GPU");
    return value;
}

template <typename Multiplier, int kGroup, int kStages, typename Element>
void launch_by(const Context& context, const Product& product, Element* c) {
    // The launch gives memory at multiples of 16.
    constexpr size_t kShared = kStages * sizeof(Stage<kGroup>) + Multiplier::kAlignment - 16;
    static_assert(sizeof(Stage<kGroup>) % Multiplier::kAlignment == 0);
    auto* const kernel = group_product_kernel<Multiplier, kGroup, kStages, Element>;
    check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kShared)),
        "shared memory of a kernel");
    const int64_t blocks = divide_up<int64_t>(product.m, kTile) * divide_up<int64_t>(product.n, kTile);
    launch(context, kernel, dim3(static_cast<unsigned>(blocks)), Multiplier::kThreads, kShared, product, c);
}

template <int kGroup, typename Element>
void launch_groups(const Context& context, const Product& product, Element* c) {
    // sm_86 and sm_89 give a thread block 99 KB, others 163 and more.
    static const int shared = attribute_of_gpu(cudaDevAttrMaxSharedMemoryPerBlockOptin);
#if NIBBLE_HAS_SM_90A
    static const bool is_hopper = attribute_of_gpu(cudaDevAttrComputeCapabilityMajor) == 9;
    if (is_hopper) return launch_by<ByWarpGroups, kGroup, 6>(context, product, c);
#endif
    if (shared >= static_cast<int>(3 * sizeof(Stage<kGroup>)))
        launch_by<ByWarps, kGroup, 3>(context, product, c);
    else
        launch_by<ByWarps, kGroup, 2>(context, product, c);
}

}  // namespace

void multiply_groups(const Context& context, const GroupOperand& a, const GroupOperand& b, int64_t k,
                     const float* alpha, const float* beta, const Tensor& c) {
    const int64_t n = c.cols(), m = c.count() / n;
    const bool in_small = (a.scales != nullptr && a.group == 32) || (b.scales != nullptr && b.group == 32);
    with_elements(c, [&]<typename Element>(Element* to) {
        const Product product = {a, b, m, n, k, alpha, beta, fits_packs<Element, 2>(to, n)};
        in_small ? launch_groups<32>(context, product, to) : launch_groups<128>(context, product, to);
    });
}

}  // namespace nibble::cuda
