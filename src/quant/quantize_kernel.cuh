// How a GPU quantises: one thread holds 16 consecutive columns of a row, a group. Eight threads side by side
// have 128 columns, the largest rotation block; the rows of a thread block have the largest square. What
// decides a bit is a call of numerics/, in the order of reference.cpp. For quantize.cu alone.
#pragma once

#include <cuda_fp8.h>

#include "quant/tiles.cuh"

namespace nibble::cuda {

// What a tensor's passes share in memory of the GPU; zero at first.
struct Scalars {
    uint32_t amax = 0;     // bits of the largest magnitude after rotation
    uint32_t posthoc = 0;  // bits of the largest wide scale
    uint32_t fault = 0;    // not 0: a value that is not finite was met
};

// A spec as kernels read it.
struct KernelSpec {
    Format format;
    Element element;
    ScaleRule scale;
    Rounding round;
    Correction correct;
    ScaleRounding scale_round;
    TensorScale tensor;
    int block_cols, block_rows;  // of a scale; blocks of rows and tensors: 16 and 1
    bool is_row, outer, out_bf16, mask, emulation;
    int rotation, rounds;

    friend bool operator==(const KernelSpec&, const KernelSpec&) = default;
};

struct Job {
    KernelSpec spec;
    Nvfp4Rule rule;
    float mult;
    RandomKey key;
    uint32_t signs[2][kMaxRotation / 32];
    float factor, amax_factor;  // of the rotation: as it is quantised, as its amax is taken

    const void* x;
    bool is_bf16;
    bool is_vector;              // rows of x begin at multiples of 16 bytes
    int64_t rows, cols, stride;  // of the operand; `stride` elements between rows of x as it is stored
    int steps;                   // tiles of a thread block
    int64_t padded_cols;

    uint8_t *codes, *scales, *mask;  // codes and scales: null where bytes are not wanted
    Bf16* operand;                   // code * scale; null where that is not wanted
    float *fp32_scales, *tensor_scale;
    Bf16* wide;          // tensor=posthoc: a wide scale for each group
    const float* scale;  // QuantizeOptions::scale
    float given_amax;    // of the tensor, where the caller knows it; negative: it is in memory:
    const float* amax;
    Scalars* scalars;
    uint32_t* fault;  // raised where a value is not finite
};

// The spec of a kernel for all specs.
struct AnySpec {
    static constexpr int kBlocks = 1;  // at least so many of a multiprocessor
    static __device__ const KernelSpec& of(const Job& job) { return job.spec; }
};

// The columns of one thread.
struct Group {
    int64_t row, col;
    float x[kGroup];
};

__device__ inline float max_of(const float (&x)[kGroup]) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) largest = fmaxf(largest, fabsf(x[i]));
    return largest;
}

// Bits of the largest magnitude: a NaN is larger than all numbers.
__device__ inline uint32_t bits_of_largest(const float (&x)[kGroup]) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) largest = max(largest, __float_as_uint(x[i]) & 0x7fffffffu);
    return largest;
}

// Over the threads whose columns make a block of `cols`, or a rotation block.
__device__ inline float max_of_threads(float value, int cols) {
    for (int lane = 1; lane < cols / kGroup; lane *= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lane));
    }
    return value;
}
// Goes on with a binary tree of neighbours where tree_sum() over 16 ended.
__device__ inline float sum_of_threads(float value, int cols) {
    for (int lane = 1; lane < cols / kGroup; lane *= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, lane);
    }
    return value;
}

__device__ inline float tree_sum_of_group(const float (&x)[kGroup]) {
    float sums[kGroup / 2];
#pragma unroll
    for (int i = 0; i < kGroup / 2; ++i) sums[i] = x[2 * i] + x[2 * i + 1];
#pragma unroll
    for (int count = kGroup / 4; count > 0; count /= 2) {
#pragma unroll
        for (int i = 0; i < count; ++i) sums[i] = sums[2 * i] + sums[2 * i + 1];
    }
    return sums[0];
}

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

// --- elements ---

