#include <bit>

#include "quant/cuda_forms.h"
#include "quant/kernel_e2m1.cuh"
#include "quant/tiles.cuh"

namespace nibble::cuda {

namespace {

constexpr int kRows = 32;  // of a tile

// What decides a value beside its code.
struct Source {
    Format format;
    Element element;
    const uint8_t *codes, *scales;  // scales: null where the format has none
    const float* fp32_scales;       // null where they are not part of the values
    const float* tensor_scale;      // likewise
    int64_t rows, padded_cols;
    int block_cols;
    int64_t fp32_cols;  // of an FP32 scale

    Source(const QuantizedMatrix& q, bool with_fp32, bool with_tensor_scale)
        : format(q.spec.format),
          element(q.spec.element),
          codes(q.codes.as<uint8_t>()),
          scales(q.spec.has_scale_bytes() ? q.scales.as<uint8_t>() : nullptr),
          fp32_scales(with_fp32 ? q.fp32_scales.as<float>() : nullptr),
          tensor_scale(with_tensor_scale ? q.tensor_scale_ptr() : nullptr),
          rows(q.rows),
          padded_cols(q.padded_cols),
          block_cols(q.spec.block_size()),
          fp32_cols(with_fp32 ? q.padded_cols / q.fp32_scales.cols() : 1) {}
};

__device__ void decode_group(const Source& q, int64_t row, int64_t col, float (&values)[kGroup]) {
    const int64_t first = row * q.padded_cols + col;
    const float scale = q.scales == nullptr         ? 1.0f
                        : q.format == Format::nvfp4 ? e4m3_decode(q.scales[first / q.block_cols])
                                                    : e8m0_decode(q.scales[first / q.block_cols]);
    with_element(q.element, [&](auto element) {
        if (bits_of(q.element) == 8) {
            alignas(16) uint8_t codes[kGroup];
            *reinterpret_cast<uint4*>(codes) = *reinterpret_cast<const uint4*>(q.codes + first);
#pragma unroll
            for (int i = 0; i < kGroup; ++i) values[i] = element.decode(codes[i]) * scale;
        } else {
            const uint2 codes = *reinterpret_cast<const uint2*>(q.codes + first / 2);
#pragma unroll
            for (int i = 0; i < kGroup; ++i) {
                const uint32_t code = (i < 8 ? codes.x : codes.y) >> (i % 8 * 4) & 15u;
                values[i] = element.decode(static_cast<uint8_t>(code)) * scale;
            }
        }
    });
    const float wide = q.fp32_scales == nullptr ? 1.0f : q.fp32_scales[first / q.fp32_cols];
    const float factor = q.tensor_scale == nullptr ? 1.0f : *q.tensor_scale;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) values[i] = values[i] * wide * factor;
}

// code * scale is exact in BF16: what it drops is zero.
__device__ void put(float value, Bf16& to) { to = {static_cast<uint16_t>(__float_as_uint(value) >> 16)}; }
__device__ void put(float value, float& to) { to = value; }

template <typename T>
__global__ void dequantize_kernel(const __grid_constant__ Source q, T* out) {
    const int64_t group = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    const int64_t in_row = q.padded_cols / kGroup;
    if (group >= q.rows * in_row) return;
    float values[kGroup];
    decode_group(q, group / in_row, group % in_row * kGroup, values);
    alignas(16) T result[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) put(values[i], result[i]);
    auto* const to = reinterpret_cast<uint4*>(out + group * kGroup);
#pragma unroll
    for (size_t i = 0; i < sizeof(result) / sizeof(uint4); ++i) to[i] = reinterpret_cast<uint4*>(result)[i];
}

// E2M1 under scale bytes as BF16, eight elements a thread at a time: `count` such pieces, of which blocks
// have 2^shift.
constexpr int kFastThreads = 256, kFastPieces = 4;
__global__ void __launch_bounds__(kFastThreads)
    dequantize_e2m1_kernel(const uint32_t* codes, const uint8_t* scales, bool is_e8m0, int shift,
                           int64_t count, uint4* out) {
    const int64_t first = int64_t{blockIdx.x} * kFastThreads * kFastPieces + threadIdx.x;
    uint32_t eight[kFastPieces] = {}, scale[kFastPieces] = {};
#pragma unroll
    for (int i = 0; i < kFastPieces; ++i) {
        const int64_t piece = first + i * kFastThreads;
        if (piece >= count) continue;
        eight[i] = codes[piece];
        scale[i] = scales[piece >> shift];
    }
#pragma unroll
    for (int i = 0; i < kFastPieces; ++i) {
        const int64_t piece = first + i * kFastThreads;
        if (piece >= count) continue;
        const auto byte = static_cast<uint8_t>(scale[i]);
        const float value = is_e8m0 ? e8m0_decode(byte) : e4m3_decode(byte);
        uint32_t words[4];
        e2m1_times(eight[i], __byte_perm(__float_as_uint(value), 0, 0x3232), words);
        out[piece] = {words[0], words[1], words[2], words[3]};
    }
}

// out [padded_cols, stride], through a tile in shared memory; zeros beyond the rows.
template <typename T>
__global__ void __launch_bounds__(kRows* kGroups)
    dequantize_transposed_kernel(const __grid_constant__ Source q, T* out, int64_t stride) {
    using Tile = TransposedTile<T, kRows>;
    __shared__ T tile[Tile::kCount];
    const int64_t row_tiles = divide_up<int64_t>(stride, kRows);
    const int64_t first_row = blockIdx.x % row_tiles * kRows, first_col = blockIdx.x / row_tiles * kTileCols;
    const int row = static_cast<int>(threadIdx.x) / kGroups, group = static_cast<int>(threadIdx.x) % kGroups;
    const int64_t col = first_col + group * kGroup;
    if (col < q.padded_cols) {
        float values[kGroup] = {};
        if (first_row + row < q.rows) decode_group(q, first_row + row, col, values);
#pragma unroll
        for (int i = 0; i < kGroup; ++i) put(values[i], tile[Tile::at(group * kGroup + i, row)]);
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTileCols * kRows; i += kRows * kGroups) {
        const int k = i / kRows, r = i % kRows;
        if (first_col + k >= q.padded_cols || first_row + r >= stride) continue;
        out[(first_col + k) * stride + first_row + r] = tile[Tile::at(k, r)];
    }
}

template <typename T>
void dequantize_transposed(const Context& context, const Source& q, T* out, int64_t stride) {
    const int64_t tiles = divide_up<int64_t>(stride, kRows) * divide_up<int64_t>(q.padded_cols, kTileCols);
    launch(context, dequantize_transposed_kernel<T>, dim3(static_cast<unsigned>(tiles)),
           dim3(kRows * kGroups), 0, q, out, stride);
}

// Scales of square tiles, which every row of a tile repeats: to[col, group] <- from[group * tile, col /
// tile].
__global__ void transpose_scales_kernel(const float* from, int64_t from_groups, int tile, int64_t count,
                                        int64_t to_groups, float* to) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= count) return;
    to[i] = from[i % to_groups * tile * from_groups + i / to_groups / tile];
}

