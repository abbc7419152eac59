// AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2). Arithmetic
// is FP32 throughout; moments are kept in FP32, or in BF16 (optim/moments.h), and gradients may be BF16.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/core.h"
#include "core/host_buffer.h"

namespace nibble {

struct AdamWOptions {
    double beta1 = 0.9, beta2 = 0.95;
    double epsilon = 1e-8;
    double weight_decay = 0.1;   // multiplied by the learning rate, as everywhere in practice
    DType moments = DType::f32;  // or BF16
    bool offload = false;        // of a GPU: the moments lie in memory of the host
};

// A tensor that is trained. Which tensors decay is the caller's choice.
struct OptimizedTensor {
    std::string name;
    Tensor master, gradient;  // of one shape, F32; the gradient may be BF16
    bool decay = false;
};

// What one update multiplies by, rounded once from double.
struct AdamWFactors {
    float gradient = 1;          // clipping
    float beta1 = 0, rest1 = 0;  // beta, 1 - beta
    float beta2 = 0, rest2 = 0;
    float correction1 = 1, correction2 = 1;  // 1 / (1 - beta^t)
    float lr = 0, epsilon = 0;
    float keep = 1;  // 1 - lr * weight_decay, 1 for tensors that do not decay
    // Of the coins that round BF16 moments.
    uint64_t seed = 0;
    uint32_t update = 0;
};

// One element. The definition that the vector code equals to the bit:
//   g = f.gradient * g;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g²
//   w = w (1 - lr weight_decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
// BF16 moments are rounded after w was made of them.
void adamw_reference(const AdamWFactors& f, float gradient, float& master, float& m, float& v);

class AdamW {
  public:
    struct State {
        std::string name;  // of the tensor
        Tensor m, v;       // F32 or BF16, of the tensor's shape; zero at first
    };

    // Takes memory for both moments, on the tensors' device, or of the host. Throws Error when a dtype or a
    // shape does not fit, or tensors are on different devices, and UsageError when an option is out of range.
    AdamW(std::vector<OptimizedTensor> tensors, const AdamWOptions& options);

    // Update number `update` (1 is the first), with gradients multiplied by `gradient_factor` (see
    // clip_factor). BF16 moments are rounded by the context's seed. A factor of NaN changes nothing.
    void update(Context& context, int64_t update, double lr, double gradient_factor = 1.0);
    // The same in two parts. begin_update() first: it puts what this update multiplies by where the tensors
    // are. finish_update() updates, and is queued alike every time, so that a Recording may hold it.
    // gradient_factor: F32 [1] on the tensors' device, another factor of the gradients, or none.
    void begin_update(const Context& context, int64_t update, double lr, double gradient_factor = 1.0);
    void finish_update(Context& context, const Tensor& gradient_factor);

    // The moments, in the order of the tensors: what a checkpoint holds beside the masters.
    const std::vector<State>& state() const { return state_; }
    const std::vector<OptimizedTensor>& tensors() const { return tensors_; }
    // Bytes of the moments of a tensor of this shape.
    static size_t moment_bytes(const Shape& shape, DType moments);

  private:
    AdamWFactors factors_of(const Context& context, int64_t update, double lr, double gradient_factor) const;
    void update_on_cpu(const AdamWFactors& decayed);
    AdamWFactors* cuda_factors() const { return reinterpret_cast<AdamWFactors*>(cuda_factors_.data()); }

    struct Chunk {
        size_t tensor;
        int64_t begin, end;
    };
    std::vector<OptimizedTensor> tensors_;
    AdamWOptions options_;
    Buffer memory_;
    HostBuffer host_memory_;  // in its place, where the moments are offloaded
    std::vector<State> state_;
    AdamWFactors factors_;  // of the update that has begun
    std::vector<Chunk> chunks_;
    Buffer cuda_factors_, cuda_chunks_;  // the same in memory of the GPU, where the tensors are there
};

}  // namespace nibble