// 16 elements: their codes, and what those are worth.
struct Codes {
    uint8_t of[kGroup];
    float value[kGroup];
};

// e2m1_nearest() and e2m1_stochastic() without comparisons. A binade 2^e, e >= 0, has steps of 2^(e - 1); its
// first code is 2 e + 2, and codes count up from 0 through all of them.
__device__ inline uint32_t e2m1_binade(float a) { return max(__float_as_uint(a) & 0x7f800000u, 0x3f800000u); }
__device__ inline uint32_t codes_below(uint32_t binade) { return (binade - 0x3f800000u) >> 22; }

__device__ inline void round_to_nearest(float v, uint8_t& code, float& value) {
    const float a = fminf(fabsf(v), kE2M1Max);
    const uint32_t binade = e2m1_binade(a), sign = __float_as_uint(v) & 0x80000000u;
    // Numbers from here on are whole steps: adding it rounds, to even.
    const uint32_t whole = binade + (22u << 23);
    const float rounded = a + __uint_as_float(whole);
    code = static_cast<uint8_t>((__float_as_uint(rounded) - whole + codes_below(binade)) | sign >> 28);
    value = __uint_as_float(__float_as_uint(rounded - __uint_as_float(whole)) | sign);
}
__device__ inline void round_by_coin(float v, uint16_t coin, uint8_t& code, float& value) {
    const float a = fminf(fabsf(v), kE2M1Max);
    const uint32_t binade = e2m1_binade(a), sign = __float_as_uint(v) & 0x80000000u;
    const float steps = a * __uint_as_float((255u << 23) - binade);  // 2^(1 - e) a, below 4
    // (coin + 1/2) / 65536; both sums are exact.
    const float threshold = __uint_as_float(0x3f800000u | uint32_t{coin} << 7) - (1.0f - 0x1p-17f);
    const float down = truncf(steps);
    const float whole = steps - down > threshold ? down + 1.0f : down;
    const uint32_t count = __float_as_uint(whole + 0x1p23f) & 7u;
    code = static_cast<uint8_t>((count + codes_below(binade)) | sign >> 28);
    value = __uint_as_float(__float_as_uint(whole * __uint_as_float(binade - (1u << 23))) | sign);
}

// Of 16 scaled values, the first of which has this index in the operand.
__device__ __forceinline__ Codes round_group(const KernelSpec& s, const Job& job, int64_t first,
                                             const float (&v)[kGroup]) {
    Codes codes;
    const auto each = [&](auto element, auto round) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            codes.of[i] = round(i);
            codes.value[i] = element.decode(codes.of[i]);
        }
    };
    if (s.round == Rounding::stochastic) {
        Philox coins[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) coins[i] = element_coins(job.key, static_cast<uint64_t>(first) / 8 + i);
        if (s.element == Element::e2m1) {
#pragma unroll
            for (int i = 0; i < kGroup; ++i)
                round_by_coin(v[i], coins[i / 8].coin(i % 8), codes.of[i], codes.value[i]);
        } else {
            with_element(s.element, [&](auto element) {
                each(element, [&](int i) { return element.stochastic(v[i], coins[i / 8].coin(i % 8)); });
            });
        }
    } else if (s.round == Rounding::nearest_away) {
        each(E2M1Element{}, [&](int i) { return e2m1_nearest_away(v[i]); });
    } else if (s.round == Rounding::nearest_down) {
        each(E2M1Element{}, [&](int i) { return e2m1_nearest_down(v[i]); });
    } else if (s.element == Element::e2m1) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) round_to_nearest(v[i], codes.of[i], codes.value[i]);
    } else {
        with_element(s.element,
                     [&](auto element) { each(element, [&](int i) { return element.nearest(v[i]); }); });
    }
    return codes;
}

