#include "train/model_directory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "io/io.h"
#include "nn/transformer.h"

namespace nibble {
namespace {

ModelConfig small_config() {
    ModelConfig config;
    config.hidden_size = 8;
    config.intermediate_size = 12;
    config.vocab_size = 10;
    config.num_hidden_layers = 2;
    config.num_attention_heads = 4;
    config.num_key_value_heads = 2;
    config.head_dim = 4;
    config.bos_token_id = 1;
    config.eos_token_id = 2;
    return config;
}

// The parameters of a model, filled with values that all differ.
struct Model {
    explicit Model(const ModelConfig& model_config, float first = 0.0f) : config(model_config) {
        add("embedding", {config.vocab_size, config.hidden_size});
        for (int i = 0; i < config.num_hidden_layers; ++i) {
            const std::string block = fmt::format("layers.{}.", i);
            add(block + "attention.norm", {config.hidden_size});
            add(block + "attention.qkv", {config.qkv_size(), config.hidden_size});
            add(block + "attention.out", {config.hidden_size, config.attention_size()});
            add(block + "mlp.norm", {config.hidden_size});
            add(block + "mlp.gate_up", {2 * config.intermediate_size, config.hidden_size});
            add(block + "mlp.down", {config.hidden_size, config.intermediate_size});
        }
        add("norm", {config.hidden_size});
        if (!config.tie_word_embeddings) add("head", {config.vocab_size, config.hidden_size});
        for (Parameter& parameter : parameters) {
            for (float& value : parameter.master.span<float>()) value = first++ * 0.25f;
        }
    }
    void add(const std::string& name, Shape shape) {
        buffers.emplace_back(DType::f32, shape);
        parameters.push_back({name, buffers.back().tensor(), {}, ParameterKind::matrix});
    }
    std::vector<float> values() const {
        std::vector<float> all;
        for (const Parameter& parameter : parameters) {
            const auto span = parameter.master.span<float>();
            all.insert(all.end(), span.begin(), span.end());
        }
        return all;
    }

    ModelConfig config;
    std::vector<Buffer> buffers;
    std::vector<Parameter> parameters;
};

class ModelDirectory : public testing::Test {
  protected:
    void SetUp() override {
        folder_ = fs::temp_directory_path() / fmt::format("nibble-model-{}", ::getpid());
        fs::remove_all(folder_);
        fs::create_directories(folder_);
    }
    void TearDown() override { fs::remove_all(folder_); }

    // The message with which reading `into` fails.
    std::string refusal(Model& into) {
        try {
            read_parameters(folder_, into.config, into.parameters);
        } catch (const Error& error) {
            return error.what();
        }
        return "read";
    }
    // Writes the model's tensors after `change` had them.
    template <typename Change>
    void write_changed(const Model& model, Change change) {
        write_model_directory(folder_, model.config, model.parameters);
        std::vector<NamedTensor> tensors;
        const SafetensorsFile file(folder_ / "model.safetensors");
        for (const NamedTensor& named : file.tensors()) tensors.push_back(named);
        change(tensors);
        write_safetensors(folder_ / "changed", tensors);
        fs::rename(folder_ / "changed", folder_ / "model.safetensors");
    }

