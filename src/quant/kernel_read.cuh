// How the threads of a quantiser read x, as it is stored or transposed, tile by tile, and rotate it.
#pragma once

#include "quant/kernel_job.cuh"

namespace nibble::cuda {

// --- reading ---

// The elements of x: of one type, or of what the job says (in shared memory then float).
struct AnyElement {};
template <typename T>
struct InTile {
    using Type = T;
};
template <>
struct InTile<AnyElement> {
    using Type = float;
};

// Reads the tiles of a thread block one after the other. fetch() begins to read one, take() gives this
// thread's group of it: in between is time for the tile before. (Of types other than BF16 take() does it
// all.)
template <typename T, bool kTransposed, int kRows>
class Reader {
  public:
    using Type = typename InTile<T>::Type;
    using Tile = TransposedTile<Type, kRows>;

    __device__ Reader(const Job& job, void* shared) : job_(job), tile_(static_cast<Type*>(shared)) {}

    // From this row and column on, kRows x 128 elements of the operand.
    __device__ __forceinline__ void fetch(int64_t first_row, int64_t first_col) {
        if constexpr (std::is_same_v<T, Bf16>) {
#pragma unroll
            for (int i = 0; i < kPieces; ++i) {
                const auto [row, col] = place_of(i);
                ahead_[i] = piece(first_row + row, first_col + col);
            }
        }
    }

    // Called by all threads.
    __device__ __forceinline__ void take(int64_t first_row, int64_t first_col, Group& g) {
        const int row = static_cast<int>(threadIdx.x) / kGroups,
                  group = static_cast<int>(threadIdx.x) % kGroups;
        g.row = first_row + row;
        g.col = first_col + group * kGroup;
        if constexpr (kTransposed) {
            __syncthreads();  // all have read the tile before
            deposit(first_row, first_col);
            __syncthreads();
            Tile::read(tile_, group, row, g.x);
        } else if constexpr (std::is_same_v<T, Bf16>) {
            const auto* const words = reinterpret_cast<const uint32_t*>(ahead_);
#pragma unroll
            for (int i = 0; i < kGroup / 2; ++i) {
                g.x[2 * i] = __uint_as_float(words[i] << 16);
                g.x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
            }
        } else {
#pragma unroll
            for (int i = 0; i < kGroup; ++i) g.x[i] = to_float(element(g.row, g.col + i));
        }
    }

  private:
    static constexpr int kPieces = 2, kPiece = 8;  // of a thread, and the elements of one

    // Where a piece lies in the tile: it goes along the rows of x as it is stored.
    struct Place {
        int row, col;
    };
    static __device__ Place place_of(int i) {
        const int thread = static_cast<int>(threadIdx.x);
        if constexpr (!kTransposed) return {thread / kGroups, thread % kGroups * kGroup + i * kPiece};
        constexpr int kInRow = kRows / kPiece;
        const int piece = i * kRows * kGroups + thread;
        return {piece % kInRow * kPiece, piece / kInRow};
    }
    __device__ Type element(int64_t row, int64_t col) const {
        if (row >= job_.rows || col >= job_.cols) return Type{};
        const int64_t at = kTransposed ? col * job_.stride + row : row * job_.stride + col;
        if constexpr (std::is_same_v<T, AnyElement>) {
            return job_.is_bf16 ? to_float(static_cast<const Bf16*>(job_.x)[at])
                                : static_cast<const float*>(job_.x)[at];
        } else {
            return static_cast<const T*>(job_.x)[at];
        }
    }
    __device__ __forceinline__ uint4 piece(int64_t row, int64_t col) const {
        const int64_t last_row = row + (kTransposed ? kPiece : 1),
                      last_col = col + (kTransposed ? 1 : kPiece);
        if (job_.is_vector && last_row <= job_.rows && last_col <= job_.cols) {
            const int64_t at = kTransposed ? col * job_.stride + row : row * job_.stride + col;
            return *reinterpret_cast<const uint4*>(static_cast<const Bf16*>(job_.x) + at);
        }
        return piece_of_elements(row, col);
    }
    // At the edges, and where rows are not aligned. Out of line: the registers are the other way's.
    __device__ __noinline__ uint4 piece_of_elements(int64_t row, int64_t col) const {
        uint32_t words[kPiece / 2] = {};
#pragma unroll
        for (int j = 0; j < kPiece; ++j) {
            const Bf16 value = kTransposed ? element(row + j, col) : element(row, col + j);
            words[j / 2] |= uint32_t{value.bits} << (j % 2 * 16);
        }
        return {words[0], words[1], words[2], words[3]};
    }
    __device__ __forceinline__ void deposit(int64_t first_row, int64_t first_col) {
        if constexpr (std::is_same_v<T, Bf16>) {
#pragma unroll
            for (int i = 0; i < kPieces; ++i) {
                const auto [row, col] = place_of(i);
                auto* const to = reinterpret_cast<uint32_t*>(tile_ + Tile::at(col, row));
                to[0] = ahead_[i].x;
                to[1] = ahead_[i].y;
                to[2] = ahead_[i].z;
                to[3] = ahead_[i].w;
            }
        } else {
            for (int i = static_cast<int>(threadIdx.x); i < kTileCols * kRows; i += kRows * kGroups) {
                tile_[Tile::at(i / kRows, i % kRows)] = element(first_row + i % kRows, first_col + i / kRows);
            }
        }
    }

