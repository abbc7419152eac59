// What the drivers of the fast quantisers hand to their kernels. Plain data, the same for every instruction
// set.
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

    // Input, and its size as stored: `units` runs of `unit` columns, row after row.
    const void* x;
    bool is_bf16;
    int64_t rows, cols, padded_cols, units;
    int unit;

    // Rotation: size (0: none), bits that are flipped first, the factor at the end.
    int rotation;
    bool out_bf16;
    float factor;
    alignas(64) uint32_t signs[kMaxUnit] = {};

    // Output.
    uint8_t *codes, *scales, *mask;

    Nvfp4Tensor tensor{};     // NVFP4, once the tensor's maximum is known
    float posthoc_scale = 0;  // tensor=posthoc, once it is known; 0 in the pass that finds it

    // Coins of elements: the counter of lane l is that of lane 0 plus element_offsets[l], even lanes first.
    CoinStream element_coins, scale_coins;
    alignas(64) uint64_t element_offsets[kMaxLanes], unit_offsets[kMaxLanes];  // unit_offsets[l] = l
};

// Quantises a range of units (of bands of 16 rows for square blocks). Gives the bits of the largest magnitude
// that it met, after rotation; the first pass of tensor=posthoc gives the largest scale instead, if all is
// finite.
using RangeKernel = uint32_t (*)(const QuantizeJob& job, int64_t begin, int64_t end);

// The kernel of a spec on this machine; null if there is none. Each is in the file of its name.
RangeKernel nvfp4_kernel(const QuantSpec& spec);
RangeKernel square_kernel(const QuantSpec& spec);
RangeKernel mxfp4_kernel(const QuantSpec& spec);
// The largest magnitude alone.
RangeKernel amax_kernel(bool rotates);

}  // namespace nibble