__device__ inline void store_codes(const KernelSpec& s, const Job& job, int64_t first, const Codes& codes) {
    if (bits_of(s.element) == 8) {
        uint32_t words[4] = {};
#pragma unroll
        for (int i = 0; i < kGroup; ++i) words[i / 4] |= static_cast<uint32_t>(codes.of[i]) << (i % 4 * 8);
        *reinterpret_cast<uint4*>(job.codes + first) = {words[0], words[1], words[2], words[3]};
        return;
    }
    uint32_t words[2] = {};
#pragma unroll
    for (int i = 0; i < kGroup; ++i) words[i / 8] |= static_cast<uint32_t>(codes.of[i]) << (i % 8 * 4);
    *reinterpret_cast<uint2*>(job.codes + first / 2) = {words[0], words[1]};
}

// What products read, code * scale: exact in BF16.
__device__ inline void store_operand(const Job& job, int64_t first, const Codes& codes, float scale) {
    uint32_t words[kGroup / 2];
#pragma unroll
    for (int i = 0; i < kGroup / 2; ++i) {
        words[i] = __byte_perm(__float_as_uint(codes.value[2 * i] * scale),
                               __float_as_uint(codes.value[2 * i + 1] * scale), 0x7632);
    }
    auto* const to = reinterpret_cast<uint4*>(job.operand + first);
    to[0] = {words[0], words[1], words[2], words[3]};
    to[1] = {words[4], words[5], words[6], words[7]};
}

// The results of a group: its codes, its scale byte (where the format has one) and, `scale` being what that
// is worth, its part of the operand. Each where the caller wants it.
__device__ inline void store_group(const KernelSpec& s, const Job& job, const Group& g, const Codes& codes,
                                   uint8_t byte, float scale) {
    const int64_t first = g.row * job.padded_cols + g.col;
    if (job.codes != nullptr) {
        store_codes(s, job, first, codes);
        if (job.scales != nullptr && g.col % s.block_cols == 0) job.scales[first / s.block_cols] = byte;
    }
    if (job.operand != nullptr) store_operand(job, first, codes, scale);
}

// --- values that the rows of a square block share ---

// One float of each thread, laid out as the threads are: [kRows][8].
template <int kRows>
struct PerThread {
    float of[kRows][kGroups];

    // Called by all threads: the largest `mine` of the columns and rows of the thread's block. The first two
    // dimensions of the block are at most 128.
    __device__ float max_of_block(float mine, const KernelSpec& s) {
        mine = max_of_threads(mine, s.block_cols);
        if (s.block_rows == 1) return mine;
        const int row = static_cast<int>(threadIdx.x) / kGroups;
        const int group = static_cast<int>(threadIdx.x) % kGroups;
        __syncthreads();
        of[row][group] = mine;
        __syncthreads();
        const int first = row / s.block_rows * s.block_rows;
        for (int r = first; r < first + s.block_rows; ++r) mine = fmaxf(mine, of[r][group]);
        return mine;
    }

    // Called by all threads: the error of the thread's block of 16 x 16 from those of its rows, by a binary
    // tree, r with r + 8, + 4, + 2, + 1.
    __device__ float error_of_block(float mine, const KernelSpec& s) {
        if (s.block_rows == 1) return mine;
        const int row = static_cast<int>(threadIdx.x) / kGroups;
        const int group = static_cast<int>(threadIdx.x) % kGroups;
        __syncthreads();
        of[row][group] = mine;
        __syncthreads();
        float rows[kNvfp4Group];
#pragma unroll
        for (int r = 0; r < kNvfp4Group; ++r) rows[r] = of[row / kNvfp4Group * kNvfp4Group + r][group];
#pragma unroll
        for (int half = kNvfp4Group / 2; half > 0; half /= 2) {
#pragma unroll
            for (int r = 0; r < half; ++r) {
                rows[r] = s.scale == ScaleRule::four_six_amax ? fmaxf(rows[r], rows[r + half])
                                                              : rows[r] + rows[r + half];
            }
        }
        return rows[0];
    }
};

// --- NVFP4 ---

// e4m3_nearest() of a number that is not negative: one instruction from sm_89 on.
__device__ inline uint8_t nearest_scale(float v) {
#if __CUDA_ARCH__ >= 890
    return static_cast<uint8_t>(__nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3));
