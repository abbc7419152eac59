// What the tests of whole models share: a context, an FP32 recipe, weights under their Hugging Face names,
// training.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "core/cuda.h"
#include "io/safetensors.h"
#include "nn/transformer.h"
#include "numerics/philox.h"
#include "optim/optim.h"

namespace nibble::testing_models {

inline constexpr size_t kArenaBytes = size_t{8} << 20;

struct Session {
    Arena arena{kArenaBytes};
    Context context{arena};
};

// Every product in FP32: the model without any rounding but FP32's own.
inline Recipe fp32_recipe() {
    Recipe recipe = find_recipe("bf16");
    recipe.name = "fp32";
    for (const std::string_view name : kOperandNames) operand(recipe, name).spec = parse_spec("fp32");
    return recipe;
}

inline ModelConfig small_config() {
    ModelConfig config;
    config.hidden_size = 64;
    config.intermediate_size = 96;
    config.vocab_size = 64;
    config.num_hidden_layers = 2;
    config.num_attention_heads = 4;
    config.num_key_value_heads = 2;
    config.head_dim = 16;
    config.max_position_embeddings = 32;
    return config;
}

inline ModelConfig small_qwen(Architecture architecture) {
    ModelConfig config = small_config();
    config.architecture = architecture;
    return config;
}

// Random tokens, each followed by the next as its target.
struct Batch {
    Batch(int64_t sequences, int64_t length, int64_t vocab, uint64_t seed) : shape{sequences, length} {
        for (int64_t s = 0; s < sequences; ++s) {
            const auto token = [&](int64_t i) {
                const Philox draw = philox_draw(seed, Purpose::data_order, static_cast<uint64_t>(i), 0,
                                                static_cast<uint16_t>(s));
                return static_cast<int32_t>(draw.word[0] % static_cast<uint32_t>(vocab));
            };
            for (int64_t i = 0; i < length; ++i) {
                token_values.push_back(token(i));
                target_values.push_back(token(i + 1));
            }
        }
    }
    Tensor tokens() { return view_of(token_values, shape); }
    Tensor targets() { return view_of(target_values, shape); }
    Shape shape;
    std::vector<int32_t> token_values, target_values;
};

// Rows [begin, end) of a parameter are one tensor of a Hugging Face directory.
struct HuggingFaceTensor {
    std::string name;
    std::string parameter;
    int64_t begin, end;
};
inline std::vector<HuggingFaceTensor> hugging_face_tensors(const ModelConfig& config) {
    const int64_t q = config.attention_size(), kv = int64_t{config.num_key_value_heads} * config.head_dim;
    const int64_t c = config.hidden_size, f = config.intermediate_size, v = config.vocab_size;
    std::vector<HuggingFaceTensor> tensors = {{"model.embed_tokens.weight", "embedding", 0, v}};
    for (int block = 0; block < config.num_hidden_layers; ++block) {
        const std::string theirs = fmt::format("model.layers.{}.", block),
                          ours = fmt::format("layers.{}.", block);
        const auto add = [&](const char* name, const char* parameter, int64_t begin, int64_t end) {
            tensors.push_back({theirs + name + ".weight", ours + parameter, begin, end});
        };
        const auto add_bias = [&](const char* name, int64_t begin, int64_t end) {
            tensors.push_back({theirs + name + ".bias", ours + "attention.qkv_bias", begin, end});
        };
        add("input_layernorm", "attention.norm", 0, c);
        add("self_attn.q_proj", "attention.qkv", 0, q);
        add("self_attn.k_proj", "attention.qkv", q, q + kv);
        add("self_attn.v_proj", "attention.qkv", q + kv, q + 2 * kv);
        add("self_attn.o_proj", "attention.out", 0, c);
        add("post_attention_layernorm", "mlp.norm", 0, c);
        add("mlp.gate_proj", "mlp.gate_up", 0, f);
        add("mlp.up_proj", "mlp.gate_up", f, 2 * f);
        add("mlp.down_proj", "mlp.down", 0, c);
        if (config.has_qkv_bias()) {
            add_bias("self_attn.q_proj", 0, q);
            add_bias("self_attn.k_proj", q, q + kv);
            add_bias("self_attn.v_proj", q + kv, q + 2 * kv);
        }
        if (config.has_qk_norm()) {
            add("self_attn.q_norm", "attention.q_norm", 0, config.head_dim);
            add("self_attn.k_norm", "attention.k_norm", 0, config.head_dim);
        }
    }
    tensors.push_back({"model.norm.weight", "norm", 0, c});
    if (!config.tie_word_embeddings) tensors.push_back({"lm_head.weight", "head", 0, v});
    return tensors;
}

inline void load_weights(Transformer& model, const SafetensorsFile& file, const std::string& prefix) {
    for (const HuggingFaceTensor& part : hugging_face_tensors(model.config())) {
        const Tensor& from = file.tensor(prefix + part.name);
        const Tensor to = model.parameter(part.parameter).master.slice(part.begin, part.end);
        ASSERT_EQ(from.count(), to.count()) << part.name;
        copy(from, to);
    }
}

inline std::unique_ptr<AdamW> make_adamw(Transformer& model, const AdamWOptions& options) {
    std::vector<OptimizedTensor> tensors;
    for (const Parameter& p : model.parameters()) {
        tensors.push_back({p.name, p.master, p.gradient, p.kind == ParameterKind::matrix});
    }
    return std::make_unique<AdamW>(std::move(tensors), options);
}

struct StepResult {
    double loss = 0, gradient_norm = 0;
};

// One whole training step on one batch: gradients of the mean loss, clipping, AdamW.
inline StepResult train_step(Context& context, Transformer& model, AdamW& optimizer, const Tensor& tokens,
                             const Tensor& targets, uint32_t step, double lr, double clip) {
    const ArenaScope scope(context.arena);
    context.step = step;
    int64_t count = 0;
    for (const int32_t target : targets.span<const int32_t>()) count += target != kIgnoredTarget;
    model.zero_gradients(context);
    model.begin_step(context);
    const HeadLoss loss = model.forward_backward(context, tokens, targets, 1.0f / static_cast<float>(count));
    std::vector<Tensor> gradients;
    for (const Parameter& p : model.parameters()) gradients.push_back(p.gradient);
    const GradientNorm norm = global_norm(context, gradients);
    optimizer.update(context, int64_t{step} + 1, lr, clip_factor(norm.norm, clip));
    return {loss.loss_sum / static_cast<double>(loss.count), norm.norm};
}

}  // namespace nibble::testing_models
