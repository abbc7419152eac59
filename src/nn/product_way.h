// How a GPU makes the products of quantised operands: by exact emulation, or in FP8 where a run allows it.
#pragma once

#include <span>
#include <string>

#include "gemm/matmul.h"
#include "recipe/recipe.h"

namespace nibble {

// Ways to make products on a GPU that are narrower than exact products with FP32 sums. None is taken unless a
// run names it (device.allow; docs/gpu.md).
struct AllowedProducts {
    bool fp8 = false;                    // "fp8": FP8 operands on FP8 tensor cores
    bool fp8_folded = false;             // "fp8-folded": MXFP4 operands there, their scales folded into FP8
    bool fp8_fast_accumulation = false;  // "fp8-fast-accumulation": of these with the fast sums
    // Where products of folded operands are counted that were made in BF16, because the scales of an operand
    // did not fit: U32 on the GPU; null: nowhere.
    uint32_t* unfolded_products = nullptr;

    Fp8Sums sums() const { return fp8_fast_accumulation ? Fp8Sums::fast : Fp8Sums::precise; }
};
inline constexpr std::array<std::string_view, 3> kAllowedNames = {"fp8", "fp8-folded",
                                                                  "fp8-fast-accumulation"};
// Throws UsageError for another name, and for fast sums without products that have them.
AllowedProducts parse_allowed(std::span<const std::string> names);

enum class ProductWay : uint8_t {
    emulated,  // values that are exact in BF16; with FP32 scales by groups of them, or in F32 (gemm/matmul.h)
    fp8,       // the operands' codes
    folded,    // FP8 codes into which the scales are folded; emulated where these do not fit
};
ProductWay product_way(const OperandSpec& a, const OperandSpec& b, const AllowedProducts& allowed,
                       Device device);
// Whether a GPU multiplies two operands by groups of K (gemm/matmul.h). `forward`: what b is made from, if it
// is.
bool multiplies_by_groups(const OperandSpec& a, const OperandSpec& b, const QuantSpec& forward);

}  // namespace nibble