#else
    return e4m3_nearest(v);
#endif
}

// x / c, correctly rounded, where neither it nor the remainder leaves the normal numbers. inverse: fl(1 / c).
// (Markstein, Computation of elementary functions on the IBM RISC System/6000, 1990.)
__device__ inline float quotient(float x, float c, float inverse) {
    const float q = x * inverse;
    return __fmaf_rn(__fmaf_rn(-q, c, x), inverse, q);
}

// Coins of scales: a draw has those of eight groups. Where the eight threads of 128 columns share one, each
// of them makes that of one of eight steps.
class ScaleCoins {
  public:
    __device__ uint16_t coin(const Job& job, int64_t group) {
        return scale_coins(job.key, static_cast<uint64_t>(group) / 8).coin(static_cast<int>(group % 8));
    }
    // Called by all threads; `group` is that of this thread in this step.
    template <int kRows>
    __device__ __forceinline__ uint16_t coin_of_step(const Job& job, int64_t group, int step) {
        const int thread = static_cast<int>(threadIdx.x) % kGroups;
        if (step % kGroups == 0) {
            const int64_t groups_between_steps = kRows * (job.padded_cols / kGroup);
            draw_ = scale_coins(job.key, static_cast<uint64_t>(group + thread * groups_between_steps) / 8);
        }
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            words[i] = __shfl_sync(0xffffffffu, draw_.word[i], step % kGroups, kGroups);
        const uint32_t low = (thread & 2) != 0 ? words[1] : words[0],
                       high = (thread & 2) != 0 ? words[3] : words[2];
        const uint32_t word = (thread & 4) != 0 ? high : low;
        return static_cast<uint16_t>((thread & 1) != 0 ? word >> 16 : word);
    }

  private:
    Philox draw_;
};

__device__ inline uint8_t round_scale(const KernelSpec& s, const Job& job, float target, int64_t group) {
    if (s.scale_round == ScaleRounding::nearest) return nearest_scale(target);
    return e4m3_stochastic(target, ScaleCoins().coin(job, group));
}

__device__ __forceinline__ Codes encode_group(const KernelSpec& s, const Job& job, const Nvfp4Tensor& tensor,
                                              uint8_t scale, const Group& g) {
    if (scale == 0) return {};
    const float factor = nvfp4_element_factor(tensor, scale);
    float v[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) v[i] = g.x[i] * factor;  // rounding saturates
    return round_group(s, job, g.row * job.padded_cols + g.col, v);
}

// The error of a group in one of three measures; error(i): of an element.
template <typename Error>
__device__ __forceinline__ float sum_of_errors(ScaleRule measure, Error&& error) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
        const float d = error(i);
        if (measure == ScaleRule::four_six_mse) sum += d * d;
        if (measure == ScaleRule::four_six_mae) sum += fabsf(d);
        if (measure == ScaleRule::four_six_amax) sum = fmaxf(sum, fabsf(d));
    }
    return sum;
}

__device__ __forceinline__ float group_error(const KernelSpec& s, const Nvfp4Tensor& tensor, const Group& g,
                                             const Codes& codes, uint8_t scale) {
    if (s.emulation) {
        return sum_of_errors(s.scale,
                             [&](int i) { return emulated_error(tensor, g.x[i], codes.of[i], scale); });
    }
    // four_six_error(); of a tensor with ordinary numbers without a division.
    const float byte = e4m3_decode(scale);
    if (tensor.amax >= 0x1p-60f && tensor.amax <= 0x1p60f) {
        const float inverse = 1.0f / tensor.rule.reach;
        return sum_of_errors(s.scale, [&](int i) {
            return quotient(codes.value[i] * byte * tensor.amax, tensor.rule.reach, inverse) - g.x[i];
        });
    }
    return sum_of_errors(
        s.scale, [&](int i) { return codes.value[i] * byte * tensor.amax / tensor.rule.reach - g.x[i]; });
}

