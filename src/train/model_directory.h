// A model on disk, as Hugging Face tools read and write it: config.json, generation_config.json,
// model.safetensors (or shards with model.safetensors.index.json), tokenizer.json, tokenizer_config.json.
//
// The fused projections are split under their Hugging Face names: layers.I.attention.qkv holds the rows of
// model.layers.I.self_attn.{q,k,v}_proj.weight, layers.I.mlp.gate_up those of mlp.{gate,up}_proj.weight.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/core.h"
#include "nn/transformer.h"

namespace nibble {

// A tensor of a model directory: consecutive rows of one parameter.
struct DirectoryTensor {
    std::string name;      // "model.layers.0.self_attn.k_proj.weight"
    size_t parameter = 0;  // which of the parameters
    int64_t first_row = 0;
    Shape shape;
    // Heads whose rows change their order with the RoPE layout: those of q and k. Otherwise 0.
    int rotary_heads = 0;
};

// What a model of this shape has in its directory, in the order of the parameters (nn/transformer.h). Throws
// Error on a parameter name or shape that does not belong to `config`.
std::vector<DirectoryTensor> directory_tensors(const ModelConfig& config,
                                               std::span<const Parameter> parameters);

// DIRECTORY/config.json.
ModelConfig read_model_config(const fs::path& directory);

// Fills the masters of `parameters`, those of a model of shape `config`, from the weights in `directory`
// (F32, BF16 or F16). Throws Error, one line that names file and tensor, when one is missing, unknown, of
// another shape or not finite. An lm_head.weight beside tied embeddings is passed over.
void read_parameters(const fs::path& directory, const ModelConfig& config, std::span<Parameter> parameters);

struct ModelDirectoryOptions {
    DType dtype = DType::f32;  // of the weights; or BF16
    fs::path tokenizer;  // a folder with tokenizer.json (and tokenizer_config.json) to copy; empty: none
};

// Writes what transformers loads at once. Weights are written in the half-split RoPE layout, the only one
// that it knows, whatever the model's own. Each file is replaced as a whole; the folder is made if need be.
void write_model_directory(const fs::path& directory, const ModelConfig& config,
                           std::span<const Parameter> parameters, const ModelDirectoryOptions& options = {});

}  // namespace nibble
