// Attention through cuDNN, by the C++ headers of cudnn-frontend, which take long to compile and are included
// here alone. A graph is built for each direction and shape. Queries, keys and values are read where they lie
// in qkv, by strides, and their gradients are written so.
#include <cudnn.h>

#include <algorithm>
#include <cmath>
#include <compare>
#include <cstring>  // cudnn_frontend.h uses it
#include <map>
#include <mutex>
#include <unordered_map>

#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

#include "core/cuda_check.cuh"
#include "core/has_gpu.h"
#include "nn/attention_cuda.h"

namespace nibble::cuda {

namespace {

namespace graph = cudnn_frontend::graph;

// The deterministic backward pass keeps a gradient of all scores of the sequences that it is given; so many
// bytes of it at a time, or those of one sequence.
constexpr int64_t kMostScoreBytes = int64_t{1} << 30;

// What a plan is built for.
struct Key {
    int device;
    bool backward, deterministic;
    int64_t sequences, sequence;
    int heads, kv_heads, head_dim;

    auto operator<=>(const Key&) const = default;
};

// The tensors of the graphs, by the names under which a plan is given their addresses.
enum Name : int64_t { kQ, kK, kV, kOut, kLogsumexp, kDout, kDq, kDk, kDv };
using Addresses = std::unordered_map<int64_t, void*>;

struct Plan {
    graph::Graph graph;
    int64_t workspace = 0;  // bytes
};

std::string release() {
    const size_t version = cudnnGetVersion();
    return fmt::format("cuDNN {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

void check_cudnn(cudnnStatus_t status, std::string_view what) {
    if (status != CUDNN_STATUS_SUCCESS) [[unlikely]]
        fail("{} of {}: {}", what, release(), cudnnGetErrorString(status));
}

void check_graph(cudnn_frontend::error_t error, const Key& key, std::string_view what) {
    if (error.is_good()) [[likely]]
        return;
    std::string message = error.get_message();
    std::replace(message.begin(), message.end(), '\n', ' ');
    fail(
        "{} {} attention {} over {} sequences of {}, {} and {} heads of {}: {}; take another shape or a "
        "newer cuDNN",
        release(), what, key.backward ? "backward" : "forward", key.sequences, key.sequence, key.heads,
        key.kv_heads, key.head_dim, message);
}

// Makes the graph of a plan: its tensors are [sequences, heads, sequence, head_dim], with the strides of
// theirs in the contract.
void describe(graph::Graph& g, const Key& key) {
    using cudnn_frontend::DataType_t;
    const int64_t size = key.head_dim, out_width = key.heads * size;
    const int64_t qkv_width = (key.heads + 2 * int64_t{key.kv_heads}) * size;
    const auto like = [&](Name name, int64_t heads, int64_t width) {
        return graph::Tensor_attributes()
            .set_uid(name)
            .set_data_type(DataType_t::BFLOAT16)
            .set_dim({key.sequences, heads, key.sequence, size})
            .set_stride({key.sequence * width, size, width, 1});
    };
    // Releases before 9.26 read no other layout of it.
    const auto logsumexp = graph::Tensor_attributes()
                               .set_uid(kLogsumexp)
                               .set_data_type(DataType_t::FLOAT)
                               .set_dim({key.sequences, key.heads, key.sequence, 1})
                               .set_stride({key.heads * key.sequence, key.sequence, 1, 1});
    const auto output = [](const std::shared_ptr<graph::Tensor_attributes>& tensor,
                           const graph::Tensor_attributes& as) {
        tensor->set_output(true)
            .set_uid(as.get_uid())
            .set_data_type(as.get_data_type())
            .set_dim(as.get_dim())
            .set_stride(as.get_stride());
    };
    const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(size)));

    g.set_io_data_type(DataType_t::BFLOAT16)
        .set_intermediate_data_type(DataType_t::FLOAT)
        .set_compute_data_type(DataType_t::FLOAT);
    const auto q = g.tensor(like(kQ, key.heads, qkv_width));
    const auto k = g.tensor(like(kK, key.kv_heads, qkv_width));
    const auto v = g.tensor(like(kV, key.kv_heads, qkv_width));
    if (key.backward) {
        const auto gradients =
            g.sdpa_backward(q, k, v, g.tensor(like(kOut, key.heads, out_width)),
                            g.tensor(like(kDout, key.heads, out_width)), g.tensor(logsumexp),
                            graph::SDPA_backward_attributes()
                                .set_name("attention backward")
                                .set_causal_mask(true)
                                .set_attn_scale(scale)
                                .set_deterministic_algorithm(key.deterministic));
        output(gradients[0], like(kDq, key.heads, qkv_width));
        output(gradients[1], like(kDk, key.kv_heads, qkv_width));
        output(gradients[2], like(kDv, key.kv_heads, qkv_width));
    } else {
        const auto [out, lse] = g.sdpa(q, k, v,
                                       graph::SDPA_attributes()
                                           .set_name("attention")
                                           .set_generate_stats(true)
                                           .set_causal_mask(true)
                                           .set_attn_scale(scale));
        output(out, like(kOut, key.heads, out_width));
        output(lse, logsumexp);
    }
}

// What cuDNN 9 takes, about, for a plan where there is no GPU: the gradient of the scores, that of the
// queries in F32, and two numbers a row.
int64_t estimated_workspace(const Key& key) {
    if (!key.backward) return 0;
    const int64_t padded = divide_up(key.sequence, int64_t{128}) * 128;
    const int64_t of_row = (key.deterministic ? padded * 2 : 0) + int64_t{key.head_dim} * 4 + 8;
    return key.sequences * key.heads * padded * of_row;
}

// cuDNN's handles, one for each GPU, and all plans of the process.
class Library {
  public:
    static Library& get() {
        static Library library;
        return library;
    }

