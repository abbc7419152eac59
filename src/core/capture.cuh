// Capture: work of a stream that is taken down for a graph. For recording.cu and choice.cu.
#pragma once

#include "core/cuda_check.cuh"

namespace nibble::cuda {

// Ended, whatever comes of it.
class Capture {
  public:
    // begun: what the call said that began it. has_graph: it makes a graph of its own.
    Capture(cudaStream_t stream, cudaError_t begun, bool has_graph) : stream_(stream), has_graph_(has_graph) {
        check(begun, "begin of a recording");
    }
    ~Capture() {
        if (!is_ended_) end();
        if (has_graph_ && graph_ != nullptr) cudaGraphDestroy(graph_);
        cudaGetLastError();  // of a capture that failed, which the next launch would report
    }
    Capture(const Capture&) = delete;
    Capture& operator=(const Capture&) = delete;

    cudaGraph_t finish() {
        check(end(), "end of a recording");
        return graph_;
    }

  private:
    cudaError_t end() {
        is_ended_ = true;
        return cudaStreamEndCapture(stream_, &graph_);
    }

    cudaStream_t stream_;
    cudaGraph_t graph_ = nullptr;
    bool has_graph_, is_ended_ = false;
};

}  // namespace nibble::cuda
