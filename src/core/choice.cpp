#include "core/choice.h"

#include "core/cuda.h"

namespace nibble {

void choose(Context& context, const uint32_t* first, const uint32_t* second, uint32_t* count,
            const std::function<void()>& if_any, const std::function<void()>& otherwise) {
    if (context.planning()) {
        {
            const ArenaScope scope(context.arena);
            context.arena.allocate(DType::u32, {1});  // of the GPU, for the answer
        }
        if_any();
        otherwise();
        return;
    }
    NIBBLE_ON_CUDA(context, choose(context, first, second, count, if_any, otherwise));
    if (*first == 0 && *second == 0) return otherwise();
    if (count != nullptr) ++*count;
    if_any();
}

}  // namespace nibble
