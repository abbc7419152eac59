#include "core/cuda_vector.cuh"
#include "quant/cuda_forms.h"
#include "quant/fp8_codes.h"
#include "quant/quantize_hot.cuh"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 256;

// --- the transpose ---

constexpr int kTile = 128;            // bytes, in both directions
constexpr int kWords = kTile / 4;     // of a row of the tile
constexpr int kVectors = kTile / 16;  // likewise

// Where the tile keeps word w of row r. The words that a warp reads or writes at a time, of four rows of four
// or of one column of words, then lie in 32 banks.
__device__ int place(int r, int w) { return r * kWords + (w ^ (r / 4)); }

// The bytes of four words as four columns: out[i] has byte i of each.
__device__ void transpose_words(const uint32_t (&in)[4], uint32_t (&out)[4]) {
    const uint32_t low0 = __byte_perm(in[0], in[1], 0x5140), high0 = __byte_perm(in[0], in[1], 0x7362),
                   low1 = __byte_perm(in[2], in[3], 0x5140), high1 = __byte_perm(in[2], in[3], 0x7362);
    out[0] = __byte_perm(low0, low1, 0x5410);
    out[1] = __byte_perm(low0, low1, 0x7632);
    out[2] = __byte_perm(high0, high1, 0x5410);
    out[3] = __byte_perm(high0, high1, 0x7632);
}

// Where the threads of a block are in its tile while they fill it: four rows of 16 columns each.
struct Place4x16 {
    int row, vector;
    __device__ Place4x16()
        : row(static_cast<int>(threadIdx.x) / kVectors * 4),
          vector(static_cast<int>(threadIdx.x) % kVectors) {}
};

__device__ void put(uint32_t* tile, int row, int vector, uint4 codes) {
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) tile[place(row, vector * 4 + w)] = words[w];
}

// Writes the tile of rows from first_row and columns from first_col on, transposed: to [cols, to_cols],
// to_cols a multiple of 4 and at least the rows. A thread has four rows of a column of words, and writes them
// as four bytes of four rows.
__device__ void write_transposed(const uint32_t* tile, int64_t first_row, int64_t first_col, int64_t cols,
                                 uint8_t* to, int64_t to_cols) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
    const int64_t to_col = first_row + lane * 4;
    if (to_col >= to_cols) return;
#pragma unroll
    for (int w = thread / kWarp; w < kWords; w += kThreads / kWarp) {
        uint32_t in[4], out[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) in[i] = tile[place(lane * 4 + i, w)];
        transpose_words(in, out);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int64_t to_row = first_col + w * 4 + i;
            if (to_row < cols) *reinterpret_cast<uint32_t*>(to + to_row * to_cols + to_col) = out[i];
        }
    }
}

// from [rows, cols], cols a multiple of 16.
__global__ void __launch_bounds__(kThreads)
    transpose_kernel(const uint8_t* from, int64_t rows, int64_t cols, uint8_t* to, int64_t to_cols) {
    __shared__ uint32_t tile[kTile * kWords];
    const int64_t first_row = int64_t{blockIdx.x} * kTile, first_col = int64_t{blockIdx.y} * kTile;
    const Place4x16 at;
    const int64_t col = first_col + at.vector * 16;
    uint4 read[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int64_t row = first_row + at.row + i;
        if (row < rows && col < cols) read[i] = *reinterpret_cast<const uint4*>(from + row * cols + col);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) put(tile, at.row + i, at.vector, read[i]);
    __syncthreads();
    write_transposed(tile, first_row, first_col, cols, to, to_cols);
}

// Quantises a tile of the same size, and writes its codes both ways.
template <Element kElement>
__global__ void __launch_bounds__(kThreads)
    quantize_both_ways_kernel(const __grid_constant__ Job job, uint8_t* to, int64_t to_cols) {
    constexpr KernelSpec s = hot::fp8(kElement);
    __shared__ uint32_t tile[kTile * kWords];
    __shared__ TensorValues tensor;
    const int64_t first_row = int64_t{blockIdx.x} * kTile, first_col = int64_t{blockIdx.y} * kTile;
    const Place4x16 at;
    const int64_t col = first_col + at.vector * 16;
    PlainPiece pieces[4];
    PlainPiece::Source source(job, first_row + at.row, col);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        pieces[i].load(source, first_row + at.row + i < job.rows ? count_from(col, job.cols) : 0);
        source.advance(job.stride);
    }
    // A column of thread blocks writes the tensor scale, each the same.
    tensor.prepare(s, job);
    const float encode = fp32_scale(largest_of(kElement), tensor.amax).encode;
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        uint32_t words[kGroup / 2];
        pieces[i].words(words);
        float x[kGroup], v[kGroup];
