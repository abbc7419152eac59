// What the drivers in this room hand to their kernels: plain data, the same for every instruction set. A
// kernel is compiled for several instruction sets, in the file of its name; its chooser gives the best for
// this machine, or null where there is none and the scalar code serves.
#pragma once

#include <bit>
#include <cstdint>

#include "numerics/numerics.h"
#include "quant/internal.h"

namespace nibble {

inline constexpr int kMaxLanes = 16;  // 32-bit lanes of the widest vector
inline constexpr int kMaxUnit = 128;  // elements
inline constexpr int kMaxGroups = kMaxUnit / kNvfp4Group;

// The fixed part of a Philox stream's counters, and its keys of all rounds.
struct CoinStream {
    uint64_t purpose = 0, step = 0, operand = 0;
    uint64_t key0[10] = {}, key1[10] = {};

    CoinStream() = default;
    CoinStream(const RandomKey& key, Purpose purpose_of_draw);
};

struct QuantizeJob {
    QuantizeJob(const QuantSpec& spec, const Tensor& x, const RandomKey& key, QuantizedMatrix& out,
                const QuantizeOptions& options);

    const QuantSpec& spec;
    const RandomKey& key;

    // Input: [rows, cols], or transposed, with `stride` elements between its rows. It is worked on in `units`
    // runs of `unit` columns; lanes of one vector are units that lie `lane_stride` apart, counted row after
    // row.
    const void* x;
    bool is_bf16, transposed;
    int64_t rows, cols, stride, padded_cols, units, lane_stride;
    int unit;

    // Rotation: size (0: none), rounds, bits that are flipped first in each, the factor at its end.
    int rotation, rounds;
    bool out_bf16;
    float factor;
    alignas(64) uint32_t signs[2][kMaxUnit] = {};

    // Output.
    uint8_t *codes, *scales, *mask;

    Nvfp4Tensor tensor{};     // NVFP4, once the tensor's maximum is known
    float posthoc_scale = 0;  // tensor=posthoc, once it is known; 0 in the pass that finds it
    // FP32 scales: what elements are multiplied by, 0 where all are zero; of the tensor, of each row, or of
    // each unit.
    float encode = 0;
    const float *row_encode = nullptr, *unit_encode = nullptr;
    float* outer_scales = nullptr;  // outer=1x128: of each unit, an output

    // Coins: the counter of lane l is that of lane 0 plus an offset; offsets of even lanes come first. Those
    // of scales are for units of eight groups.
    CoinStream element_coins, scale_coins;
    alignas(64) uint64_t element_offsets[kMaxLanes], unit_offsets[kMaxLanes];
};

// Quantises a range of units (of bands of 16 rows for square blocks). Gives the bits of the largest magnitude
// that it met, after rotation; the first pass of tensor=posthoc gives the largest scale instead, if all is
// finite.
using RangeKernel = uint32_t (*)(const QuantizeJob& job, int64_t begin, int64_t end);

RangeKernel nvfp4_kernel(const QuantSpec& spec);   // blocks 1x16
RangeKernel outer_kernel(const QuantSpec& spec);   // the same with outer=1x128
RangeKernel square_kernel(const QuantSpec& spec);  // NVFP4, blocks 16x16
RangeKernel mxfp4_kernel(const QuantSpec& spec);   // blocks 1x32
RangeKernel mxfp8_kernel(const QuantSpec& spec);   // blocks 1x32
RangeKernel fp32_kernel(const QuantSpec& spec);    // FP32 scales
// The largest magnitude alone: of a range of units after their rotation, or of rows of x as they are stored.
RangeKernel amax_kernel(bool rotates);

// The bytes of code * scale in BF16, for every scale byte and code.
struct OperandTables {
    explicit OperandTables(Format format);
    alignas(64) uint8_t low[256][16], high[256][16];
};
const OperandTables& operand_tables(Format format);

// Writes rows begin .. end - 1 of an operand to `out`, F32 or BF16; transposed, they are its columns.
using DequantizeKernel = void (*)(const QuantizedMatrix& q, const Tensor& out, int64_t begin, int64_t end);
DequantizeKernel dequantize_kernel(bool transposed);

// One rotation: sign bits that are flipped before and after the Hadamard transform of `size`.
struct Rotator {
    int size = 0;
    uint32_t before[kMaxRotation] = {}, after[kMaxRotation] = {};
};

// Rotates blocks begin .. end - 1 of x in place.
using RotateKernel = void (*)(const Rotator& rotator, float* x, int64_t begin, int64_t end);

// Writes rows begin .. end - 1 of the transpose of `from`, [rows, cols].
using TransposeKernel = void (*)(const void* from, int64_t rows, int64_t cols, void* to, int64_t begin,
                                 int64_t end);

}  // namespace nibble
