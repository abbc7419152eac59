#include "train/model_directory.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/cuda.h"
#include "io/io.h"

namespace nibble {

namespace {

constexpr const char* kWeights = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

// --- names

struct Part {
    const char* name;
    int64_t rows;
    int rotary_heads;
};

// The tensors that a block's parameter is made of, by its name within the block.
std::vector<Part> parts_of(std::string_view name, const ModelConfig& config) {
    const int64_t q = int64_t{config.num_attention_heads} * config.head_dim;
    const int64_t kv = int64_t{config.num_key_value_heads} * config.head_dim;
    const int64_t width = config.hidden_size, inner = config.intermediate_size;
    if (name == "attention.norm") return {{"input_layernorm.weight", width, 0}};
    if (name == "attention.qkv") {
        return {{"self_attn.q_proj.weight", q, config.num_attention_heads},
                {"self_attn.k_proj.weight", kv, config.num_key_value_heads},
                {"self_attn.v_proj.weight", kv, 0}};
    }
    if (name == "attention.qkv_bias") {
        return {{"self_attn.q_proj.bias", q, config.num_attention_heads},
                {"self_attn.k_proj.bias", kv, config.num_key_value_heads},
                {"self_attn.v_proj.bias", kv, 0}};
    }
    if (name == "attention.q_norm") return {{"self_attn.q_norm.weight", config.head_dim, 1}};
    if (name == "attention.k_norm") return {{"self_attn.k_norm.weight", config.head_dim, 1}};
    if (name == "attention.out") return {{"self_attn.o_proj.weight", width, 0}};
    if (name == "mlp.norm") return {{"post_attention_layernorm.weight", width, 0}};
    if (name == "mlp.gate_up") return {{"mlp.gate_proj.weight", inner, 0}, {"mlp.up_proj.weight", inner, 0}};
    if (name == "mlp.down") return {{"mlp.down_proj.weight", width, 0}};
    return {};
}

// "layers.3.attention.qkv" -> "layers.3." and "attention.qkv"; the first is empty outside a block.
std::pair<std::string_view, std::string_view> split_block(std::string_view name) {
    constexpr std::string_view kPrefix = "layers.";
    if (!name.starts_with(kPrefix)) return {{}, name};
    const size_t dot = name.find('.', kPrefix.size());
    if (dot == std::string_view::npos) return {{}, name};
    return {name.substr(0, dot + 1), name.substr(dot + 1)};
}

// --- values

float half_decode(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t exponent = bits >> 10 & 31u, mantissa = bits & 1023u;
    if (exponent == 0) {
        const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
        return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
    }
    const uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
    return std::bit_cast<float>(sign | wide << 23 | mantissa << 13);
}

void read_values(const Tensor& from, float* to, int64_t count) {
    if (from.dtype == DType::f32) {
        std::memcpy(to, from.data, static_cast<size_t>(count) * sizeof(float));
    } else if (from.dtype == DType::bf16) {
        for (int64_t i = 0; i < count; ++i) to[i] = bf16_decode(from.as<Bf16>()[i]);
    } else {
        const auto* halves = static_cast<const uint16_t*>(from.data);
        for (int64_t i = 0; i < count; ++i) to[i] = half_decode(halves[i]);
    }
}

// Within each head, RoPE turns the pairs (2i, 2i+1) in the interleaved layout and (i, i + d/2) in the
// half-split one: row i of one layout is row source_row(i) of the other, and the products of queries and keys
// stay the same.
int64_t interleaved_row(int64_t half_split_row, int64_t head_dim) {
    const int64_t head = half_split_row / head_dim, i = half_split_row % head_dim, half = head_dim / 2;
    return head * head_dim + (i < half ? 2 * i : 2 * (i - half) + 1);
}

// Elements of a row; those of a vector are its rows.
int64_t row_size(const Shape& shape) { return shape.rank() == 1 ? 1 : shape.last(); }

float* rows_of(const DirectoryTensor& tensor, const Tensor& master) {
    return master.as<float>() + tensor.first_row * row_size(master.shape);
}

// --- reading

// All weight files of a directory, opened, and which tensor lies in which.
class Weights {
  public:
    explicit Weights(const fs::path& directory) {
        if (fs::exists(directory / kWeights)) {
            where_ = (directory / kWeights).string();
            const SafetensorsFile& file = files_.try_emplace(kWeights, directory / kWeights).first->second;
            for (const NamedTensor& named : file.tensors()) file_of_[named.name] = &file;
            return;
        }
        require(fs::exists(directory / kIndex),
                "{}: neither {} nor {} is there; is this the directory of a model?", directory.string(),
                kWeights, kIndex);
        read_index(directory);
    }

