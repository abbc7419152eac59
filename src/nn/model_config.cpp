#include "nn/model_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

namespace nibble {

namespace {

using Json = nlohmann::json;

// Layer ids and parameter numbers are 16 bits of a random counter.
constexpr int64_t kMostLayers = 10'000;
constexpr int64_t kLargestSize = int64_t{1} << 26;

// Keys that say nothing about the computation of logits and loss.
const std::vector<std::string> kPassedOver = {
    "_name_or_path",
    "_attn_implementation_autoset",
    "bad_words_ids",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "transformers.js_config",
    "use_cache",
};

struct NamedArchitecture {
    Architecture architecture;
    std::string_view model_type, class_name, title;
};
constexpr NamedArchitecture kArchitectures[] = {
    {Architecture::llama, "llama", "LlamaForCausalLM", "Llama"},
    {Architecture::qwen2, "qwen2", "Qwen2ForCausalLM", "Qwen2"},
    {Architecture::qwen3, "qwen3", "Qwen3ForCausalLM", "Qwen3"},
};
const NamedArchitecture& names_of(Architecture architecture) {
    return kArchitectures[static_cast<size_t>(architecture)];
}

// A short form of a value for messages.
std::string shown(const Json& value) {
    std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > 40) text = text.substr(0, 37) + "...";
    return text;
}

// Takes keys out of the object one by one; what is left at the end is unknown.
class Keys {
  public:
    Keys(Json object, std::string where) : object_(std::move(object)), where_(std::move(where)) {}

    // The value, or null when the key is absent (transformers writes null for "not set").
    Json take(const std::string& key) {
        known_.push_back(key);
        const auto found = object_.find(key);
        if (found == object_.end()) return nullptr;
        Json value = std::move(*found);
        object_.erase(found);
        return value;
    }

    int64_t integer(const std::string& key, int64_t least, int64_t most, std::optional<int64_t> absent = {}) {
        const Json value = take(key);
        if (value.is_null() && absent) return *absent;
        require(!value.is_null(), "{}: the key {} is missing", where_, key);
        // Comparing as double first keeps huge unsigned values from wrapping.
        require(value.is_number_integer() && value.get<double>() >= static_cast<double>(least) &&
                    value.get<double>() <= static_cast<double>(most),
                "{}: {} must be an integer in [{}, {}], not {}", where_, key, least, most, shown(value));
        return value.get<int64_t>();
    }

    double positive(const std::string& key, double absent) {
        const Json value = take(key);
        if (value.is_null()) return absent;
        require(value.is_number() && value.get<double>() > 0 && std::isfinite(value.get<double>()),
                "{}: {} must be a positive number, not {}", where_, key, shown(value));
        return value.get<double>();
    }

    bool boolean(const std::string& key, bool absent) {
        const Json value = take(key);
        if (value.is_null()) return absent;
        require(value.is_boolean(), "{}: {} must be true or false, not {}", where_, key, shown(value));
        return value.get<bool>();
    }

    // Something that this program does only one way.
    void only(const std::string& key, const Json& supported) {
        const Json value = take(key);
        require(value.is_null() || value == supported, "{}: {} = {} is not supported, only {}", where_, key,
                shown(value), shown(supported));
    }

    void pass_over(const std::string& key) { take(key); }

    void finish(std::string_view title) const {
        if (object_.empty()) return;
        const std::string key = object_.begin().key();
        const std::string nearest = nearest_name(key, known_);
        fail(
            "{}: the key {} is not known for a {} model{}; remove it if it does not change the "
            "computation",
            where_, key, title,
            nearest.empty() ? std::string() : fmt::format(" (did you mean {}?)", nearest));
    }

    const std::string& where() const { return where_; }

