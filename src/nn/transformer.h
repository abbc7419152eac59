// Transformer: the whole model, a Llama (Touvron et al., arXiv 2302.13971), a Qwen2 (arXiv 2407.10671) or a
// Qwen3 (arXiv 2505.09388). One call makes the loss and all gradients.
//
//   x = embedding[tokens]
//   each block:  x += out(attention(rope(qkv(rmsnorm(x)))))     Qwen2: qkv + bias; Qwen3: norms of q and k
//   heads
//                x += down(swiglu(gate_up(rmsnorm(x))))
//   loss = cross-entropy of head · rmsnorm(x)
//
// The four linear layers of a block are QuantLinear (layer id: 4 * block + 0 qkv, 1 out, 2 gate_up, 3 down);
// all else is in the activations' dtype with FP32 arithmetic.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/core.h"
#include "nn/attention.h"
#include "nn/cross_entropy.h"
#include "nn/model_config.h"
#include "nn/quant_linear.h"
#include "recipe/recipe.h"

namespace nibble {

// What a parameter is to the optimizer.
enum class ParameterKind : uint8_t {
    matrix,     // a linear layer inside a block
    embedding,  // the token embedding (and the head, where they are tied)
    head,
    norm,
    bias,
};
// "matrices", "embedding", "head", "norms", "biases": the words of a configuration.
std::string_view name_of(ParameterKind kind);

// One trained tensor. Fused projections are one parameter: `qkv` holds the rows of q, k and v, `gate_up`
// those of gate and up; train/model_directory splits them under their Hugging Face names.
//
//   embedding [V, C]
//   layers.I.attention.norm [C]    layers.I.attention.qkv [(heads + 2 kv_heads) * head_dim, C]
//   layers.I.attention.out [C, heads * head_dim]
//   layers.I.mlp.norm [C]          layers.I.mlp.gate_up [2F, C]          layers.I.mlp.down [C, F]
//   Qwen2: layers.I.attention.qkv_bias [(heads + 2 kv_heads) * head_dim]
//   Qwen3: layers.I.attention.q_norm [head_dim], layers.I.attention.k_norm [head_dim]
//   norm [C]                       head [V, C], absent when tied
struct Parameter {
    std::string name;
    Tensor master, gradient;  // F32; the gradient of a matrix may be BF16 (Transformer::Options)
    ParameterKind kind = ParameterKind::matrix;
};

// What of a block's forward is made again in its backward instead of being kept. Each level includes those
// before it; none changes a bit of losses and gradients.
enum class Recompute : uint8_t {
    none,
    norms,  // what linear layers keep of their inputs: the outputs of norms, SwiGLU and attention, or their
            // packed copies
    mlp,    // and the output of gate_up
    block,  // and all else but the block's input; on a GPU also the values of quantised weights, of which the
            // packed copies stay
};
// "none", "norms", "mlp", "block": the words of a configuration. Throws UsageError naming the nearest.
Recompute parse_recompute(std::string_view name);
std::string_view name_of(Recompute recompute);

class Transformer {
  public:
    struct Options {
        DType activations = DType::bf16;  // or F32, for study
        Device device = Device::cpu;      // of parameters, gradients and tables, and of every context
        Recompute recompute = Recompute::none;
        // In which the gradients of the linear layers' weights add up. BF16: each micro-batch's, FP32 sums,
        // is added in FP32 and the result rounded to nearest.
        DType gradients = DType::f32;
        DType logits = DType::f32;            // of the loss; or BF16, where activations are
        AllowedProducts allowed = {};         // ways of multiplying on a GPU beside exact ones
        bool deterministic_attention = true;  // AttentionShape::deterministic
        bool allocates = true;                // false: tensors have shapes alone, for planning passes
    };
    // Whose forward a step uses: the recipe's, or bf16 in every layer (evaluation).
    enum class Execution : uint8_t { recipe, bf16 };

    // `recipe` is copied. Parameters are allocated, zero; call initialize() or load them.
    Transformer(const ModelConfig& config, const Recipe& recipe, const Options& options);
    ~Transformer();
    Transformer(const Transformer&) = delete;
    Transformer& operator=(const Transformer&) = delete;

