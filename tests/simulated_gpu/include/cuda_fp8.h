#pragma once

#include "numerics/elements.h"

enum __nv_saturation_t { __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
inline uint8_t __nv_cvt_float_to_fp8(float value, __nv_saturation_t, __nv_fp8_interpretation_t kind) {
    return nibble::with_element(kind == __NV_E4M3 ? nibble::Element::e4m3 : nibble::Element::e5m2,
                                [value](auto element) { return element.nearest(value); });
}
