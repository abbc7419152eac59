// A gradient or an input read once for both of its orientations: squares of 128 x 128 in shared memory. For
// quantize_hot_both.cu and quantize_both_any.cu.
#pragma once

#include "core/cuda_check.cuh"
#include "quant/kernel_stream.cuh"

namespace nibble::cuda {

inline constexpr int kSquare = 128;
// Groups of a thread, along the rows or the columns.
inline constexpr int kPartsOfSquare = kSquare / kRowsOfPart;

// A square of x, BF16. Lines have the signs of the columns' rotation; along the rows they are taken back.
template <bool kRowsRotate, bool kColumnsRotate>
class Square {
  public:
    struct Shared {
        alignas(16) uint16_t tile[kSquare * kSquare];
        alignas(16) uint32_t signs_of_rows[kRowsRotate ? kSquare / 2 : 4];  // in pairs
        uint32_t signs_of_lines[kColumnsRotate ? kSquare : 4];              // at both halves
    };

    // Called by all threads.
    __device__ Square(const Job& rows, const Job& columns, Shared& shared)
        : rows_(rows), columns_(columns), shared_(shared) {
        const int i = static_cast<int>(threadIdx.x);
        if (kRowsRotate && i < kSquare / 2)
            shared.signs_of_rows[i] =
                (sign_pair(rows, 2 * i) & 0x8000u) | (sign_pair(rows, 2 * i + 1) & 0x80000000u);
        if (kColumnsRotate && i < kSquare) shared.signs_of_lines[i] = sign_pair(columns, i);
        __syncthreads();
    }
    // Called by all threads: reads the square that begins there.
    __device__ __forceinline__ void load(int64_t first_row, int64_t first_col) {
        PlainPiece::Source source(rows_, first_row + line(), first_col + col());
        // Contractions may be padded, x is not.
        const int there = count_from(first_col + col(), rows_.stride),
                  lines = count_from(first_row + line(), columns_.cols);
        PlainPiece pieces[kPartsOfSquare];
#pragma unroll
        for (int part = 0; part < kPartsOfSquare; ++part) {
            pieces[part].load(source, lines > part * kRowsOfPart ? there : 0);
            source.advance(kRowsOfPart * rows_.stride);
        }
        __syncthreads();  // all have read the square before
#pragma unroll
        for (int part = 0; part < kPartsOfSquare; ++part) {
            uint32_t words[kGroup / 2];
            pieces[part].words(words);
            const int l = part * kRowsOfPart + line();
            const uint32_t sign = kColumnsRotate ? shared_.signs_of_lines[l] : 0;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                *reinterpret_cast<uint4*>(shared_.tile + at(l, col() + 8 * half)) = {
                    words[4 * half] ^ sign, words[4 * half + 1] ^ sign, words[4 * half + 2] ^ sign,
                    words[4 * half + 3] ^ sign};
            }
        }
        __syncthreads();
    }
    // The part-th group of this thread along the rows, with their signs.
    __device__ __forceinline__ void read_row(int part, Group& g) const {
        const int l = part * kRowsOfPart + line();
        const uint32_t of_line = kColumnsRotate ? shared_.signs_of_lines[l] : 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint4 four = *reinterpret_cast<const uint4*>(shared_.tile + at(l, col() + 8 * half));
            uint4 signs = {};
            if constexpr (kRowsRotate)
                signs = *reinterpret_cast<const uint4*>(shared_.signs_of_rows + col() / 2 + 4 * half);
            float* const x = g.x + 8 * half;
            unpack(four.x ^ of_line ^ signs.x, x[0], x[1]);
            unpack(four.y ^ of_line ^ signs.y, x[2], x[3]);
            unpack(four.z ^ of_line ^ signs.z, x[4], x[5]);
            unpack(four.w ^ of_line ^ signs.w, x[6], x[7]);
        }
    }
    // Along the columns, with theirs: 16 lines.
    __device__ __forceinline__ void read_column(int part, Group& g) const {
        const uint16_t* const from = shared_.tile + at(col(), part * kRowsOfPart + line());
#pragma unroll
        for (int i = 0; i < kGroup; ++i) g.x[i] = number(from[i * kSquare]);
    }

    // Where the part-th group lies in the operand, of which the square's first element is this one.
    static __device__ __forceinline__ void place(int part, int64_t first_row, int64_t first_col, Group& g) {
        g.row = first_row + part * kRowsOfPart + line();
        g.col = first_col + col();
    }

    static __device__ int line() { return static_cast<int>(threadIdx.x) / kGroups; }
    static __device__ int col() { return static_cast<int>(threadIdx.x) % kGroups * kGroup; }

  private:
    // Pieces of 8 elements are interchanged within a line: a group's 16 lines alike.
    static __device__ int at(int line, int col) { return line * kSquare + (col ^ line / kGroup % 8 * 8); }

    const Job &rows_, &columns_;
    Shared& shared_;
};

// All that have a part of x, or of what an operand is padded with.
struct Squares {
    unsigned across, down;

    Squares(const Job& rows, const Job& columns) : across(along(rows)), down(along(columns)) {}

  private:
    static unsigned along(const Job& job) {
        return static_cast<unsigned>(divide_up<int64_t>(std::max(job.cols, job.padded_cols), kSquare));
    }
};

// Blocks of kStreamThreads, with as much shared memory as a launch must ask for.
template <typename... Parameters, typename... Arguments>
void launch_squares(const Context& context, void (*kernel)(Parameters...), int64_t blocks, size_t shared,
                    const Arguments&... arguments) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          "shared memory of a kernel");
    launch(context, kernel, dim3(static_cast<unsigned>(blocks)), dim3(kStreamThreads), shared, arguments...);
}

}  // namespace nibble::cuda