    // N(0, initializer_range); output projections (attention out, down) scaled by 1/sqrt(2 layers); norms 1,
    // biases 0.
    // Counter-based: each element is a function of (seed, parameter, index) alone. Elements 2j and 2j+1 are
    // the cosine and sine halves of one Box-Muller pair, in double: words 0, 1 of draw j
    // (Purpose::initialization, layer: the parameter's place in the list) give the radius, words 2, 3 the
    // angle.
    void initialize(uint64_t seed);

    // In the order of the comment above.
    std::vector<Parameter>& parameters() { return parameters_; }
    const std::vector<Parameter>& parameters() const { return parameters_; }
    // The parameter of that name. Throws Error when there is none.
    Parameter& parameter(std::string_view name);
    void zero_gradients(const Context& context);
    // The linear layers' ids are 0 .. layers() - 1; this is the weight of one.
    size_t layers() const { return layers_.size(); }
    Parameter& matrix_of(size_t layer);
    static int block_of(size_t layer) { return static_cast<int>(layer) / kBlockLayers; }

    const ModelConfig& config() const { return config_; }
    const Recipe& recipe() const { return recipe_; }
    // Another method from the next begin_step() on; weights and histories stay.
    void set_recipe(const Recipe& recipe);
    // Shows the operands of the recipe's layers to `observer` until it, or the recipe, is set again; an empty
    // one ends that.
    void observe(const QuantLinear::Observer& observer);
    const Options& options() const { return options_; }
    // True for blocks that the recipe keeps in bf16.
    bool is_kept(int block) const;

    // Once per optimizer step, before its micro-steps: quantises the weights. They live in context.arena
    // until the caller's ArenaScope ends.
    void begin_step(Context& context, Execution execution = Execution::recipe);

    // Adds the gradients of scale * (summed loss) to the parameters' gradients and returns the loss.
    // tokens, targets: I32 [sequences, length] on the model's device, as all tensors of a call; length at
    // most max_position_embeddings. What backward needs lives in context.arena until the call returns.
    HeadLoss forward_backward(Context& context, const Tensor& tokens, const Tensor& targets, float scale);
    // The same, without waiting: adds the loss to `totals` (head_loss_backward()).
    void forward_backward(Context& context, const Tensor& tokens, const Tensor& targets, float scale,
                          const Tensor& totals);
    // Called in the backward of each block, the last one first, with the gradient of the residual stream at
    // the block's input, [T, C] in the activations' dtype: for studies.
    using ResidualObserver = std::function<void(int block, const Tensor& d_residual)>;
    void observe_residual(ResidualObserver observer) { residual_observer_ = std::move(observer); }
    // The loss alone. loss_rows: F32 [sequences, length] per token, or no data.
    HeadLoss forward(Context& context, const Tensor& tokens, const Tensor& targets,
                     const Tensor& loss_rows = {});
    // F32 logits, of the last position of each row ([sequences, V]) or of all ([sequences, length, V]).
    void logits(Context& context, const Tensor& tokens, const Tensor& out);

    // For a step that went wrong: runs it again, outside its ArenaScope, and names the first tensor in the
    // order of execution that holds a NaN or an infinity: "master of layers.2.mlp.down", "output of
    // layers.2.attention.out", "gradient of layers.1.mlp.gate_up"; or the layer that fails, and how. Empty if
    // all is well. The gradients of this micro-step are added to what the parameters hold: clear them first.
    std::string first_non_finite(Context& context, const Tensor& tokens, const Tensor& targets, float scale);

    // Bytes of the arena in the last step: what begin_step() made, and what the last forward_backward() kept
    // of its forward.
    struct StepMemory {
        size_t weights = 0, activations = 0;
    };
    const StepMemory& step_memory() const { return step_memory_; }

    // The state of recipes with tensor=delayed, an AmaxHistory for each layer id, F32 [layers, 2, 6]: part of
    // a checkpoint.
    Tensor amax_history() const { return amax_history_.tensor(); }

    // What begin_step() rounds each layer's weight towards (QuantLinear::prepare), one entry a layer id; no
    // shape: nothing. The caller's memory.
    std::vector<Tensor>& round_targets() { return round_targets_; }

