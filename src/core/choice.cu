#include <optional>

#include "core/capture.cuh"
#include "core/choice.h"
#include "core/recording.h"

namespace nibble::cuda {

namespace {

using Work = std::function<void()>;

__device__ bool is_any(const uint32_t* first, const uint32_t* second, uint32_t* count) {
    const bool any = *first != 0 || *second != 0;
    if (any && count != nullptr) ++*count;
    return any;
}
__global__ void find_kernel(const uint32_t* first, const uint32_t* second, uint32_t* count, uint32_t* any) {
    *any = is_any(first, second, count);
}
__global__ void set_condition_kernel(const uint32_t* first, const uint32_t* second, uint32_t* count,
                                     cudaGraphConditionalHandle condition) {
    cudaGraphSetConditional(condition, is_any(first, second, count));
}

bool is_recording(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(stream, &status), "state of a stream");
    return status == cudaStreamCaptureStatusActive;
}

// Where a stream's recording stands: its graph, and what new work comes after.
struct Place {
    cudaGraph_t graph = nullptr;
    const cudaGraphNode_t* nodes = nullptr;
    const cudaGraphEdgeData* edges = nullptr;
    size_t count = 0;

    explicit Place(cudaStream_t stream) {
        cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
        check(cudaStreamGetCaptureInfo(stream, &status, nullptr, &graph, &nodes, &edges, &count),
              "state of a recording");
    }
};

// Takes down what `work` queues as the body of a condition, on a stream that records nothing else.
void record_body(Context& context, cudaGraph_t graph, const Work& work) {
    static const cudaStream_t of_process = make_stream();
    Capture capture(of_process,
                    cudaStreamBeginCaptureToGraph(of_process, graph, nullptr, nullptr, 0,
                                                  cudaStreamCaptureModeThreadLocal),
                    false);
    struct Restore {
        Context& context;
        cudaStream_t stream;
        ~Restore() { context.stream = stream; }
    };
    const Restore restore{context, std::exchange(context.stream, of_process)};
    work();
    capture.finish();
}

void choose_in_recording(Context& context, const uint32_t* first, const uint32_t* second, uint32_t* count,
                         const Work& if_any, const Work& otherwise) {
    cudaGraphConditionalHandle condition{};
    check(cudaGraphConditionalHandleCreate(&condition, Place(context.stream).graph, 0,
                                           cudaGraphCondAssignDefault),
          "a condition");
    launch(context, set_condition_kernel, 1, 1, 0, first, second, count, condition);
    cudaGraphNodeParams choice{};
    choice.type = cudaGraphNodeTypeConditional;
    choice.conditional.handle = condition;
    choice.conditional.type = cudaGraphCondTypeIf;
    choice.conditional.size = 2;
    const Place place(context.stream);
    cudaGraphNode_t node = nullptr;
    check(cudaGraphAddNode(&node, place.graph, place.nodes, place.edges, place.count, &choice), "a choice");
    record_body(context, choice.conditional.phGraph_out[0], if_any);
    record_body(context, choice.conditional.phGraph_out[1], otherwise);
    check(cudaStreamUpdateCaptureDependencies(context.stream, &node, nullptr, 1,
                                              cudaStreamSetCaptureDependencies),
          "what follows a choice");
}

// Waits for the answer; in planning passes there is none.
std::optional<bool> find_any(Context& context, const uint32_t* first, const uint32_t* second,
                             uint32_t* count) {
    const ArenaScope scope(context.arena);
    const Tensor there = context.arena.allocate(DType::u32, {1});
    if (context.planning()) return {};
    launch(context, find_kernel, 1, 1, 0, first, second, count, there.as<uint32_t>());
    uint32_t any = 0;
    cuda::copy(context, there, {&any, DType::u32, Device::cpu, {1}});
    return any != 0;
}

}  // namespace

void choose(Context& context, const uint32_t* first, const uint32_t* second, uint32_t* count,
            const Work& if_any, const Work& otherwise) {
    if (!context.planning() && is_recording(context.stream))
        return choose_in_recording(context, first, second, count, if_any, otherwise);
    const std::optional<bool> any = find_any(context, first, second, count);
    if (any.value_or(true)) if_any();
    if (!any.value_or(false)) otherwise();
}

}  // namespace nibble::cuda