__device__ __forceinline__ float eden_factor_of_group(const Group& g, const Codes& codes, uint8_t scale,
                                                      float tensor_scale, float unit) {
    const float byte = e4m3_decode(scale);
    float num[kGroup], den[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
        const float value = codes.value[i] * byte * tensor_scale;
        num[i] = (g.x[i] * unit) * (g.x[i] * unit);
        den[i] = (g.x[i] * unit) * (value * unit);
    }
    return eden_ratio(tree_sum_of_group(num), tree_sum_of_group(den));
}

// The same over `cols` columns on scaled values.
__device__ __forceinline__ float eden_factor_of_scaled(const float (&v)[kGroup], const Codes& codes,
                                                       int cols) {
    float num[kGroup], den[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
        num[i] = v[i] * v[i];
        den[i] = v[i] * codes.value[i];
    }
    return eden_ratio(sum_of_threads(tree_sum_of_group(num), cols),
                      sum_of_threads(tree_sum_of_group(den), cols));
}

// Called by all threads; `is_there` where the group lies in the operand.
template <int kRows>
__device__ __forceinline__ void quantize_nvfp4(const KernelSpec& s, const Job& job,
                                               const Nvfp4Tensor& of_tensor, Group& g, bool is_there,
                                               PerThread<kRows>& shared, ScaleCoins& coins, int step) {
    const Nvfp4Tensor tensor =
        s.outer ? nvfp4_tensor(job.rule, max_of_threads(max_of(g.x), kTileCols)) : of_tensor;
    const auto block_scale = [&](uint8_t byte) {
        return s.outer && byte == 0 ? uint8_t{1} : byte;  // with outer=1x128 no scale is below 2^-9
    };
    const float amax = shared.max_of_block(max_of(g.x), s);
    uint8_t scale = block_scale(0);
    Codes codes{};
    if (amax != 0.0f) {
        scale = s.emulation            ? emulated_scale(tensor, amax, 1.0f)
                : is_four_six(s.scale) ? block_scale(nearest_scale(amax / tensor.rule.top * tensor.encode))
                                       : block_scale(nearest_scale(amax * tensor.block_factor));
        codes = encode_group(s, job, tensor, scale, g);
    }
    if (is_four_six(s.scale)) {
        const uint8_t four = s.emulation
                                 ? emulated_scale(tensor, amax, 1.5f)
                                 : block_scale(nearest_scale(amax / tensor.rule.top * tensor.encode * 1.5f));
        const Codes other = encode_group(s, job, tensor, four, g);
        // Rows beyond the operand count 0.
        const float error_six =
            shared.error_of_block(g.row < job.rows ? group_error(s, tensor, g, codes, scale) : 0.0f, s);
        const float error_four =
            shared.error_of_block(g.row < job.rows ? group_error(s, tensor, g, other, four) : 0.0f, s);
        if (amax != 0.0f && error_four < error_six) {
            scale = four;
            codes = other;
        }
    }
    const int64_t group = (g.row * job.padded_cols + g.col) / kNvfp4Group;
    if (s.correct == Correction::eden) {
        const float factor = eden_factor_of_group(g, codes, scale, tensor.scale, eden_unit(tensor.amax));
        const float target = factor * e4m3_decode(scale);
        if (s.scale_round == ScaleRounding::stochastic && s.rotation == kTileCols) {
            const uint16_t coin = coins.coin_of_step<kRows>(job, group, step);
            if (scale != 0) scale = e4m3_stochastic(target, coin);
        } else if (scale != 0) {
            scale = round_scale(s, job, target, group);
        }
    }
    if (s.correct == Correction::eden_block) {
        const float factor = scale == 0 ? 0.0f : nvfp4_element_factor(tensor, scale);
        float v[kGroup];
#pragma unroll
        for (int i = 0; i < kGroup; ++i) v[i] = scale == 0 ? 0.0f : g.x[i] * factor;
        const float correction = eden_factor_of_scaled(v, codes, s.rotation);
        if (scale != 0) scale = round_scale(s, job, correction * e4m3_decode(scale), group);
    }
    if (!is_there) return;
    store_group(s, job, g, codes, scale, e4m3_decode(scale));
    if (s.outer && g.col % kTileCols == 0) {
        job.fp32_scales[(g.row * job.padded_cols + g.col) / kTileCols] = tensor.scale;
    }
}

