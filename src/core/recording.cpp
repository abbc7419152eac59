#include "core/recording.h"

#include "core/cuda.h"

namespace nibble {

Stream::Stream(Device device) {
    if constexpr (kHasCuda) {
        if (device == Device::cuda) stream_.reset(cuda::make_stream());
    }
}

void Stream::Free::operator()(CUstream_st* stream) const {
    if constexpr (kHasCuda) cuda::free_stream(stream);
}

Recording::Recording(const Context& context, const std::function<void()>& work) {
    require(context.device == Device::cuda && context.stream != nullptr,
            "only work on a stream of a GPU can be recorded");
    if constexpr (kHasCuda) graph_.reset(cuda::record(context, work));
}

void Recording::replay(const Context& context) const {
    if constexpr (kHasCuda) cuda::replay(context, graph_.get());
}

void Recording::Free::operator()(void* graph) const {
    if constexpr (kHasCuda) cuda::free_graph(graph);
}

void set_counters(const Context& context, StepCounters* there, const StepCounters& counters) {
    NIBBLE_ON_CUDA(context, set_counters(context, there, counters));
    *there = counters;
}

void advance_micro_step(const Context& context, StepCounters* there) {
    NIBBLE_ON_CUDA(context, advance_micro_step(context, there));
    ++there->micro_step;
}

}  // namespace nibble
