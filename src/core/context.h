// Context: what a computation needs beside its tensors. Passed first to every function that does work.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/tensor.h"

struct CUstream_st;  // cudaStream_t is a pointer to it

namespace nibble {

// What of randomness' keys changes between replays of a recording, in memory of a GPU.
struct StepCounters {
    uint32_t step = 0, micro_step = 0;
};

struct Context {
    Arena& arena;
    Device device = arena.device();
    CUstream_st* stream = nullptr;  // where work on a GPU is queued; null: its default one
    // On a GPU: raised (not 0) where an input that must be finite is not, U32, so that nothing waits for the
    // answer. Null: the call waits and throws.
    uint32_t* fault = nullptr;
    // What randomness is keyed by, beside layer and operand (docs/numerics.md, "Randomness").
    uint64_t seed = 0;
    uint32_t step = 0;
    uint32_t micro_step = 0;
    // On a GPU, for work that is recorded and replayed (core/recording.h): where kernels find these two when
    // they run. Null: they are told.
    const StepCounters* counters = nullptr;

    // In a planning pass, functions size their buffers and return before touching memory.
    bool planning() const { return arena.planning(); }
};

}  // namespace nibble
