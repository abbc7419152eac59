// For planning passes: the memory of a run on a GPU can be planned where there is none. What only the GPU's
// libraries know (workspaces) is then estimated.
#pragma once

#include "core/cuda.h"

namespace nibble::cuda {

inline bool has_gpu() {
    static const bool found = !devices().empty();
    return found;
}

}  // namespace nibble::cuda
