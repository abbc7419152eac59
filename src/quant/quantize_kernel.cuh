// How a GPU quantises. What decides a bit is a call of numerics/, or equals one, in the order of
// reference.cpp. A thread has 16 consecutive columns of a row; eight of them side by side have 128, the
// largest rotation block. For quantize*.cu.
#pragma once

#include "quant/kernel_nvfp4.cuh"
#include "quant/kernel_read.cuh"

namespace nibble::cuda {

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
    for (int i = kGroup - 1; i >= 0; --i) {
        v[i] = (s.scale == ScaleRule::three_quarters ? kThreeQuarters * g.x[i] : g.x[i]) * factor;
        // The sign of the difference enters at bit 0.
        inside = __funnelshift_l(__float_as_uint(fabsf(v[i]) - kE2M1Max), inside, 1);
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

// The end of a pass for the amax of a tensor: `mine`, bits, of the values that this thread met.
__device__ inline void give_amax(uint32_t* amax, uint32_t mine) {
    __shared__ uint32_t of_block;
    if (threadIdx.x == 0) of_block = 0;
    __syncthreads();
    mine = __reduce_max_sync(0xffffffffu, mine);
    if (threadIdx.x % kWarp == 0) atomicMax(&of_block, mine);
    __syncthreads();
    if (threadIdx.x == 0) atomicMax(amax, of_block);
}

// Raises the amax of each row by that of its eight groups, which are side by side. Called by all threads.
__device__ inline void give_amax_of_row(const Job& job, const Group& g) {
    uint32_t of_row = bits_of_largest(g.x);
    for (int lane = kGroups / 2; lane > 0; lane /= 2)
        of_row = max(of_row, __shfl_xor_sync(0xffffffffu, of_row, lane));
    if (g.col % kTileCols == 0 && g.row < job.rows)
        atomicMax(reinterpret_cast<uint32_t*>(job.fp32_scales) + g.row, of_row);
}

// The largest magnitude after rotation: of the tensor, or of each row (kOfRows).
template <bool kTransposed, int kRows, bool kOfRows>
__global__ void __launch_bounds__(kRows* kGroups) amax_kernel(const __grid_constant__ Job job) {
    const Tiles<kTransposed, kRows> tiles(job);
    Reader<kTransposed, kRows> reader(job, dynamic_shared<uint4>());
    uint32_t largest = 0;
    for (int step = 0; step < tiles.count; ++step) {
        Group g;
        reader.take(tiles.row(step), tiles.first_col, g);
        if (job.spec.rotation != 0) rotate_group(job.spec, job, job.amax_factor, g);
        if constexpr (kOfRows) {
            give_amax_of_row(job, g);
        } else {
            largest = max(largest, bits_of_largest(g.x));
        }
    }
    if constexpr (!kOfRows) give_amax(&job.scalars->amax, largest);
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

// What the quantise pass of a tensor begins with: its amax, and what its scale is made of.
struct TensorValues {
    Nvfp4Tensor nvfp4;
    float amax;

    // Called by all threads, once. The first thread block writes the tensor scale.
    __device__ void prepare(const KernelSpec& s, const Job& job) {
        if (threadIdx.x == 0) {
            const float previous = job.previous_amax != nullptr ? *job.previous_amax : 0.0f;
            amax = previous > 0.0f ? previous : *job.amax;
            const float scale = tensor_scale_of(s, job, amax, &nvfp4);
            if (blockIdx.x == 0 && s.tensor != TensorScale::posthoc) *job.tensor_scale = scaled(job, scale);
        }
        __syncthreads();
    }
};

// Quantises one group, rotated already. `step`: of the groups of this thread.
template <int kRows>
__device__ __forceinline__ void quantize_group(const KernelSpec& s, const Job& job,
                                               const TensorValues& tensor, Group& g, PerThread<kRows>& shared,
                                               ScaleCoins& coins, int step, float& largest_scale) {
    const bool is_there = g.row < job.rows && g.col < job.padded_cols;
    if (s.format == Format::mxfp4 || s.format == Format::mxfp8) {
        quantize_mx(s, job, g, is_there, shared);
    } else if (s.format != Format::nvfp4) {
        quantize_fp32(s, job, tensor.amax, g, is_there, shared);
    } else if (s.tensor == TensorScale::posthoc) {
        largest_scale = fmaxf(largest_scale, quantize_posthoc(s, job, g, is_there, shared));
    } else {
        quantize_nvfp4(s, job, tensor.nvfp4, g, is_there, shared, coins, step);
    }
}

// The end of a pass of quantize_group(): what this thread met, the bits of the largest value, and of the wide
// scales that tensor=posthoc made of them the largest. Called by all threads of a warp.
__device__ inline void finish_quantising(const KernelSpec& s, const Job& job, uint32_t largest_value,
                                         float largest_scale) {
    if (largest_value >= 0x7f800000u) *job.fault = 1;
    if (s.tensor != TensorScale::posthoc) return;
    const uint32_t largest = __reduce_max_sync(0xffffffffu, __float_as_uint(largest_scale));
    if (threadIdx.x % kWarp == 0) atomicMax(&job.scalars->posthoc, largest);
}

// Every spec, and x of any kind.
template <bool kTransposed, int kRows>
__global__ void __launch_bounds__(kRows* kGroups) quantize_kernel(const __grid_constant__ Job job) {
    __shared__ PerThread<kRows> shared;
    __shared__ TensorValues tensor;
    const KernelSpec& s = job.spec;
    const Tiles<kTransposed, kRows> tiles(job);
    Reader<kTransposed, kRows> reader(job, dynamic_shared<uint4>());
    tensor.prepare(s, job);
    uint32_t largest_value = 0;
    float largest_scale = 0.0f;
    ScaleCoins coins;
    for (int step = 0; step < tiles.count; ++step) {
        Group g;
        reader.take(tiles.row(step), tiles.first_col, g);
        if (s.rotation != 0) rotate_group(s, job, job.factor, g);
        largest_value = max(largest_value, bits_of_largest(g.x));
        quantize_group(s, job, tensor, g, shared, coins, step, largest_scale);
    }
    finish_quantising(s, job, largest_value, largest_scale);
}

// Gives every thread block a number of tiles that keeps the GPU busy.
inline dim3 divide_tiles(Job& job, int rows_of_tile) {
    constexpr int64_t kManyBlocks = 2048, kMostSteps = 8;
    const int64_t rows = divide_up<int64_t>(job.rows, rows_of_tile);
    const int64_t cols = divide_up<int64_t>(job.padded_cols, kTileCols);
    job.steps = static_cast<int>(std::clamp<int64_t>(rows * cols / kManyBlocks, 1, kMostSteps));
    return dim3(static_cast<unsigned>(divide_up<int64_t>(rows, job.steps) * cols));
}

inline constexpr int kFewRows = 32;    // of a tile
inline constexpr int kManyRows = 128;  // where squares have so many

// The kernels of quantize_hot.cu and quantize_hot_weights.cu, for the specs that training spends its time in.
// False where there is none.
bool has_hot_kernels(const KernelSpec& spec, bool is_bf16, bool transposed);
void find_amax_hot(const Context& context, const Job& job, bool transposed);
void quantize_hot(const Context& context, const Job& job, bool transposed);
// Of all specs that do not rotate.
void find_amaxes_of_rows_hot(const Context& context, const Job& job, bool transposed);
// Of x in F32.
bool has_hot_kernels_of_weights(const KernelSpec& spec, bool transposed);
void find_amax_of_weights_hot(const Context& context, const Job& job, bool transposed);
void quantize_weights_hot(const Context& context, const Job& job, bool transposed);
// The job of a spec with one FP8 scale, x as it is stored: its codes, and their transpose, [cols, to_cols].
bool has_transposing_kernel(const Job& job);
void quantize_with_transpose(const Context& context, const Job& job, uint8_t* transpose, int64_t to_cols);
// The kernels of quantize_hot_both.cu and quantize_both_any.cu, which read x, BF16, once for both of its
// orientations. The amaxes of x as the jobs rotate it, into their scalars; `any` those of rows, too.
bool has_both_amaxes_kernel(const KernelSpec& rows, const KernelSpec& columns);
void find_both_amaxes_hot(const Context& context, const Job& rows, const Job& columns);
void find_both_amaxes_any(const Context& context, const Job& rows, const Job& columns);
// Both operands.
bool has_quantize_both_kernel(const KernelSpec& rows, const KernelSpec& columns);
void quantize_both_hot(const Context& context, const Job& rows, const Job& columns);
void quantize_both_any(const Context& context, const Job& rows, const Job& columns);

}  // namespace nibble::cuda