// tensor=posthoc: codes and wide scales; the bytes are made of those when the largest is known.
template <int kRows>
__device__ __forceinline__ float quantize_posthoc(const KernelSpec& s, const Job& job, Group& g,
                                                  bool is_there, PerThread<kRows>& shared) {
    const float scale = posthoc_scale(job.rule, shared.max_of_block(max_of(g.x), s));
    Codes codes{};
    float wide = 0.0f;
    if (scale != 0.0f) {
        const float factor = posthoc_element_factor(scale);
        float v[kGroup];
#pragma unroll
        for (int i = 0; i < kGroup; ++i) v[i] = g.x[i] * factor;
        codes = round_group(s, job, g.row * job.padded_cols + g.col, v);
        const bool eden = s.correct == Correction::eden;
        wide = posthoc_wide_scale(scale, eden ? eden_factor_of_scaled(v, codes, kGroup) : 1.0f);
    }
    if (!is_there) return 0.0f;
    store_codes(s, job, g.row * job.padded_cols + g.col, codes);
    job.wide[(g.row * job.padded_cols + g.col) / kNvfp4Group] = bf16_encode(wide);
    return wide;
}

// --- MXFP4 and MXFP8 ---

// quest_spread() over the 32 values of two threads.
__device__ inline float spread_of_block(const Group& g, float amax, bool about_mean) {
    const int exponent = amax >= 0x1p60f ? exponent_of(amax) : 0;
    const float unit = power_of_two(-exponent);
    float first[kGroup], second[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
        first[i] = g.x[i] * unit;
        second[i] = first[i] * first[i];
    }
    float square = sum_of_threads(tree_sum_of_group(second), kMxfp4Block) / kMxfp4Block;
    const float mean = sum_of_threads(tree_sum_of_group(first), kMxfp4Block) / kMxfp4Block;
    if (about_mean) square = fmaxf(square - mean * mean, 0.0f);
    return sqrtf(square) * power_of_two(exponent);
}

__device__ inline uint8_t mx_scale(const KernelSpec& s, const Job& job, const Group& g, float amax) {
    if (s.format == Format::mxfp8) {
        const Mxfp8Rule rule = mxfp8_rule(s.element);
        switch (s.scale) {
            case ScaleRule::ceil:
                return mxfp8_ceil(rule, amax);
            case ScaleRule::rceil:
                return mxfp8_rceil(rule, amax);
            case ScaleRule::even:
                return mxfp8_even(rule, amax);
            default:
                return mxfp8_floor(rule, amax);
        }
    }
    switch (s.scale) {
        case ScaleRule::ceil:
            return mxfp4_ceil(amax);
        case ScaleRule::rceil:
            return mxfp4_rceil(amax);
        case ScaleRule::even:
            return mxfp4_even(amax);
        case ScaleRule::quest_std:
            return mxfp4_quest(spread_of_block(g, amax, true), job.mult);
        case ScaleRule::quest_rms:
            return mxfp4_quest(spread_of_block(g, amax, false), job.mult);
        default:
            return mxfp4_floor(amax);  // floor and three-quarters
    }
}

template <int kRows>
__device__ __forceinline__ void quantize_mx(const KernelSpec& s, const Job& job, Group& g, bool is_there,
                                            PerThread<kRows>& shared) {
    const float amax = shared.max_of_block(max_of(g.x), s);
    const uint8_t byte = mx_scale(s, job, g, amax);
    const float factor = mxfp4_element_factor(byte);
    float v[kGroup];
    uint32_t inside = 0;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
        v[i] = (s.scale == ScaleRule::three_quarters ? kThreeQuarters * g.x[i] : g.x[i]) * factor;
        inside |= static_cast<uint32_t>(fabsf(v[i]) < kE2M1Max) << i;
    }
    if (!is_there) return;
    const int64_t first = g.row * job.padded_cols + g.col;
    Codes codes{};
    if (amax > 0.0f) codes = round_group(s, job, first, v);
    store_group(s, job, g, codes, byte, e8m0_decode(byte));
    if (s.mask) *reinterpret_cast<uint16_t*>(job.mask + first / 8) = static_cast<uint16_t>(inside);
}