    int64_t workspace(const Key& key) {
        if (!has_gpu()) return estimated_workspace(key);
        const std::lock_guard lock(mutex_);
        return plan(key).workspace;
    }

    void run(const Context& context, const Key& key, Addresses& addresses, void* workspace) {
        const std::lock_guard lock(mutex_);
        check_cudnn(cudnnSetStream(handle(key.device), context.stream), "choice of a stream");
        check_graph(plan(key).graph.execute(handle(key.device), addresses, workspace), key, "failed at");
    }

  private:
    cudnnHandle_t handle(int device) {
        const auto found = handles_.find(device);
        if (found != handles_.end()) return found->second;
        const size_t version = cudnnGetVersion();
        require(version != 91000 && version != 91001,
                "{} computes attention wrongly; install cuDNN 9.10.2 or newer", release());
        cudnnHandle_t handle = nullptr;
        check_cudnn(cudnnCreate(&handle), "start");
        return handles_[device] = handle;
    }

    Plan& plan(const Key& key) {
        const auto found = plans_.find(key);
        if (found != plans_.end()) return found->second;
        Plan built;
        describe(built.graph, key);
        check_graph(built.graph.build(handle(key.device), {cudnn_frontend::HeurMode_t::A}), key,
                    "has no plan for");
        check_graph(built.graph.get_workspace_size(built.workspace), key, "knows no workspace for");
        return plans_.emplace(key, std::move(built)).first->second;
    }

    std::mutex mutex_;
    std::map<int, cudnnHandle_t> handles_;
    std::map<Key, Plan> plans_;
};

int device_in_use() {
    int device = 0;
    if (has_gpu()) check(cudaGetDevice(&device), "the GPU in use");
    return device;
}

Key key_of(const AttentionShape& shape, const Tensor& qkv, bool backward) {
    return {device_in_use(),
            backward,
            backward && shape.deterministic,
            qkv.rows() / shape.sequence,
            shape.sequence,
            shape.heads,
            shape.kv_heads,
            shape.head_dim};
}

int64_t sequences_at_once(const Key& key) {
    if (!key.deterministic) return key.sequences;
    const int64_t padded = divide_up(key.sequence, int64_t{128}) * 128;
    return std::max<int64_t>(1, kMostScoreBytes / (padded * padded * key.heads * 2));
}

// Runs the plan of `all`, if need be in parts. addresses_at(first): of the part that begins with sequence
// `first`.
template <typename AddressesAt>
void run(Context& context, const Key& all, AddressesAt addresses_at) {
    Key part = all;
    for (int64_t first = 0; first < all.sequences; first += part.sequences) {
        part.sequences = std::min(sequences_at_once(all), all.sequences - first);
        const ArenaScope scope(context.arena);
        const Tensor workspace = context.arena.allocate(DType::u8, {Library::get().workspace(part)});
        if (context.planning()) continue;
        Addresses addresses = addresses_at(first);
        Library::get().run(context, part, addresses, workspace.data);
    }
}

// Element `column` of the first row of a sequence.
Bf16* at(const AttentionShape& shape, const Tensor& t, int64_t sequence, int64_t column = 0) {
    return t.as<Bf16>() + sequence * shape.sequence * t.cols() + column;
}

float* logsumexp_at(const AttentionShape& shape, const Tensor& logsumexp, int64_t sequence) {
    return logsumexp.as<float>() + sequence * shape.heads * shape.sequence;
}

}  // namespace

std::string attention_library() { return release(); }

bool cudnn_takes_attention(const AttentionShape& shape, DType activations) {
    int major = 9;
    if (has_gpu())
        check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_in_use()),
              "compute capability of the GPU");
    return activations == DType::bf16 && shape.sequence > 1 && shape.head_dim % 8 == 0 &&
           shape.head_dim <= (major == 9 ? 256 : 128);
}

void cudnn_attention_forward(Context& context, const AttentionShape& shape, const Tensor& qkv,
                             const Tensor& out, const Tensor& logsumexp) {
    const int64_t k = int64_t{shape.heads} * shape.head_dim, v = k + int64_t{shape.kv_heads} * shape.head_dim;
    run(context, key_of(shape, qkv, false), [&](int64_t first) {
        return Addresses{{kQ, at(shape, qkv, first)},
                         {kK, at(shape, qkv, first, k)},
                         {kV, at(shape, qkv, first, v)},
                         {kOut, at(shape, out, first)},
                         {kLogsumexp, logsumexp_at(shape, logsumexp, first)}};
    });
}

void cudnn_attention_backward(Context& context, const AttentionShape& shape, const Tensor& dout,
                              const Tensor& qkv, const Tensor& out, const Tensor& logsumexp,
                              const Tensor& dqkv) {
    const int64_t k = int64_t{shape.heads} * shape.head_dim, v = k + int64_t{shape.kv_heads} * shape.head_dim;
    run(context, key_of(shape, qkv, true), [&](int64_t first) {
        return Addresses{{kQ, at(shape, qkv, first)},
                         {kK, at(shape, qkv, first, k)},
                         {kV, at(shape, qkv, first, v)},
                         {kOut, at(shape, out, first)},
                         {kLogsumexp, logsumexp_at(shape, logsumexp, first)},
                         {kDout, at(shape, dout, first)},
                         {kDq, at(shape, dqkv, first)},
                         {kDk, at(shape, dqkv, first, k)},
                         {kDv, at(shape, dqkv, first, v)}};
    });
}

}  // namespace nibble::cuda
