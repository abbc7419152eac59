#include "core/choice.h"

#include "core/cuda.h"

namespace nibble {

void choose(Context& context, const uint32_t* first, const uint32_t* second, uint32_t* count,
            const std::function<void()>& if_any, const std::function<void()>& otherwise) {
    NIBBLE_ON_CUDA(context, choose(context, first, second, count, if_any, otherwise));
    if (context.planning()) {
        if_any();
        return otherwise();
    }
    if (*first == 0 && *second == 0) return otherwise();
    if (count != nullptr) ++*count;
    if_any();
}

}  // namespace nibble
