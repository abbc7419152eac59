// Recordings: work on a GPU that is queued once, call by call, and then started again as one (a CUDA graph).
#pragma once

#include <functional>
#include <memory>

#include "core/context.h"

namespace nibble {

// A queue of a GPU's work; none on a CPU.
class Stream {
  public:
    explicit Stream(Device device);

    CUstream_st* get() const { return stream_.get(); }  // what Context::stream takes

  private:
    struct Free {
        void operator()(CUstream_st* stream) const;
    };
    std::unique_ptr<CUstream_st, Free> stream_;
};

// What its kernels read must lie where it lay when they were recorded: their arguments are the same in each
// replay. Keys of randomness that change are read from Context::counters.
class Recording {
  public:
    // Takes down what `work` queues on the context's stream, which is not the default one; none of it is done
    // yet. `work` has been done before, so that libraries hold what they make at their first use (of choices,
    // core/choice.h, one piece is enough: what CUDA and cuBLASLt make for the other they can make then), and
    // waits for nothing. Throws what `work` throws, and Error where the GPU cannot record it.
    Recording(const Context& context, const std::function<void()>& work);
    // Queues all of it.
    void replay(const Context& context) const;

  private:
    struct Free {
        void operator()(void* graph) const;
    };
    std::unique_ptr<void, Free> graph_;
};

// *there <- counters, and micro_step + 1; queued as all work is.
void set_counters(const Context& context, StepCounters* there, const StepCounters& counters);
void advance_micro_step(const Context& context, StepCounters* there);

namespace cuda {
CUstream_st* make_stream();
void free_stream(CUstream_st* stream);
void* record(const Context& context, const std::function<void()>& work);
void replay(const Context& context, void* graph);
void free_graph(void* graph);
void set_counters(const Context& context, StepCounters* there, const StepCounters& counters);
void advance_micro_step(const Context& context, StepCounters* there);
}  // namespace cuda

}  // namespace nibble
