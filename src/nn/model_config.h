// ModelConfig: the shape of a model, from a Hugging Face config.json.
#pragma once

#include <string>
#include <string_view>

#include "core/core.h"
#include "nn/rope.h"

namespace nibble {

// What a model is made of beside the sizes. Qwen2: a bias for queries, keys and values. Qwen3: a norm for
// each of their heads.
enum class Architecture : uint8_t { llama, qwen2, qwen3 };

struct ModelConfig {
    Architecture architecture = Architecture::llama;
    int64_t hidden_size = 0, intermediate_size = 0, vocab_size = 0;
    int num_hidden_layers = 0, num_attention_heads = 0, num_key_value_heads = 0, head_dim = 0;
    int64_t max_position_embeddings = 2048;
    double rope_theta = 10000.0;
    float rms_norm_eps = 1e-5f;
    float initializer_range = 0.02f;
    bool tie_word_embeddings = false;
    RopeLayout rope_layout = RopeLayout::half_split;  // extra key "rope_interleaved": true selects the other
    int bos_token_id = -1, eos_token_id = -1;         // -1: none; of a list, the first

    bool has_qkv_bias() const { return architecture == Architecture::qwen2; }
    bool has_qk_norm() const { return architecture == Architecture::qwen3; }
    // Rows of the fused projection: queries, then keys, then values.
    int64_t qkv_size() const { return int64_t{num_attention_heads + 2 * num_key_value_heads} * head_dim; }
    // Columns of the attention's output.
    int64_t attention_size() const { return int64_t{num_attention_heads} * head_dim; }
    int64_t non_embedding_parameters() const;  // blocks and norms, without embedding and head
    int64_t parameters() const;
    friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

// Reads the config.json of a LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM, with the defaults of
// transformers' configurations for what it leaves out. Throws Error naming `where` and the key that is
// missing, malformed, unknown or asks for something that this program does not do (another architecture,
// other biases, sliding windows, scaled RoPE, a quantised model). Keys that do not change the computation
// (dtype, use_cache, transformers_version, ...) are passed over.
ModelConfig parse_model_config(std::string_view json, std::string_view where);
// A config.json that Hugging Face transformers reads (architectures, model_type, dtype float32, ...).
std::string to_json(const ModelConfig& config);

}  // namespace nibble