#pragma unroll
        for (int j = 0; j < kGroup / 2; ++j) unpack(words[j], x[2 * j], x[2 * j + 1]);
        largest = max(largest, bits_of_largest(x));
#pragma unroll
        for (int j = 0; j < kGroup; ++j) v[j] = tensor.amax == 0.0f ? 0.0f : x[j] * encode;
        const uint4 codes = words_of_codes(round_group(s, job, 0, v));
        const int64_t row = first_row + at.row + i;
        if (row < job.rows && col < job.padded_cols)
            *reinterpret_cast<uint4*>(job.codes + row * job.padded_cols + col) = codes;
        put(tile, at.row + i, at.vector, codes);
    }
    if (largest >= 0x7f800000u) *job.fault = 1;
    __syncthreads();
    write_transposed(tile, first_row, first_col, job.padded_cols, to, to_cols);
}

dim3 grid_of_tiles(int64_t rows, int64_t cols) {
    return dim3(static_cast<unsigned>(divide_up<int64_t>(rows, kTile)),
                static_cast<unsigned>(divide_up<int64_t>(cols, kTile)));
}

// --- folding ---

constexpr int kRows = kThreads / kWarp;  // of a thread block at a time
constexpr int kBelow = 64;               // binades under the largest scale that the table has
constexpr int kAhead = 4;  // halves of blocks that a thread has on their way while the row's scales are

// The FP8 codes of E2M1's magnitudes in blocks of one scale, and bit m set where that of m is not exact.
struct FoldedMagnitudes {
    uint32_t codes[2];
    uint32_t rounded;
};

// The FP8 codes of eight E2M1 codes: of the lower four, and of the upper four.
__device__ uint2 folded_codes(const FoldedMagnitudes& entry, uint32_t eight) {
    const auto magnitudes = [&entry](uint32_t four) {
        return __byte_perm(entry.codes[0], entry.codes[1], four & 0x7777u);
    };
    // The bytes whose upper bit is a code's sign, one after the other.
    const uint32_t of_even = eight << 4, low = __byte_perm(of_even, eight, 0x5140),
                   high = __byte_perm(of_even, eight, 0x7362);
    return {magnitudes(eight) | (low & 0x80808080u), magnitudes(eight >> 16) | (high & 0x80808080u)};
}

// The largest scale byte of a row, at least `least`; the same in all lanes of a warp.
__device__ int largest_scale(const uint8_t* scales, int blocks, int least) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    auto most = static_cast<uint32_t>(least);
    if (blocks % 4 == 0) {
        for (int i = lane; i < blocks / 4; i += kWarp) {
            const uint32_t four = reinterpret_cast<const uint32_t*>(scales)[i];
            most = max(max(most, four & 0xffu), max(four >> 8 & 0xffu, max(four >> 16 & 0xffu, four >> 24)));
        }
    } else {
        for (int block = lane; block < blocks; block += kWarp) most = max(most, uint32_t{scales[block]});
    }
    return static_cast<int>(__reduce_max_sync(0xffffffffu, most));
}