  private:
    Json object_;
    std::string where_;
    std::vector<std::string> known_;
};

int first_token_id(Keys& keys, const std::string& key, int64_t vocab_size) {
    Json value = keys.take(key);
    if (value.is_array() && !value.empty()) value = Json(value.front());
    if (value.is_null()) return -1;
    require(value.is_number_integer() && value.get<double>() >= 0 &&
                value.get<double>() < static_cast<double>(vocab_size),
            "{}: {} must be a token of the vocabulary of {}, not {}", keys.where(), key, vocab_size,
            shown(value));
    return value.get<int>();
}

// rope_theta stands at the top level or, in newer files, in rope_parameters.
double rope_theta(Keys& keys, std::string_view title) {
    constexpr double kDefault = 10000.0;
    const double top = keys.positive("rope_theta", 0);
    double theta = top;
    keys.only("rope_scaling", nullptr);
    const Json parameters = keys.take("rope_parameters");
    if (!parameters.is_null()) {
        require(parameters.is_object(), "{}: rope_parameters must be an object, not {}", keys.where(),
                shown(parameters));
        Keys inner(parameters, keys.where() + ": rope_parameters");
        inner.only("rope_type", "default");
        inner.only("partial_rotary_factor", 1.0);
        theta = inner.positive("rope_theta", top);
        inner.finish(title);
        require(top == 0 || theta == top, "{}: rope_theta is {} at the top and {} in rope_parameters",
                keys.where(), top, theta);
    }
    return theta > 0 ? theta : kDefault;
}

Architecture take_architecture(Keys& keys) {
    const Json model_type = keys.take("model_type");
    const Json architectures = keys.take("architectures");
    require(!model_type.is_null() || !architectures.is_null(),
            "{}: neither model_type nor architectures is given", keys.where());
    for (const NamedArchitecture& known : kArchitectures) {
        const bool is_type = model_type.is_null() || model_type == std::string(known.model_type);
        const bool is_class = architectures.is_null() || architectures == Json::array({known.class_name});
        if (is_type && is_class) return known.architecture;
    }
    fail(
        "{}: model_type {} with architectures {} is not supported; llama (LlamaForCausalLM), qwen2 "
        "(Qwen2ForCausalLM) and qwen3 (Qwen3ForCausalLM) are",
        keys.where(), shown(model_type), shown(architectures));
}

// The attention of every layer must reach all earlier tokens.
void check_full_attention(Keys& keys, Architecture architecture) {
    if (architecture == Architecture::llama) {
        keys.only("sliding_window", nullptr);
        return;
    }
    keys.only("use_sliding_window", false);
    keys.pass_over("sliding_window");  // of no effect without the other
    keys.pass_over("max_window_layers");
    keys.only("use_mrope", false);
    const Json types = keys.take("layer_types");
    for (const Json& type : types)
        require(type == "full_attention", "{}: layer_types {} is not supported, only \"full_attention\"",
                keys.where(), shown(type));
}

}  // namespace

int64_t ModelConfig::non_embedding_parameters() const {
    const int64_t attention = (qkv_size() + attention_size()) * hidden_size;
    const int64_t mlp = 3 * hidden_size * intermediate_size;
    const int64_t extra = (has_qkv_bias() ? qkv_size() : 0) + (has_qk_norm() ? 2 * head_dim : 0);
    return num_hidden_layers * (attention + mlp + 2 * hidden_size + extra) + hidden_size;
}

int64_t ModelConfig::parameters() const {
    return non_embedding_parameters() + (tie_word_embeddings ? 1 : 2) * vocab_size * hidden_size;
}