    fs::path folder_;
};

TEST_F(ModelDirectory, HasTheNamesAndShapesOfHuggingFaceLlama) {
    const Model model(small_config());
    write_model_directory(folder_, model.config, model.parameters);
    const SafetensorsFile file(folder_ / "model.safetensors");
    std::map<std::string, std::string> shapes;
    for (const auto& [name, tensor] : file.tensors()) {
        EXPECT_EQ(tensor.dtype, DType::f32);
        shapes[name] = tensor.shape.str();
    }
    std::map<std::string, std::string> expected = {{"model.embed_tokens.weight", "[10, 8]"},
                                                   {"model.norm.weight", "[8]"},
                                                   {"lm_head.weight", "[10, 8]"}};
    for (int i = 0; i < 2; ++i) {
        const std::string block = fmt::format("model.layers.{}.", i);
        expected[block + "input_layernorm.weight"] = "[8]";
        expected[block + "post_attention_layernorm.weight"] = "[8]";
        expected[block + "self_attn.q_proj.weight"] = "[16, 8]";
        expected[block + "self_attn.k_proj.weight"] = "[8, 8]";
        expected[block + "self_attn.v_proj.weight"] = "[8, 8]";
        expected[block + "self_attn.o_proj.weight"] = "[8, 16]";
        expected[block + "mlp.gate_proj.weight"] = "[12, 8]";
        expected[block + "mlp.up_proj.weight"] = "[12, 8]";
        expected[block + "mlp.down_proj.weight"] = "[8, 12]";
    }
    EXPECT_EQ(shapes, expected);
    EXPECT_EQ(file.metadata_value("format"), "pt");
}

TEST_F(ModelDirectory, SplitsTheFusedProjectionsByRows) {
    const Model model(small_config());
    write_model_directory(folder_, model.config, model.parameters);
    const SafetensorsFile file(folder_ / "model.safetensors");
    const float* qkv = model.parameters[2].master.as<float>();
    EXPECT_EQ(file.tensor("model.layers.0.self_attn.q_proj.weight").as<float>()[0], qkv[0]);
    EXPECT_EQ(file.tensor("model.layers.0.self_attn.k_proj.weight").as<float>()[0], qkv[16 * 8]);
    EXPECT_EQ(file.tensor("model.layers.0.self_attn.v_proj.weight").as<float>()[0], qkv[24 * 8]);
    const float* gate_up = model.parameters[5].master.as<float>();
    EXPECT_EQ(file.tensor("model.layers.0.mlp.up_proj.weight").as<float>()[0], gate_up[12 * 8]);
}

TEST_F(ModelDirectory, ReadsBackWhatItWrote) {
    for (const bool tied : {false, true}) {
        ModelConfig config = small_config();
        config.tie_word_embeddings = tied;
        const Model model(config);
        write_model_directory(folder_, config, model.parameters);
        EXPECT_EQ(read_model_config(folder_), config);
        Model read(config, 1e4f);
        read_parameters(folder_, config, read.parameters);
        EXPECT_EQ(read.values(), model.values());
    }
}

TEST_F(ModelDirectory, RoundsToBf16WhenAsked) {
    const Model model(small_config(), 1001.0f);
    write_model_directory(folder_, model.config, model.parameters, {.dtype = DType::bf16, .tokenizer = {}});
    EXPECT_EQ(SafetensorsFile(folder_ / "model.safetensors").tensor("model.norm.weight").dtype, DType::bf16);
    EXPECT_EQ(nlohmann::json::parse(read_text(folder_ / "config.json"))["dtype"], "bfloat16");
    Model read(model.config);
    read_parameters(folder_, read.config, read.parameters);
    std::vector<float> expected = model.values();
    for (float& value : expected) value = round_to_bf16(value);
    EXPECT_NE(expected, model.values());
    EXPECT_EQ(read.values(), expected);
}

TEST_F(ModelDirectory, WritesInterleavedRopeAsHalfSplitAndReadsItBack) {
    ModelConfig config = small_config();
    config.rope_layout = RopeLayout::interleaved;
    const Model model(config);
    write_model_directory(folder_, config, model.parameters);
    EXPECT_EQ(read_model_config(folder_).rope_layout, RopeLayout::half_split);
    const SafetensorsFile file(folder_ / "model.safetensors");
    // Rows 0, 1, 2, 3 of a head hold the pairs (0, 1), (2, 3); half-split pairs them as (0, 2), (1, 3).
    const float* q = model.parameters[2].master.as<float>();
    const float* written = file.tensor("model.layers.0.self_attn.q_proj.weight").as<float>();
    for (const auto& [row, source] : {std::pair(0, 0), {1, 2}, {2, 1}, {3, 3}, {5, 6}}) {
        EXPECT_EQ(written[row * 8], q[source * 8]) << row;
    }
    Model read(config, 1e4f);
    read_parameters(folder_, config, read.parameters);
    EXPECT_EQ(read.values(), model.values());
}

TEST_F(ModelDirectory, ReadsHalfPrecisionWeights) {
    ModelConfig config = small_config();
    const Model model(config);
    // Half precision of 1, -2, the smallest subnormal, the largest number.
    std::vector<uint16_t> halves = {0x3c00, 0xc000, 0x0001, 0x7bff, 0x8000, 0x3555, 0, 0};
    write_changed(model, [&](std::vector<NamedTensor>& tensors) {
        for (NamedTensor& named : tensors) {
            if (named.name == "model.norm.weight")
                named.tensor = {halves.data(), DType::f16, Device::cpu, {8}};
        }
    });
    Model read(config);
    read_parameters(folder_, config, read.parameters);
    const float* norm = read.parameters[read.parameters.size() - 2].master.as<float>();
    EXPECT_EQ(norm[0], 1.0f);
    EXPECT_EQ(norm[1], -2.0f);
    EXPECT_EQ(norm[2], 0x1p-24f);
    EXPECT_EQ(norm[3], 65504.0f);
    EXPECT_TRUE(std::signbit(norm[4]));
    EXPECT_FLOAT_EQ(norm[5], 0.33325195f);
}

TEST_F(ModelDirectory, ReadsShards) {
    const Model model(small_config());
    write_model_directory(folder_, model.config, model.parameters);
    nlohmann::json index = {{"metadata", {{"total_size", 1}}}};
    {
        const SafetensorsFile whole(folder_ / "model.safetensors");
        std::vector<NamedTensor> shards[2];
        for (size_t i = 0; i < whole.tensors().size(); ++i) {
            shards[i % 2].push_back(whole.tensors()[i]);
            index["weight_map"][whole.tensors()[i].name] = fmt::format("model-{}.safetensors", i % 2);
        }
        for (int i = 0; i < 2; ++i)
            write_safetensors(folder_ / fmt::format("model-{}.safetensors", i), shards[i]);
    }
    fs::remove(folder_ / "model.safetensors");
    write_text(folder_ / "model.safetensors.index.json", index.dump());
    Model read(model.config, 1e4f);
    read_parameters(folder_, read.config, read.parameters);
    EXPECT_EQ(read.values(), model.values());

    index["weight_map"]["model.norm.weight"] = "../model-0.safetensors";
    write_text(folder_ / "model.safetensors.index.json", index.dump());
    EXPECT_NE(refusal(read).find("not a file of this directory"), std::string::npos) << refusal(read);
    fs::remove(folder_ / "model-1.safetensors");
    index["weight_map"]["model.norm.weight"] = "model-0.safetensors";
    write_text(folder_ / "model.safetensors.index.json", index.dump());
    EXPECT_NE(refusal(read).find("model-1.safetensors"), std::string::npos) << refusal(read);
}

// Both RoPE layouts of one model: biases and norms of heads are reordered as the rows of the projection are.
TEST_F(ModelDirectory, KeepsTheLogitsOfEveryArchitectureInTheOtherRopeLayout) {
    for (const Architecture architecture : {Architecture::llama, Architecture::qwen2, Architecture::qwen3}) {
        ModelConfig config = small_config();
        config.architecture = architecture;
        config.rope_layout = RopeLayout::interleaved;
        const Transformer::Options options{.activations = DType::f32};
        Transformer written(config, find_recipe("bf16"), options);
        written.initialize(1);
        for (Parameter& p : written.parameters()) {
            for (int64_t i = 0; i < p.master.count() && p.master.shape.rank() == 1; ++i)
                p.master.as<float>()[i] += 0.1f * static_cast<float>(i);
        }
        write_model_directory(folder_, config, written.parameters());
        const ModelConfig read_config = read_model_config(folder_);
        EXPECT_EQ(read_config.architecture, architecture);
        EXPECT_EQ(read_config.rope_layout, RopeLayout::half_split);
        Transformer read(read_config, find_recipe("bf16"), options);
        read_parameters(folder_, read_config, read.parameters());
        std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6};
        std::vector<float> logits[2];
        for (const auto& [model, out] : {std::pair(&written, &logits[0]), {&read, &logits[1]}}) {
            Arena arena(1 << 20);
            Context context{arena};
            model->begin_step(context);
            out->resize(6 * 10);
            model->logits(context, view_of(tokens, {1, 6}), view_of(*out, {1, 6, 10}));
        }
        for (size_t i = 0; i < logits[0].size(); ++i) EXPECT_NEAR(logits[1][i], logits[0][i], 1e-5) << i;
    }
}

TEST_F(ModelDirectory, CopiesTheTokenizer) {
    const Model model(small_config());
    const fs::path tokenizer = folder_ / "tokenizer";
    write_text(tokenizer / "tokenizer.json", "{\"model\": 1}");
    write_text(tokenizer / "tokenizer_config.json", "{}");
    write_model_directory(folder_ / "model", model.config, model.parameters,
                          {.dtype = DType::f32, .tokenizer = tokenizer});
    EXPECT_EQ(read_text(folder_ / "model/tokenizer.json"), "{\"model\": 1}");
    EXPECT_EQ(read_text(folder_ / "model/tokenizer_config.json"), "{}");
    const auto generation = nlohmann::json::parse(read_text(folder_ / "model/generation_config.json"));
    EXPECT_EQ(generation["bos_token_id"], 1);
    EXPECT_EQ(generation["eos_token_id"], 2);
}

TEST_F(ModelDirectory, NamesAMissingTensor) {
    const Model model(small_config());
    write_changed(model, [](std::vector<NamedTensor>& tensors) {
        std::erase_if(tensors, [](const auto& named) {
            return named.name == "model.layers.1.self_attn.k_proj.weight";
        });
    });
    Model read(model.config);
    const std::string message = refusal(read);
    EXPECT_NE(message.find("model.safetensors: there is no tensor 'model.layers.1.self_attn.k_proj.weight'"),
              std::string::npos)
        << message;
}

TEST_F(ModelDirectory, NamesATensorThatDoesNotBelong) {
    const Model model(small_config());
    std::vector<float> extra(8);
    write_changed(model, [&](std::vector<NamedTensor>& tensors) {
        tensors.push_back({"model.layers.0.self_attn.q_norm.weight", view_of(extra, {8})});
    });
    Model read(model.config);
    EXPECT_NE(refusal(read).find("'model.layers.0.self_attn.q_norm.weight' does not belong"),
              std::string::npos);
}

TEST_F(ModelDirectory, PassesOverAHeadBesideTiedEmbeddings) {
    ModelConfig config = small_config();
    config.tie_word_embeddings = true;
    const Model model(config);
    std::vector<float> head(80), frequencies(2);
    write_changed(model, [&](std::vector<NamedTensor>& tensors) {
        tensors.push_back({"lm_head.weight", view_of(head, {10, 8})});
        tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", view_of(frequencies, {2})});
    });
    Model read(config);
    EXPECT_EQ(refusal(read), "read");
}

TEST_F(ModelDirectory, NamesATensorOfAnotherShape) {
    const Model model(small_config());
    write_model_directory(folder_, model.config, model.parameters);
    ModelConfig config = model.config;
    config.vocab_size = 11;
    Model read(config);
    EXPECT_NE(refusal(read).find("'model.embed_tokens.weight' is [10, 8], but config.json asks for [11, 8]"),
              std::string::npos)
        << refusal(read);
}

TEST_F(ModelDirectory, NamesAnElementThatIsNotFinite) {
    Model model(small_config());
    model.parameters[3].master.as<float>()[5] = NAN;
    write_model_directory(folder_, model.config, model.parameters);
    Model read(model.config);
    EXPECT_NE(refusal(read).find("'model.layers.0.self_attn.o_proj.weight': element 5 is not finite"),
              std::string::npos)
        << refusal(read);
}

TEST_F(ModelDirectory, SaysWhenThereIsNoModel) {
    Model read(small_config());
    EXPECT_NE(refusal(read).find("config.json"), std::string::npos);
    write_text(folder_ / "config.json", to_json(read.config));
    EXPECT_NE(refusal(read).find("neither model.safetensors nor"), std::string::npos);
    write_text(folder_ / "model.safetensors.index.json", "[1");
    EXPECT_NE(refusal(read).find("weight_map"), std::string::npos);
}

}  // namespace
}  // namespace nibble