// A warp folds a row, a thread half of a block at a time.
__global__ void __launch_bounds__(kThreads)
    fold_kernel(const uint2* codes, const uint8_t* scales, int64_t rows, int blocks, Element element,
                uint4* out, float* row_scales, uint32_t* rounded_blocks) {
    __shared__ FoldedMagnitudes table[kBelow];
    const int top = fold_range(element).top;
    for (int below = static_cast<int>(threadIdx.x); below < kBelow; below += kThreads) {
        FoldedMagnitudes entry{};
        for (int m = 0; m < 8; ++m) {
            const auto code = static_cast<uint8_t>(m);
            entry.codes[m / 4] |= uint32_t{folded_code(element, code, below)} << (m % 4 * 8);
            entry.rounded |= uint32_t{!is_folded_exactly(element, code, below)} << m;
        }
        table[below] = entry;
    }
    __syncthreads();
    const int lane = static_cast<int>(threadIdx.x) % kWarp, halves = 2 * blocks;
    uint32_t rounded = 0;
    for (int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / kWarp; row < rows;
         row += int64_t{gridDim.x} * kRows) {
        const uint2* const from = codes + row * halves;
        const uint8_t* const of_row = scales + row * blocks;
        uint4* const to = out + row * halves;
        uint2 ahead[kAhead];
        const auto read_from = [&](int first) {
#pragma unroll
            for (int i = 0; i < kAhead; ++i) {
                const int half = first + i * kWarp + lane;
                ahead[i] = half < halves ? from[half] : uint2{};
            }
        };
        read_from(0);
        const int largest = largest_scale(of_row, blocks, top + 1);
        if (lane == 0) row_scales[row] = power_of_two(largest - 127 - top);
        for (int first = 0; first < halves; first += kAhead * kWarp) {
            if (first > 0) read_from(first);
#pragma unroll
            for (int i = 0; i < kAhead; ++i) {
                const int half = first + i * kWarp + lane;
                const bool is_inside = half < halves;
                const int scale = is_inside ? of_row[half / 2] : largest;
                const FoldedMagnitudes& entry = table[min(largest - scale, kBelow - 1)];
                const uint2 in = ahead[i];
                if (is_inside) {
                    const uint2 lower = folded_codes(entry, in.x), upper = folded_codes(entry, in.y);
                    to[half] = {lower.x, lower.y, upper.x, upper.y};
                }
                if (!__any_sync(0xffffffffu, entry.rounded != 0)) continue;
                uint32_t is_rounded = 0;
                for (const uint32_t word : {in.x, in.y}) {
                    for (int j = 0; j < 8; ++j) is_rounded |= entry.rounded >> (word >> (j * 4) & 7u) & 1u;
                }
                is_rounded |= __shfl_xor_sync(0xffffffffu, is_rounded, 1);
                if (lane % 2 == 0) rounded += is_rounded;
            }
        }
    }
    if (rounded > 0) atomicAdd(rounded_blocks, rounded);
}

}  // namespace

void transpose_codes(Context& context, const QuantizedMatrix& q, const QuantizedMatrix& out) {
    if (q.codes.count() == 0) return;
    launch(context, transpose_kernel, grid_of_tiles(out.padded_cols, q.padded_cols), dim3(kThreads), 0,
           q.codes.as<uint8_t>(), q.rows, q.padded_cols, out.codes.as<uint8_t>(), out.padded_cols);
}

bool has_transposing_kernel(const Job& job) {
    return job.is_bf16 && (job.spec == hot::fp8(Element::e4m3) || job.spec == hot::fp8(Element::e5m2));
}

void quantize_with_transpose(const Context& context, const Job& job, uint8_t* transpose, int64_t to_cols) {
    launch(context,
           job.spec.element == Element::e4m3 ? quantize_both_ways_kernel<Element::e4m3>
                                             : quantize_both_ways_kernel<Element::e5m2>,
           grid_of_tiles(to_cols, job.padded_cols), dim3(kThreads), 0, job, transpose, to_cols);
}

void fold_to_fp8(Context& context, const QuantizedMatrix& q, const FoldedMatrix& out) {
    cuda::fill_zero(context, out.rounded);
    launch(context, fold_kernel, dim3(resident_blocks(divide_up<int64_t>(q.rows, kRows), kThreads)),
           dim3(kThreads), 0, reinterpret_cast<const uint2*>(q.codes.as<uint8_t>()), q.scales.as<uint8_t>(),
           q.rows, static_cast<int>(q.padded_cols / kMxfp4Block), out.codes.spec.element,
           reinterpret_cast<uint4*>(out.codes.codes.as<uint8_t>()), out.codes.fp32_scales.as<float>(),
           out.rounded.as<uint32_t>());
}

}  // namespace nibble::cuda