    const Tensor& tensor(const std::string& name) const {
        const auto found = file_of_.find(name);
        if (found != file_of_.end()) return found->second->tensor(name);
        const std::string nearest = nearest_name(name, names());
        fail("{}: there is no tensor '{}'{}", where_, name,
             nearest.empty() ? std::string() : fmt::format("; the nearest name is '{}'", nearest));
    }
    std::vector<std::string> names() const {
        std::vector<std::string> names;
        for (const auto& [name, file] : file_of_) names.push_back(name);
        return names;
    }
    // The file that holds the tensor, for messages.
    std::string where(const std::string& name) const {
        const auto found = file_of_.find(name);
        return found == file_of_.end() ? where_ : found->second->where();
    }

  private:
    void read_index(const fs::path& directory) {
        where_ = (directory / kIndex).string();
        const auto index =
            nlohmann::json::parse(read_text(directory / kIndex), nullptr, /*allow_exceptions=*/false);
        require(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(),
                "{}: this is not a JSON object with a weight_map; the file is damaged", where_);
        for (const auto& [name, value] : index["weight_map"].items()) {
            require(value.is_string(), "{}: the file of tensor '{}' is not text", where_, name);
            const std::string file = value.get<std::string>();
            require(!file.empty() && fs::path(file).filename() == file && file != "." && file != "..",
                    "{}: tensor '{}' lies in '{}', which is not a file of this directory", where_, name,
                    file);
            file_of_[name] = &files_.try_emplace(file, directory / file).first->second;
        }
    }

    std::string where_;
    std::map<std::string, SafetensorsFile> files_;
    std::map<std::string, const SafetensorsFile*> file_of_;
};

// Tensors that a directory may hold beside the parameters: they follow from the configuration.
bool is_redundant(const std::string& name, const ModelConfig& config) {
    return name.ends_with(".rotary_emb.inv_freq") || (config.tie_word_embeddings && name == "lm_head.weight");
}

void read_tensor(const Weights& weights, const DirectoryTensor& wanted, const ModelConfig& stored_config,
                 const ModelConfig& config, float* to) {
    const Tensor& from = weights.tensor(wanted.name);
    const std::string where = fmt::format("{}: tensor '{}'", weights.where(wanted.name), wanted.name);
    require(from.dtype == DType::f32 || from.dtype == DType::bf16 || from.dtype == DType::f16,
            "{} is {}; a model's weights can be F32, BF16 or F16", where, name_of(from.dtype));
    require(from.shape == wanted.shape, "{} is {}, but config.json asks for {}", where, from.shape.str(),
            wanted.shape.str());
    const int64_t count = from.count();
    const bool reordered = wanted.rotary_heads > 0 && stored_config.rope_layout != config.rope_layout;
    std::vector<float> values;
    if (reordered) values.resize(static_cast<size_t>(count));
    float* target = reordered ? values.data() : to;
    read_values(from, target, count);
    for (int64_t i = 0; i < count; ++i) {
        require(std::isfinite(target[i]), "{}: element {} is not finite", where, i);
    }
    if (!reordered) return;
    const int64_t rows = wanted.shape[0], cols = row_size(wanted.shape);
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t other = interleaved_row(row, config.head_dim);
        const bool to_interleaved = config.rope_layout == RopeLayout::interleaved;
        const int64_t target_row = to_interleaved ? other : row, source_row = to_interleaved ? row : other;
        std::copy_n(values.data() + source_row * cols, cols, to + target_row * cols);
    }
}

// --- writing

std::string config_json(const ModelConfig& config, DType dtype) {
    ModelConfig written = config;
    written.rope_layout = RopeLayout::half_split;
    auto json = nlohmann::ordered_json::parse(to_json(written));
    if (dtype == DType::bf16) json["dtype"] = "bfloat16";
    json["torch_dtype"] = json["dtype"];  // readers before transformers 4.56
    return json.dump(2) + "\n";
}

std::string generation_config_json(const ModelConfig& config) {
    nlohmann::ordered_json json = {{"_from_model_config", true}};
    if (config.bos_token_id >= 0) json["bos_token_id"] = config.bos_token_id;
    if (config.eos_token_id >= 0) json["eos_token_id"] = config.eos_token_id;
    return json.dump(2) + "\n";
}

// The rows of one tensor as they are written. Made in `buffers` unless the master's own memory serves.
Tensor written_values(const DirectoryTensor& tensor, const ModelConfig& config, const Tensor& master,
                      DType dtype, std::vector<Buffer>& buffers) {
    const float* values = rows_of(tensor, master);
    if (tensor.rotary_heads > 0 && config.rope_layout == RopeLayout::interleaved) {
        const Tensor reordered = buffers.emplace_back(DType::f32, tensor.shape).tensor();
        const int64_t rows = tensor.shape[0], cols = row_size(tensor.shape);
        for (int64_t row = 0; row < rows; ++row) {
            std::copy_n(values + interleaved_row(row, config.head_dim) * cols, cols,
                        reordered.as<float>() + row * cols);
        }
        values = reordered.as<float>();
    }
    if (dtype == DType::f32) return {const_cast<float*>(values), DType::f32, Device::cpu, tensor.shape};
    const Tensor rounded = buffers.emplace_back(DType::bf16, tensor.shape).tensor();
    for (int64_t i = 0; i < rounded.count(); ++i) rounded.as<Bf16>()[i] = bf16_encode(values[i]);
    return rounded;
}

}  // namespace

