// How the threads of a quantiser read x of any type and alignment, as it is stored or transposed, tile by
// tile, and rotate it.
#pragma once

#include "quant/kernel_butterfly.cuh"
#include "quant/kernel_job.cuh"

namespace nibble::cuda {

// --- reading ---

// Reads the tiles of a thread block one after the other, kRows x 128 elements of the operand.
template <bool kTransposed, int kRows>
class Reader {
  public:
    using Tile = TransposedTile<float, kRows>;

    __device__ Reader(const Job& job, void* shared) : job_(job), tile_(static_cast<float*>(shared)) {}

    // This thread's group of the tile that begins there. Called by all threads.
    __device__ __forceinline__ void take(int64_t first_row, int64_t first_col, Group& g) {
        const int row = static_cast<int>(threadIdx.x) / kGroups,
                  group = static_cast<int>(threadIdx.x) % kGroups;
        g.row = first_row + row;
        g.col = first_col + group * kGroup;
        if constexpr (kTransposed) {
            __syncthreads();  // all have read the tile before
            for (int i = static_cast<int>(threadIdx.x); i < kTileCols * kRows; i += kRows * kGroups)
                tile_[Tile::at(i / kRows, i % kRows)] = element(first_row + i % kRows, first_col + i / kRows);
            __syncthreads();
            Tile::read(tile_, group, row, g.x);
        } else {
#pragma unroll
            for (int i = 0; i < kGroup; ++i) g.x[i] = element(g.row, g.col + i);
        }
    }

  private:
    __device__ float element(int64_t row, int64_t col) const {
        if (row >= job_.rows || col >= job_.cols) return 0.0f;
        const int64_t at = kTransposed ? col * job_.stride + row : row * job_.stride + col;
        return job_.is_bf16 ? to_float(static_cast<const Bf16*>(job_.x)[at])
                            : static_cast<const float*>(job_.x)[at];
    }

    const Job& job_;
    float* tile_;
};

// The tiles of a thread block: `steps` of them, one below the other. Blocks that read the same lines of x are
// neighbours.
template <bool kTransposed, int kRows>
struct Tiles {
    int64_t first_row, first_col;
    int count;

    __device__ explicit Tiles(const Job& job) {
        // Tiles are fewer than 2^31: a grid has no more blocks.
        const auto rows = static_cast<uint32_t>(divide_up<int64_t>(job.rows, kRows));
        const auto steps = static_cast<uint32_t>(job.steps), id = blockIdx.x;
        const uint32_t across = kTransposed
                                    ? divide_up(rows, steps)
                                    : static_cast<uint32_t>(divide_up<int64_t>(job.padded_cols, kTileCols));
        const uint32_t outer = id / across, inner = id - outer * across;
        const uint32_t band = kTransposed ? inner : outer;
        first_row = int64_t{band} * steps * kRows;
        first_col = int64_t{kTransposed ? outer : inner} * kTileCols;
        count = static_cast<int>(min(steps, rows - band * steps));
    }
    __device__ int64_t row(int step) const { return first_row + int64_t{step} * kRows; }
};

// --- rotation ---

__device__ __forceinline__ void apply_signs(const KernelSpec& s, const Job& job, int round, Group& g) {
    const int place = static_cast<int>(g.col) & (s.rotation - 1);
    const uint32_t signs = job.signs(round, place / 32) >> (place % 32);
#pragma unroll
    for (int i = 0; i < kGroup; ++i)
        g.x[i] = __uint_as_float(__float_as_uint(g.x[i]) ^ (signs >> i & 1u) << 31);
}

__device__ __forceinline__ void transform(int size, float factor, Group& g) {
    butterfly(size, g.x);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) g.x[i] *= factor;
}

__device__ __forceinline__ void rotate_group(const KernelSpec& s, const Job& job, float factor, Group& g) {
    for (int round = 0; round < s.rounds; ++round) {
        apply_signs(s, job, round, g);
        transform(s.rotation, factor, g);
    }
    if (s.out_bf16) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) g.x[i] = nibble::round_to_bf16(g.x[i]);
    }
}

}  // namespace nibble::cuda