ModelConfig parse_model_config(std::string_view json, std::string_view where) {
    Json parsed;
    try {
        parsed = Json::parse(json);
    } catch (const Json::exception& error) {
        fail("{}: this is not JSON: {}", where, error.what());
    }
    require(parsed.is_object(), "{}: a model's configuration must be a JSON object", where);
    Keys keys(std::move(parsed), std::string(where));

    ModelConfig config;
    config.architecture = take_architecture(keys);
    const bool is_llama = config.architecture == Architecture::llama;
    config.hidden_size = keys.integer("hidden_size", 1, kLargestSize);
    config.intermediate_size = keys.integer("intermediate_size", 1, kLargestSize);
    config.vocab_size = keys.integer("vocab_size", 1, kLargestSize);
    config.num_hidden_layers = static_cast<int>(keys.integer("num_hidden_layers", 1, kMostLayers));
    config.num_attention_heads = static_cast<int>(keys.integer("num_attention_heads", 1, config.hidden_size));
    // The defaults of transformers: as many as there are heads, or 32.
    const int most = config.num_attention_heads, absent = is_llama ? most : std::min(most, 32);
    config.num_key_value_heads = static_cast<int>(keys.integer("num_key_value_heads", 1, most, absent));
    require(config.num_attention_heads % config.num_key_value_heads == 0,
            "{}: num_attention_heads = {} is not a multiple of num_key_value_heads = {}", where,
            config.num_attention_heads, config.num_key_value_heads);
    const int64_t head_dim = keys.integer("head_dim", 1, 1 << 16, config.has_qk_norm() ? 128 : 0);
    require(head_dim > 0 || config.hidden_size % config.num_attention_heads == 0,
            "{}: hidden_size = {} is not a multiple of num_attention_heads = {}, and head_dim is missing",
            where, config.hidden_size, config.num_attention_heads);
    config.head_dim =
        static_cast<int>(head_dim > 0 ? head_dim : config.hidden_size / config.num_attention_heads);
    require(config.head_dim % 2 == 0, "{}: head_dim = {} must be even, for RoPE", where, config.head_dim);
    require(config.qkv_size() <= kLargestSize, "{}: the heads are {} columns wide, more than {}", where,
            config.qkv_size(), int64_t{kLargestSize});
    config.max_position_embeddings =
        keys.integer("max_position_embeddings", 1, kLargestSize, is_llama ? 2048 : 32768);
    config.rope_theta = rope_theta(keys, names_of(config.architecture).title);
    config.rms_norm_eps = static_cast<float>(keys.positive("rms_norm_eps", 1e-6));
    config.initializer_range = static_cast<float>(keys.positive("initializer_range", 0.02));
    config.tie_word_embeddings = keys.boolean("tie_word_embeddings", false);
    const bool interleaved = keys.boolean("rope_interleaved", false);
    config.rope_layout = interleaved ? RopeLayout::interleaved : RopeLayout::half_split;
    config.bos_token_id = first_token_id(keys, "bos_token_id", config.vocab_size);
    config.eos_token_id = first_token_id(keys, "eos_token_id", config.vocab_size);

    keys.only("hidden_act", "silu");
    if (config.has_qkv_bias())
        keys.pass_over("attention_bias");  // Qwen2 has its biases whatever this says
    else
        keys.only("attention_bias", false);
    if (is_llama) keys.only("mlp_bias", false);
    keys.only("attention_dropout", 0.0);
    check_full_attention(keys, config.architecture);
    keys.only("quantization_config", nullptr);
    for (const std::string& key : kPassedOver) keys.pass_over(key);
    keys.finish(names_of(config.architecture).title);
    return config;
}

std::string to_json(const ModelConfig& config) {
    const auto token_id = [](int id) {
        return id < 0 ? nlohmann::ordered_json() : nlohmann::ordered_json(id);
    };
    // The shortest decimal that gives the same float back, as double: 1e-05 and not 9.999999747378752e-06.
    const auto shortest = [](float value) {
        const std::string text = fmt::format("{}", value);
        double number = 0;
        std::from_chars(text.data(), text.data() + text.size(), number);
        return number;
    };
    nlohmann::ordered_json json = {
        {"architectures", {names_of(config.architecture).class_name}},
        {"model_type", names_of(config.architecture).model_type},
        {"hidden_size", config.hidden_size},
        {"intermediate_size", config.intermediate_size},
        {"num_hidden_layers", config.num_hidden_layers},
        {"num_attention_heads", config.num_attention_heads},
        {"num_key_value_heads", config.num_key_value_heads},
        {"head_dim", config.head_dim},
        {"vocab_size", config.vocab_size},
        {"max_position_embeddings", config.max_position_embeddings},
        {"rms_norm_eps", shortest(config.rms_norm_eps)},
        // Both places, for readers before and after transformers 5.
        {"rope_theta", config.rope_theta},
        {"rope_parameters", {{"rope_theta", config.rope_theta}, {"rope_type", "default"}}},
        {"hidden_act", "silu"},
        {"attention_dropout", 0.0},
        {"tie_word_embeddings", config.tie_word_embeddings},
        {"initializer_range", shortest(config.initializer_range)},
        {"bos_token_id", token_id(config.bos_token_id)},
        {"eos_token_id", token_id(config.eos_token_id)},
        {"dtype", "float32"},
    };
    if (!config.has_qkv_bias()) json["attention_bias"] = false;
    if (config.architecture == Architecture::llama)
        json["mlp_bias"] = false;
    else
        json["use_sliding_window"] = false;
    if (config.rope_layout == RopeLayout::interleaved) json["rope_interleaved"] = true;
    return json.dump(2) + "\n";
}

}  // namespace nibble
