#include "nn/amax_history.h"

#include <algorithm>

#include "core/cuda.h"
#include "nn/cuda_forms.h"

namespace nibble {

void begin_step(Context& context, AmaxHistory* history) {
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, begin_step(context, history));
    if (std::ranges::any_of(history->current, [](float amax) { return amax > 0; }))
        *history = {history->current, {}};
}

void record_amax(Context& context, const float* amax, float* largest) {
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, record_amax(context, amax, largest));
    *largest = std::max(*largest, *amax);
}

}  // namespace nibble