template <typename T>
void dequantize_rows(const Context& context, const Source& q, T* out) {
    constexpr int kThreads = 256;
    const int64_t blocks = divide_up<int64_t>(q.rows * q.padded_cols, kGroup * kThreads);
    launch(context, dequantize_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, q, out);
}

void dequantize_e2m1(const Context& context, const QuantizedMatrix& q, Bf16* out) {
    const int64_t count = q.rows * q.padded_cols / 8;
    const int shift = std::countr_zero(static_cast<unsigned>(q.spec.block_size()) / 8);
    launch(context, dequantize_e2m1_kernel,
           dim3(static_cast<unsigned>(divide_up<int64_t>(count, kFastThreads * kFastPieces))),
           dim3(kFastThreads), 0, reinterpret_cast<const uint32_t*>(q.codes.as<uint8_t>()),
           q.scales.as<uint8_t>(), q.spec.is_mx(), shift, count, reinterpret_cast<uint4*>(out));
}

}  // namespace

void dequantize_operand(Context& context, const QuantizedMatrix& q, const Tensor& out) {
    if (q.spec.element == Element::e2m1 && q.spec.has_scale_bytes() && !q.spec.has_fp32_groups() &&
        out.dtype == DType::bf16)
        return dequantize_e2m1(context, q, out.as<Bf16>());
    const Source source(q, q.spec.has_fp32_groups(), false);
    with_elements(out, [&](auto* values) { dequantize_rows(context, source, values); });
}

void dequantize_groups(Context& context, const QuantizedMatrix& q, const Tensor& out) {
    if (q.spec.element == Element::e2m1 && q.spec.has_scale_bytes())
        return dequantize_e2m1(context, q, out.as<Bf16>());
    dequantize_rows(context, Source(q, false, false), out.as<Bf16>());
}

void dequantize(Context& context, const QuantizedMatrix& q, const Tensor& out) {
    dequantize_rows(context, Source(q, q.spec.has_fp32_scales(), true), out.as<float>());
}

void dequantize_operand_transposed(Context& context, const QuantizedMatrix& q, const Tensor& out) {
    const Source source(q, q.spec.has_fp32_scales(), false);
    with_elements(out, [&](auto* values) { dequantize_transposed(context, source, values, q.rows); });
}

void transpose_groups(Context& context, const QuantizedMatrix& q, const QuantizedMatrix& out) {
    constexpr int kThreads = 256;
    dequantize_transposed(context, Source(q, false, false), out.operand.as<Bf16>(), out.padded_cols);
    const int64_t count = out.fp32_scales.count();
    launch(context, transpose_scales_kernel, dim3(static_cast<unsigned>(divide_up<int64_t>(count, kThreads))),
           kThreads, 0, q.fp32_scales.as<float>(), q.fp32_scales.cols(), q.spec.fp32_block_size(), count,
           out.fp32_scales.cols(), out.fp32_scales.as<float>());
}

}  // namespace nibble::cuda
