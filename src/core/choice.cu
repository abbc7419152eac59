#include "core/choice.h"
#include "core/cuda_check.cuh"

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

// Takes down work as the body of a condition, on a stream that records nothing else.
class Body {
  public:
    Body(Context& context, cudaGraph_t graph) : context_(context), outer_(context.stream) {
        static const cudaStream_t of_process = [] {
            cudaStream_t made = nullptr;
            check(cudaStreamCreate(&made), "a stream of the GPU");
            return made;
        }();
        check(cudaStreamBeginCaptureToGraph(of_process, graph, nullptr, nullptr, 0,
                                            cudaStreamCaptureModeThreadLocal),
              "begin of a choice's recording");
        context.stream = of_process;
    }
    ~Body() {
        if (context_.stream != outer_) end();
    }
    Body(const Body&) = delete;
    Body& operator=(const Body&) = delete;

    void finish() { check(end(), "end of a choice's recording"); }

  private:
    cudaError_t end() {
        cudaGraph_t graph = nullptr;
        return cudaStreamEndCapture(std::exchange(context_.stream, outer_), &graph);
    }

    Context& context_;
    cudaStream_t outer_;
};

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
    for (const auto& [index, work] : {std::pair(0, &if_any), std::pair(1, &otherwise)}) {
        Body body(context, choice.conditional.phGraph_out[index]);
        (*work)();
        body.finish();
    }
    check(cudaStreamUpdateCaptureDependencies(context.stream, &node, nullptr, 1,
                                              cudaStreamSetCaptureDependencies),
          "what follows a choice");
}

}  // namespace

void choose(Context& context, const uint32_t* first, const uint32_t* second, uint32_t* count,
            const Work& if_any, const Work& otherwise) {
    if (is_recording(context.stream))
        return choose_in_recording(context, first, second, count, if_any, otherwise);
    uint32_t any = 0;
    {
        const ArenaScope scope(context.arena);
        const Tensor there = context.arena.allocate(DType::u32, {1});
        launch(context, find_kernel, 1, 1, 0, first, second, count, there.as<uint32_t>());
        cuda::copy(context, there, {&any, DType::u32, Device::cpu, {1}});
    }
    any != 0 ? if_any() : otherwise();
}

}  // namespace nibble::cuda
