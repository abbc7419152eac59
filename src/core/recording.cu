#include "core/capture.cuh"
#include "core/recording.h"

namespace nibble::cuda {

namespace {

__global__ void set_kernel(StepCounters* there, const StepCounters counters) { *there = counters; }
__global__ void advance_kernel(StepCounters* there) { ++there->micro_step; }

}  // namespace

CUstream_st* make_stream() {
    // Not one that ignores the default stream: what is queued there, copies outside of steps, keeps its
    // place.
    cudaStream_t stream = nullptr;
    check(cudaStreamCreate(&stream), "a stream of the GPU");
    return stream;
}
void free_stream(CUstream_st* stream) { cudaStreamDestroy(stream); }

void* record(const Context& context, const std::function<void()>& work) {
    Capture capture(context.stream, cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeThreadLocal),
                    true);
    work();
    cudaGraphExec_t made = nullptr;
    check(cudaGraphInstantiate(&made, capture.finish(), 0), "making of a recording");
    return made;
}

void replay(const Context& context, void* graph) {
    check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), context.stream), "start of a recording");
}

void free_graph(void* graph) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

void set_counters(const Context& context, StepCounters* there, const StepCounters& counters) {
    launch(context, set_kernel, 1, 1, 0, there, counters);
}
void advance_micro_step(const Context& context, StepCounters* there) {
    launch(context, advance_kernel, 1, 1, 0, there);
}

}  // namespace nibble::cuda
