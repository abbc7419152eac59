// The simulated GPU's form of src/core/choice.cu.
#include "core/choice.h"

#include <cuda_runtime.h>

namespace nibble::cuda {

void choose(Context& context, const uint32_t* first, const uint32_t* second, uint32_t* count,
            const std::function<void()>& if_any, const std::function<void()>& otherwise) {
    if (context.planning()) {
        if_any();
        return otherwise();
    }
    const auto is_any = [=] {
        const bool any = *first != 0 || *second != 0;
        if (any && count != nullptr) ++*count;
        return any;
    };
    if (!simulated_gpu::is_recording()) return is_any() ? if_any() : otherwise();
    simulated_gpu::queue(
        [=, taken = simulated_gpu::record(if_any), other = simulated_gpu::record(otherwise)] {
            simulated_gpu::replay(is_any() ? taken : other);
        });
}

}  // namespace nibble::cuda