    const Job& job_;
    Type* tile_;
    uint4 ahead_[kPieces];
};

// The tiles of a thread block: `steps` of them, one below the other. Blocks that read the same lines of x are
// neighbours.
template <bool kTransposed, int kRows>
struct Tiles {
    int64_t first_row, first_col;
    int count;

    __device__ explicit Tiles(const Job& job) {
        const int64_t cols = divide_up<int64_t>(job.padded_cols, kTileCols);
        const int64_t rows = divide_up<int64_t>(job.rows, kRows);
        const int64_t bands = divide_up<int64_t>(rows, job.steps), id = blockIdx.x;
        const int64_t band = kTransposed ? id % bands : id / cols;
        first_row = band * job.steps * kRows;
        first_col = (kTransposed ? id / bands : id % cols) * kTileCols;
        count = static_cast<int>(
            min(static_cast<long long>(job.steps), static_cast<long long>(rows - band * job.steps)));
    }
    __device__ int64_t row(int step) const { return first_row + int64_t{step} * kRows; }
};

// --- rotation ---

__device__ __forceinline__ void rotate_group(const KernelSpec& s, const Job& job, float factor, Group& g) {
    const int place = static_cast<int>(g.col) & (s.rotation - 1);
    const int group = static_cast<int>(threadIdx.x) % kGroups;
    for (int round = 0; round < s.rounds; ++round) {
        const uint32_t signs = job.signs[round][place / 32] >> (place % 32);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            g.x[i] = __uint_as_float(__float_as_uint(g.x[i]) ^ (signs >> i & 1u) << 31);
        }
#pragma unroll
        for (int h = 1; h < kGroup; h *= 2) {
#pragma unroll
            for (int i = 0; i < kGroup; ++i) {
                if ((i & h) != 0) continue;
                const float a = g.x[i], b = g.x[i + h];
                g.x[i] = a + b;
                g.x[i + h] = a - b;
            }
        }
        for (int lane = 1; lane < s.rotation / kGroup; lane *= 2) {
            const uint32_t negated = (group & lane) != 0 ? 0x80000000u : 0u;  // a - b, seen from b
#pragma unroll
            for (int i = 0; i < kGroup; ++i) {
                const float other = __shfl_xor_sync(0xffffffffu, g.x[i], lane);
                g.x[i] = other + __uint_as_float(__float_as_uint(g.x[i]) ^ negated);
            }
        }
#pragma unroll
        for (int i = 0; i < kGroup; ++i) g.x[i] *= factor;
    }
    if (s.out_bf16) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) g.x[i] = nibble::round_to_bf16(g.x[i]);
    }
}

}  // namespace nibble::cuda