  private:
    struct Pass;   // the tensors that the blocks of one forward share
    struct Saved;  // what backward needs of one block's forward
    // Those of every architecture, then those of one.
    enum BlockParameter { kAttentionNorm, kQkv, kOut, kMlpNorm, kGateUp, kDown, kCommonParameters };
    static constexpr auto kQkvBias = kCommonParameters, kQNorm = kCommonParameters;
    static constexpr auto kKNorm = static_cast<BlockParameter>(kQNorm + 1);
    enum BlockLayer { kQkvLayer, kOutLayer, kGateUpLayer, kDownLayer, kBlockLayers };

    void add_parameters();
    int block_parameters() const {
        return kCommonParameters + (config_.has_qkv_bias() ? 1 : 0) + (config_.has_qk_norm() ? 2 : 0);
    }
    Parameter& of_block(int block, BlockParameter which);
    Parameter& embedding() { return parameters_.front(); }
    Parameter& final_norm();
    Parameter& head();

    Pass begin_pass(Context& context, const Tensor& tokens, bool for_backward);
    // The final norm's output [T, C]; lives until the caller's ArenaScope ends.
    Tensor hidden_states(Context& context, const Tensor& tokens);
    Tensor flat_targets(const Tensor& tokens, const Tensor& targets) const;
    HeadOptions head_options() const;
    AttentionShape attention_shape(const Pass& pass) const;
    // From the qkv projection to what attention reads, in place, and the gradient back.
    void qkv_forward(Context& context, const Pass& pass, int block);
    void qkv_backward(Context& context, const Pass& pass, int block);
    // A forward is a norm and attention(), a norm and mlp(). A backward runs again what it needs of them:
    // they allocate what they make from context.arena, and make the same bits of the same inputs.
    using Use = QuantLinear::Use;
    void block_forward(Context& context, Pass& pass, int block);
    void block_backward(Context& context, const Pass& pass, int block);
    // sum <- x + delta (no shape: x is the sum); returns its norm, what a linear layer reads.
    Tensor norm(Context& context, const Pass& pass, int block, BlockParameter which, const Tensor& x,
                const Tensor& delta, const Tensor& sum, Use use);
    // From the norm's output to the residual's change, in pass.delta.
    void attention(Context& context, const Pass& pass, int block, const Tensor& normed, Use use);
    void mlp(Context& context, const Pass& pass, int block, const Tensor& normed, Use use);
    // The SwiGLU's output.
    Tensor hidden(Context& context, const Pass& pass, int block, Use use);
    void linear_forward(Context& context, const Pass& pass, int block, BlockLayer which, const Tensor& x,
                        const Tensor& y, Use use);
    void linear_backward(Context& context, const Pass& pass, int block, BlockLayer which, const Tensor& dy,
                         const Tensor& dx, const float* dy_amax = nullptr);
    // Where the input of a layer was not kept: makes it, and what the layer saves of it.
    void input_again(Context& context, const Pass& pass, int block, BlockLayer which);
    // True if the backward of the block's layers reads what their forward was given.
    bool reads_inputs(int block, Use use) const;
    // In first_non_finite(), ends the pass if `tensor` is not finite; otherwise does nothing. An @ in `what`
    // stands for the block's prefix.
    void check(const Context& context, const Tensor& tensor, std::string_view what, int block = -1) const;
    // smooth-swiglu, where the recipe has it and executes the block; else null.
    const SmoothSwiglu* smoothing(int block) const;
    // Scales the channels of the SwiGLU's output in place and makes the down projection's weight with the
    // inverse. Returns the scales, F32 [F].
    Tensor smooth(Context& context, const SmoothSwiglu& options, int block, const Tensor& hidden, Use use);

    ModelConfig config_;
    Recipe recipe_, bf16_;
    Options options_;
    Buffer masters_, gradients_, bf16_gradients_, rope_table_, amax_history_;
    Tensor rope_cos_, rope_sin_;
    std::vector<Parameter> parameters_;
    std::vector<QuantLinear> layers_, bf16_layers_;
    std::vector<Tensor> round_targets_;
    // Of the step that begin_step() began, and of the pass under way: their memory is the arena's.
    const std::vector<QuantLinear>* executed_ = nullptr;
    std::vector<QuantLinear::Weight> weights_;
    std::vector<Saved> saved_;
    ResidualObserver residual_observer_;
    StepMemory step_memory_;
    bool checks_ = false;
    size_t running_layer_ = 0;  // for messages
};

}  // namespace nibble
