#include "nn/model_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <tuple>

#include "support/measured.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

Json small_config() {
    return {{"model_type", "llama"},  {"hidden_size", 64},        {"intermediate_size", 96},
            {"num_hidden_layers", 2}, {"num_attention_heads", 4}, {"vocab_size", 128}};
}

ModelConfig parse(const Json& json) { return parse_model_config(json.dump(), "config.json"); }

// The message of the error that `json` gives, or nothing if it is accepted.
std::string error_of(const std::string& json) {
    try {
        parse_model_config(json, "config.json");
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

std::string error_with(const std::string& key, const Json& value) {
    Json json = small_config();
    json[key] = value;
    return error_of(json.dump());
}

TEST(ModelConfig, TakesTheDefaultsOfTransformersForWhatIsLeftOut) {
    const ModelConfig config = parse(small_config());
    EXPECT_EQ(config.num_key_value_heads, 4);
    EXPECT_EQ(config.head_dim, 16);
    EXPECT_EQ(config.max_position_embeddings, 2048);
    EXPECT_EQ(config.rope_theta, 10000.0);
    EXPECT_EQ(config.rms_norm_eps, 1e-6f);
    EXPECT_FALSE(config.tie_word_embeddings);
    EXPECT_EQ(config.rope_layout, RopeLayout::half_split);
    EXPECT_EQ(config.bos_token_id, -1);
}

TEST(ModelConfig, ReadsEveryKeyThatItUses) {
    Json json = small_config();
    json.update({{"architectures", {"LlamaForCausalLM"}},
                 {"num_key_value_heads", 2},
                 {"head_dim", 32},
                 {"max_position_embeddings", 512},
                 {"rope_theta", 500000.0},
                 {"rms_norm_eps", 1e-5},
                 {"initializer_range", 0.01},
                 {"tie_word_embeddings", true},
                 {"rope_interleaved", true},
                 {"bos_token_id", 3},
                 {"eos_token_id", {7, 8}},
                 {"torch_dtype", "bfloat16"},
                 {"transformers_version", "4.40.0"},
                 {"use_cache", true}});
    const ModelConfig config = parse(json);
    EXPECT_EQ(config.num_key_value_heads, 2);
    EXPECT_EQ(config.head_dim, 32);
    EXPECT_EQ(config.qkv_size(), (4 + 2 * 2) * 32);
    EXPECT_EQ(config.attention_size(), 4 * 32);
    EXPECT_EQ(config.max_position_embeddings, 512);
    EXPECT_EQ(config.rope_theta, 500000.0);
    EXPECT_EQ(config.rms_norm_eps, 1e-5f);
    EXPECT_EQ(config.initializer_range, 0.01f);
    EXPECT_TRUE(config.tie_word_embeddings);
    EXPECT_EQ(config.rope_layout, RopeLayout::interleaved);
    EXPECT_EQ(config.bos_token_id, 3);
    EXPECT_EQ(config.eos_token_id, 7);
}

TEST(ModelConfig, ReadsRopeParametersOfNewerFiles) {
    Json json = small_config();
    json["rope_parameters"] = {{"rope_theta", 1234.0}, {"rope_type", "default"}};
    EXPECT_EQ(parse(json).rope_theta, 1234.0);
}

TEST(ModelConfig, ReadsQwen2AndQwen3WithTheirDefaults) {
    Json json = small_config();
    json.update({{"model_type", "qwen2"},
                 {"use_sliding_window", false},
                 {"sliding_window", 4096},
                 {"max_window_layers", 28},
                 {"use_mrope", false},
                 {"layer_types", {"full_attention", "full_attention"}}});
    const ModelConfig qwen2 = parse(json);
    EXPECT_TRUE(qwen2.has_qkv_bias());
    EXPECT_FALSE(qwen2.has_qk_norm());
    EXPECT_EQ(qwen2.max_position_embeddings, 32768);
    json["model_type"] = "qwen3";
    json["attention_bias"] = false;
    const ModelConfig qwen3 = parse(json);
    EXPECT_TRUE(qwen3.has_qk_norm());
    EXPECT_EQ(qwen3.head_dim, 128);
    for (const ModelConfig& config : {qwen2, qwen3})
        EXPECT_EQ(parse_model_config(to_json(config), "config.json"), config);
}

TEST(ModelConfig, RefusesWindowsAndBiasesThatItDoesNotExecute) {
    Json json = small_config();
    json["model_type"] = "qwen3";
    const auto error_of_qwen3 = [&](const std::string& key, const Json& value) {
        Json changed = json;
        changed[key] = value;
        return error_of(changed.dump());
    };
    EXPECT_NE(error_of_qwen3("use_sliding_window", true).find("use_sliding_window"), std::string::npos);
    EXPECT_NE(error_of_qwen3("attention_bias", true).find("attention_bias"), std::string::npos);
    EXPECT_NE(error_of_qwen3("layer_types", {"full_attention", "sliding_attention"}).find("layer_types"),
              std::string::npos);
    EXPECT_NE(error_of_qwen3("qk_norm", true).find("not known for a Qwen3 model"), std::string::npos);
    EXPECT_NE(error_of_qwen3("architectures", {"LlamaForCausalLM"}).find("qwen3 (Qwen3ForCausalLM)"),
              std::string::npos);
}

TEST(ModelConfig, ItsJsonReadsBackTheSame) {
    Json json = small_config();
    json.update({{"num_key_value_heads", 1},
                 {"head_dim", 48},
                 {"rope_theta", 12345.5},
                 {"rms_norm_eps", 3e-6},
                 {"tie_word_embeddings", true},
                 {"rope_interleaved", true},
                 {"eos_token_id", 0}});
    const ModelConfig config = parse(json);
    EXPECT_EQ(parse_model_config(to_json(config), "config.json"), config);
    EXPECT_NE(to_json(config).find("3e-06"), std::string::npos) << to_json(config);
}

// As many as the published weights have.
TEST(ModelConfig, CountsTheParametersOfQwen25) {
    const fs::path models = fs::path(NIBBLE_SOURCE_DIR) / "configs/models";
    const auto load = [&](const char* name) { return parse_model_config(read_text(models / name), name); };
    EXPECT_EQ(load("qwen2.5-0.5b.json").parameters(), 494'032'768);
    EXPECT_EQ(load("qwen2.5-1.5b.json").parameters(), 1'543'714'304);
}

TEST(ModelConfig, T18_CountsTheParametersOfTheModelsInConfigs) {
    const fs::path models = fs::path(NIBBLE_SOURCE_DIR) / "configs/models";
    const auto load = [&](const char* name) { return parse_model_config(read_text(models / name), name); };
    const ModelConfig one = load("llama-1m.json");
    EXPECT_EQ(one.non_embedding_parameters(), 853'120);  // 4 * (4 * 128² + 3 * 128 * 384) + 9 * 128
    EXPECT_EQ(one.parameters(), 853'120 + 2 * 2048 * 128);
    // arXiv 2505.14669, table 4: layers, width, width of the MLP.
    const std::tuple<int, int, int, int64_t> sizes[] = {
        {6, 640, 1792, 30'482'560},      {7, 768, 2048, 49'556'736},      {8, 1024, 2816, 102'777'856},
        {10, 1280, 3584, 203'188'480},   {13, 1664, 4608, 443'068'288},   {16, 2048, 5632, 822'151'168},
        {20, 2560, 6912, 1'586'076'160}, {28, 3072, 8192, 3'171'068'928}, {32, 4096, 11008, 6'476'271'616}};
    ModelConfig config = load("llama-30m.json");
    EXPECT_EQ(config.non_embedding_parameters(), 30'482'560);
    for (const auto& [layers, width, mlp, published] : sizes) {
        config.num_hidden_layers = layers;
        config.hidden_size = width;
        config.intermediate_size = mlp;
        config.num_attention_heads = config.num_key_value_heads = width / config.head_dim;
        test::expect_published(fmt::format("parameters, d = {}", width), static_cast<double>(published), 0,
                               static_cast<double>(config.non_embedding_parameters()));
    }
}

struct Refusal {
    std::string key;
    Json value;
};

class ModelConfigRefuses : public testing::TestWithParam<Refusal> {};

TEST_P(ModelConfigRefuses, AndNamesFileAndKey) {
    const std::string message = error_with(GetParam().key, GetParam().value);
    EXPECT_NE(message.find("config.json: "), std::string::npos) << message;
    EXPECT_NE(message.find(GetParam().key), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(
    Values, ModelConfigRefuses,
    testing::Values(Refusal{"attention_bias", true}, Refusal{"mlp_bias", true}, Refusal{"hidden_act", "gelu"},
                    Refusal{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}},
                    Refusal{"rope_parameters", {{"rope_type", "yarn"}}}, Refusal{"rope_parameters", 5},
                    Refusal{"quantization_config", {{"quant_method", "fp8"}}},
                    Refusal{"model_type", "gemma3"}, Refusal{"architectures", {"MistralForCausalLM"}},
                    Refusal{"architectures", 3}, Refusal{"hidden_size", nullptr}, Refusal{"hidden_size", 0},
                    Refusal{"hidden_size", -64}, Refusal{"hidden_size", 64.5}, Refusal{"hidden_size", "64"},
                    Refusal{"hidden_size", 18446744073709551615u}, Refusal{"hidden_size", 66},
                    Refusal{"num_hidden_layers", 1 << 20}, Refusal{"vocab_size", {128}},
                    Refusal{"num_key_value_heads", 3}, Refusal{"num_key_value_heads", 8},
                    Refusal{"head_dim", 15}, Refusal{"rms_norm_eps", -1e-5}, Refusal{"rms_norm_eps", "small"},
                    Refusal{"rope_theta", 0}, Refusal{"tie_word_embeddings", 1}, Refusal{"eos_token_id", 128},
                    Refusal{"bos_token_id", -2}, Refusal{"attention_dropout", 0.1},
                    Refusal{"num_local_experts", 8}, Refusal{"sliding_window", 99}));

TEST(ModelConfig, SuggestsTheNearestKey) {
    EXPECT_NE(error_with("rope_thetta", 1e4).find("did you mean rope_theta?"), std::string::npos);
}

TEST(ModelConfig, RefusesWhatIsNotAJsonObject) {
    EXPECT_NE(error_of(""), "");
    EXPECT_NE(error_of("[1, 2]"), "");
    EXPECT_NE(error_of("{\"hidden_size\": "), "");
    EXPECT_NE(error_of("{}"), "");
    EXPECT_NE(error_of(std::string(100'000, '[')), "");
    EXPECT_NE(error_of("\xff\xfe{}"), "");
}

TEST(ModelConfig, EveryTruncationOfAFileIsAnError) {
    const std::string whole = to_json(parse(small_config()));
    const size_t end = whole.rfind('}');
    for (size_t length = 0; length <= end; ++length)
        EXPECT_NE(error_of(whole.substr(0, length)), "") << length;
}

}  // namespace
}  // namespace nibble
