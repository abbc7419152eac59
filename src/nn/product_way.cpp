#include "nn/product_way.h"

#include <algorithm>

namespace nibble {

AllowedProducts parse_allowed(std::span<const std::string> names) {
    AllowedProducts allowed;
    bool* const switches[] = {&allowed.fp8, &allowed.fp8_folded, &allowed.fp8_fast_accumulation};
    for (const std::string& name : names) {
        const auto found = std::ranges::find(kAllowedNames, name);
        if (found == kAllowedNames.end())
            fail_usage(
                "there is no way of multiplying named '{}'; there are fp8, fp8-folded and "
                "fp8-fast-accumulation",
                name);
        *switches[found - kAllowedNames.begin()] = true;
    }
    if (allowed.fp8_fast_accumulation && !allowed.fp8 && !allowed.fp8_folded)
        fail_usage(
            "fp8-fast-accumulation is a way to sum of fp8 and fp8-folded products: allow one of them, too");
    return allowed;
}

ProductWay product_way(const OperandSpec& a, const OperandSpec& b, const AllowedProducts& allowed,
                       Device device) {
    const auto are_both = [&](auto&& fits) { return fits(a) && fits(b); };
    if (!(allowed.fp8 || allowed.fp8_folded) || !has_fp8_products(device)) return ProductWay::emulated;
    // The library has no E5M2 times E5M2.
    const bool has_e4m3 = a.spec.element == Element::e4m3 || b.spec.element == Element::e4m3;
    if (allowed.fp8 && has_e4m3 && are_both([](const OperandSpec& o) {
            return o.spec.format == Format::fp8 && o.spec.block == Block::tensor;
        }))
        return ProductWay::fp8;
    if (allowed.fp8_folded && are_both([](const OperandSpec& o) {
            return o.spec.format == Format::mxfp4 && o.source != Source::same_bits;
        }))
        return ProductWay::folded;
    return ProductWay::emulated;
}

bool multiplies_by_groups(const OperandSpec& a, const OperandSpec& b, const QuantSpec& forward) {
    // Bytes of its own; or those of the forward, of which tiles are read along their other dimension.
    const bool has_bytes = b.spec.is_quantized() && b.source != Source::same_bits,
               reads_tiles = !has_bytes && b.source != Source::original && forward.has_fp32_groups() &&
                             forward.is_square();
    if (!a.spec.is_quantized() || !(has_bytes || reads_tiles)) return false;
    const QuantSpec& of_b = has_bytes ? b.spec : forward;
    return (a.spec.has_fp32_groups() || of_b.has_fp32_groups()) && !a.spec.has_row_scales() &&
           !of_b.has_row_scales();
}

}  // namespace nibble