std::vector<DirectoryTensor> directory_tensors(const ModelConfig& config,
                                               std::span<const Parameter> parameters) {
    std::vector<DirectoryTensor> tensors;
    for (size_t p = 0; p < parameters.size(); ++p) {
        const auto& [name, master, gradient, kind] = parameters[p];
        const auto [block, rest] = split_block(name);
        std::vector<Part> parts;
        std::string prefix = "model.";
        if (!block.empty()) {
            prefix += block;
            parts = parts_of(rest, config);
        } else if (name == "embedding") {
            parts = {{"embed_tokens.weight", config.vocab_size, 0}};
        } else if (name == "norm") {
            parts = {{"norm.weight", config.hidden_size, 0}};
        } else if (name == "head") {
            prefix.clear();
            parts = {{"lm_head.weight", config.vocab_size, 0}};
        }
        require(!parts.empty(), "the parameter {} has no place in a model directory", name);
        int64_t row = 0;
        for (const Part& part : parts) {
            const Shape shape = master.shape.rank() == 1 ? Shape{part.rows} : Shape{part.rows, master.cols()};
            tensors.push_back({prefix + part.name, p, row, shape, part.rotary_heads});
            row += part.rows;
        }
        require(master.shape.rank() > 0 && row == master.shape[0],
                "the parameter {} has {} rows, not the {} of its model", name,
                master.shape.rank() > 0 ? master.shape[0] : 0, row);
    }
    return tensors;
}

ModelConfig read_model_config(const fs::path& directory) {
    const fs::path path = directory / "config.json";
    return parse_model_config(read_text(path), path.string());
}

void read_parameters(const fs::path& directory, const ModelConfig& config, std::span<Parameter> parameters) {
    const ModelConfig stored_config = read_model_config(directory);
    const Weights weights(directory);
    const std::vector<DirectoryTensor> wanted = directory_tensors(config, parameters);
    std::set<std::string_view> known;
    for (const DirectoryTensor& tensor : wanted) known.insert(tensor.name);
    for (const std::string& name : weights.names()) {
        require(known.contains(name) || is_redundant(name, config),
                "{}: tensor '{}' does not belong to the model that config.json describes",
                weights.where(name), name);
    }
    // The tensors of one parameter stand together.
    for (size_t begin = 0; begin < wanted.size();) {
        const Tensor& master = parameters[wanted[begin].parameter].master;
        const OnCpu values(master);
        size_t end = begin;
        for (; end < wanted.size() && wanted[end].parameter == wanted[begin].parameter; ++end)
            read_tensor(weights, wanted[end], stored_config, config, rows_of(wanted[end], values.tensor()));
        if (master.device != Device::cpu) copy(values.tensor(), master);
        begin = end;
    }
}

void write_model_directory(const fs::path& directory, const ModelConfig& config,
                           std::span<const Parameter> parameters, const ModelDirectoryOptions& options) {
    require(options.dtype == DType::f32 || options.dtype == DType::bf16,
            "weights are written as F32 or BF16, not {}", name_of(options.dtype));
    std::vector<OnCpu> masters;
    for (const Parameter& parameter : parameters) masters.emplace_back(parameter.master);
    std::vector<Buffer> buffers;
    std::vector<NamedTensor> tensors;
    for (const DirectoryTensor& tensor : directory_tensors(config, parameters)) {
        const Tensor& master = masters[tensor.parameter].tensor();
        tensors.push_back({tensor.name, written_values(tensor, config, master, options.dtype, buffers)});
    }
    write_safetensors(directory / kWeights, std::move(tensors));
    write_text(directory / "config.json", config_json(config, options.dtype));
    write_text(directory / "generation_config.json", generation_config_json(config));
    if (options.tokenizer.empty()) return;
    write_text(directory / "tokenizer.json", read_text(options.tokenizer / "tokenizer.json"));
    for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
        if (fs::exists(options.tokenizer / name))
            write_text(directory / name, read_text(options.tokenizer / name));
    }
}

}  // namespace nibble
