// Digests: the bytes of a quantiser over thousands of random inputs, as one number. What every form of it on
// every device must give; a change of one is a change of the contract (docs/numerics.md).
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quant/quant.h"

namespace nibble {

struct RecordedDigest {
    std::string_view spec;
    uint64_t digest;
};
// Specs that between them use every format, block, rule, rounding, correction, tensor scale and rotation.
std::span<const RecordedDigest> recorded_digests();

// Of the same type as quantize() and quantize_reference().
using Quantizer = void (*)(Context&, const QuantSpec&, const Tensor&, const RandomKey&, QuantizedMatrix&,
                           const QuantizeOptions&);

// quantize() on the first GPU, for operands in this machine's memory.
void quantize_on_gpu(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                     QuantizedMatrix& out, const QuantizeOptions& options);

inline constexpr int kDigestCases = 2000;
// In the order of recorded_digests(). FNV-1a (64 bits) of codes, scales, FP32 scales, tensor scale and mask
// of kDigestCases inputs of 1 to 24 rows and 1 to 160 columns, F32 and BF16, as they are and transposed,
// under a random key each. The inputs are functions of counters, exact on every machine: about normal, ties,
// mostly zeros, outliers.
std::vector<uint64_t> quantizer_digests(Quantizer quantizer);

// The recorded digests against one form of the quantisers on this machine: the scalar reference, or
// quantize() with an instruction set that it has, or on its first GPU.
struct QuantizerCheck {
    std::string form;                         // "reference", "AVX3", "AVX2", ..., "NVIDIA H100 80GB HBM3"
    std::vector<std::string_view> different;  // specs; none: all bytes are as recorded
};
std::vector<QuantizerCheck> check_quantizers();

}  // namespace nibble
