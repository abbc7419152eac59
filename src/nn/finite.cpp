#include "nn/finite.h"

#include <algorithm>
#include <cmath>

#include "core/cuda.h"
#include "nn/cuda_forms.h"

namespace nibble {

bool is_finite(const Context& context, const Tensor& x) {
    NIBBLE_ON_CUDA(context, is_finite(context, x));
    bool all = true;
    with_elements(x, [&](const auto* values) {
        all = std::all_of(values, values + x.count(), [](auto v) { return std::isfinite(to_float(v)); });
    });
    return all;
}

}  // namespace nibble
