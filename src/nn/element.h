// Scalars of tensors in the readable references: activations are stored as `Element` (float, Bf16, or double
// for finite differences) and computed with as `Real`.
#pragma once

#include <type_traits>

#include "core/tensor.h"
#include "numerics/bf16.h"
#include "numerics/host_device.h"

namespace nibble {

template <typename Real, typename Element>
NIBBLE_HD Real load_as(Element x) {
    if constexpr (std::is_same_v<Element, Bf16>) {
        return static_cast<Real>(bf16_decode(x));
    } else {
        return static_cast<Real>(x);
    }
}

template <typename Element, typename Real>
NIBBLE_HD Element store_as(Real x) {
    if constexpr (std::is_same_v<Element, Bf16>) {
        return bf16_encode(static_cast<float>(x));
    } else {
        return static_cast<Element>(x);
    }
}

// Activations are BF16 or F32, all tensors of a call alike.
inline void require_activations(std::initializer_list<const Tensor*> tensors, std::string_view function) {
    const DType dtype = (*tensors.begin())->dtype;
    require(dtype == DType::bf16 || dtype == DType::f32, "{}: activations are {}, neither BF16 nor F32",
            function, name_of(dtype));
    for (const Tensor* t : tensors) {
        require(t->dtype == dtype, "{}: activations are {} and {}; they must be alike", function,
                name_of(dtype), name_of(t->dtype));
    }
}

}  // namespace nibble