// --- FP32 scales ---

template <int kRows>
__device__ __forceinline__ void quantize_fp32(const KernelSpec& s, const Job& job, float tensor_amax,
                                              Group& g, bool is_there, PerThread<kRows>& shared) {
    float amax = tensor_amax;
    const bool has_blocks = s.block_cols > kGroup;
    if (has_blocks) amax = shared.max_of_block(max_of(g.x), s);
    if (!is_there) return;
    if (s.is_row) amax = job.fp32_scales[g.row];  // its amax, until the last pass
    const Fp32Scale scale = fp32_scale(largest_of(s.element), amax);
    float v[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) v[i] = amax == 0.0f ? 0.0f : g.x[i] * scale.encode;
    const int64_t first = g.row * job.padded_cols + g.col;
    store_group(s, job, g, round_group(s, job, first, v), 0, 1.0f);
    if (has_blocks && g.col % s.block_cols == 0) job.fp32_scales[first / s.block_cols] = scale.scale;
}

// --- kernels ---

__device__ inline float scaled(const Job& job, float tensor_scale) {
    return job.scale == nullptr ? tensor_scale : tensor_scale * *job.scale;
}

// The largest magnitude after rotation: of the tensor, or of each row (kOfRows).
template <typename T, bool kTransposed, int kRows, bool kOfRows>
__global__ void __launch_bounds__(kRows* kGroups) amax_kernel(const __grid_constant__ Job job) {
    extern __shared__ uint4 dynamic[];
    __shared__ uint32_t of_block;
    if (threadIdx.x == 0) of_block = 0;
    const Tiles<kTransposed, kRows> tiles(job);
    Reader<T, kTransposed, kRows> reader(job, dynamic);
    reader.fetch(tiles.first_row, tiles.first_col);
    __syncthreads();
    uint32_t largest = 0;
    for (int step = 0; step < tiles.count; ++step) {
        Group g;
        reader.take(tiles.row(step), tiles.first_col, g);
        if (step + 1 < tiles.count) reader.fetch(tiles.row(step + 1), tiles.first_col);
        if (job.spec.rotation != 0) rotate_group(job.spec, job, job.amax_factor, g);
        if constexpr (kOfRows) {
            uint32_t of_row = bits_of_largest(g.x);
            for (int lane = kGroups / 2; lane > 0; lane /= 2) {
                of_row = max(of_row, __shfl_xor_sync(0xffffffffu, of_row, lane));
            }
            if (g.col % kTileCols == 0 && g.row < job.rows) {
                atomicMax(reinterpret_cast<uint32_t*>(job.fp32_scales) + g.row, of_row);
            }
        } else {
            largest = max(largest, bits_of_largest(g.x));
        }
    }
    if constexpr (!kOfRows) {
        largest = __reduce_max_sync(0xffffffffu, largest);
        if (threadIdx.x % kWarp == 0) atomicMax(&of_block, largest);
        __syncthreads();
        if (threadIdx.x == 0) atomicMax(&job.scalars->amax, of_block);
    }
}

// The number that a tensor's own scale is, given its amax; *tensor: what NVFP4's groups need of it.
__device__ inline float tensor_scale_of(const KernelSpec& s, const Job& job, float amax,
                                        Nvfp4Tensor* tensor) {
    if (s.format == Format::nvfp4 && !s.outer) {
        const float of_tensor = s.tensor == TensorScale::none ? job.rule.reach : amax;
        *tensor = s.emulation ? emulated_tensor(job.rule, of_tensor) : nvfp4_tensor(job.rule, of_tensor);
        return tensor->scale;
    }
    if (s.format == Format::mxfp4 && s.scale == ScaleRule::three_quarters) return kFourThirds;
    const bool has_none = s.format == Format::nvfp4 || s.format == Format::mxfp4 ||
                          s.format == Format::mxfp8 || s.is_row || s.block_cols > kGroup;
    return has_none ? 1.0f : fp32_scale(largest_of(s.element), amax).scale;
}

