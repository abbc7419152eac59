// A choice between two pieces of work, made by a GPU, for which nothing waits where the work is recorded.
#pragma once

#include <cstdint>
#include <functional>

#include "core/context.h"

namespace nibble {

// Does `if_any` where one of two numbers is not 0, `otherwise` where both are 0. The numbers, U32, are read
// when their turn comes, from memory of the context's device; *count, there, too, receives one more for each
// `if_any` (null: nothing is counted). While a recording is made (core/recording.h), both pieces are taken
// down, and the GPU chooses at each replay: a conditional node of the graph. Outside of one the host waits
// for the answer. In planning passes both are called, and the pointers may be null. The pieces queue work on
// context.stream, take scratch in a scope of their own, and hold no choices. Throws what they throw, and
// Error where the GPU cannot record them.
void choose(Context& context, const uint32_t* first, const uint32_t* second, uint32_t* count,
            const std::function<void()>& if_any, const std::function<void()>& otherwise);

namespace cuda {
void choose(Context& context, const uint32_t* first, const uint32_t* second, uint32_t* count,
            const std::function<void()>& if_any, const std::function<void()>& otherwise);
}

}  // namespace nibble