template <typename Spec, typename T, bool kTransposed, int kRows>
__global__ void __launch_bounds__(kRows* kGroups, Spec::kBlocks)
    quantize_kernel(const __grid_constant__ Job job) {
    extern __shared__ uint4 dynamic[];
    __shared__ PerThread<kRows> shared;
    __shared__ Nvfp4Tensor tensor;
    __shared__ float amax;
    const KernelSpec s = Spec::of(job);
    const Tiles<kTransposed, kRows> tiles(job);
    Reader<T, kTransposed, kRows> reader(job, dynamic);
    reader.fetch(tiles.first_row, tiles.first_col);
    if (threadIdx.x == 0) {
        amax = job.given_amax >= 0.0f ? job.given_amax : *job.amax;
        const float scale = tensor_scale_of(s, job, amax, &tensor);
        if (blockIdx.x == 0 && s.tensor != TensorScale::posthoc) *job.tensor_scale = scaled(job, scale);
    }
    __syncthreads();
    uint32_t largest_value = 0;
    float largest_scale = 0.0f;
    ScaleCoins coins;
    for (int step = 0; step < tiles.count; ++step) {
        Group g;
        reader.take(tiles.row(step), tiles.first_col, g);
        if (step + 1 < tiles.count) reader.fetch(tiles.row(step + 1), tiles.first_col);
        if (s.rotation != 0) rotate_group(s, job, job.factor, g);
        largest_value = max(largest_value, bits_of_largest(g.x));
        const bool is_there = g.row < job.rows && g.col < job.padded_cols;
        if (s.format == Format::mxfp4 || s.format == Format::mxfp8) {
            quantize_mx(s, job, g, is_there, shared);
        } else if (s.format != Format::nvfp4) {
            quantize_fp32(s, job, amax, g, is_there, shared);
        } else if (s.tensor == TensorScale::posthoc) {
            largest_scale = fmaxf(largest_scale, quantize_posthoc(s, job, g, is_there, shared));
        } else {
            quantize_nvfp4(s, job, tensor, g, is_there, shared, coins, step);
        }
    }
    if (largest_value >= 0x7f800000u) *job.fault = 1;
    if (s.tensor == TensorScale::posthoc) {
        const uint32_t largest = __reduce_max_sync(0xffffffffu, __float_as_uint(largest_scale));
        if (threadIdx.x % kWarp == 0) atomicMax(&job.scalars->posthoc, largest);
    }
}

template <typename T, bool kTransposed, int kRows>
void launch_tiles(const Context& context, void (*kernel)(Job), Job job) {
    using Type = typename InTile<T>::Type;
    constexpr int64_t kManyBlocks = 2048, kMostSteps = 8;
    const int64_t rows = divide_up<int64_t>(job.rows, kRows);
    const int64_t cols = divide_up<int64_t>(job.padded_cols, kTileCols);
    job.steps = static_cast<int>(std::clamp<int64_t>(rows * cols / kManyBlocks, 1, kMostSteps));
    const int64_t blocks = divide_up<int64_t>(rows, job.steps) * cols;
    const size_t shared = kTransposed ? sizeof(Type) * TransposedTile<Type, kRows>::kCount : 0;
    if (shared > 40 << 10) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared)),
              "shared memory of a kernel");
    }
    launch(context, kernel, dim3(static_cast<unsigned>(blocks)), dim3(kRows * kGroups), shared, job);
}

inline constexpr int kFewRows = 32;    // of a tile
inline constexpr int kManyRows = 128;  // where squares have so many

// The kernels of quantize_hot.cu, for BF16 and the specs that training spends its time in. False where there
// is none.
bool quantize_hot(const Context& context, const Job& job, bool transposed);

}  // namespace nibble::cuda
