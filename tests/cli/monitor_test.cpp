// The monitor of a run: what it writes, that nobody but the log notices it, and that it finds a sick layer.
#include <cmath>

#include "cli/tiny_run.h"
#include "recipe/recipe.h"
#include "train/model_directory.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

class MonitoredRun : public testing::Test {
  protected:
    void train(const std::string& out, std::vector<std::string> more) {
        more.insert(more.end(), {"--set", "output.dir=" + out});
        const RunResult result = run_.train(more);
        TinyRun::expect_success(result);
        printed_ = result.err;
    }
    // Lines of one type, without what depends on the clock.
    std::vector<Json> lines(const std::string& out, const std::string& type) const {
        std::vector<Json> found;
        std::istringstream text(read_text(run_ / out / "log.jsonl"));
        for (std::string line; std::getline(text, line);) {
            Json record = Json::parse(line);
            record.erase("time");
            if (record.at("type") == type) found.push_back(record);
        }
        return found;
    }

    TinyRun run_;
    std::string printed_;
};

TEST_F(MonitoredRun, TrainsTheSameBitsAsOneThatNobodyWatches) {
    for (const char* recipe : {"recipe.name=quartet2", "recipe.name=fp4-all-the-way"}) {
        train("off", {"--set", recipe, "--set", "monitor.every=0", "--overwrite"});
        EXPECT_TRUE(lines("off", "health").empty());
        for (const char* noise : {"monitor.noise=predicted", "monitor.noise=two-pass"}) {
            train("on", {"--set", recipe, "--set", "monitor.every=3", "--set", noise, "--overwrite"});
            EXPECT_EQ(lines("on", "health").size(), 13u);
            expect_same_training(run_, "off", "on");
        }
    }
}

TEST_F(MonitoredRun, CanBeOfEveryRecipe) {
    for (const Recipe& recipe : builtin_recipes()) {
        train(recipe.name,
              {"--set", "recipe.name=" + recipe.name, "--set", "monitor.every=1", "--until", "2"});
        EXPECT_EQ(lines(recipe.name, "health").size(), 2u) << recipe.name;
    }
}

TEST_F(MonitoredRun, IsResumedToTheBitWithItsSamples) {
    for (const char* noise : {"monitor.noise=predicted", "monitor.noise=two-pass"}) {
        train("whole", {"--set", "monitor.every=4", "--set", noise, "--overwrite"});
        train("parts", {"--set", "monitor.every=4", "--set", noise, "--overwrite", "--until", "18"});
        train("parts", {"--set", "monitor.every=4", "--set", noise, "--resume"});
        expect_same_training(run_, "whole", "parts");
        EXPECT_EQ(lines("whole", "health"), lines("parts", "health"));
        EXPECT_EQ(lines("whole", "end").back().at("health"), lines("parts", "end").back().at("health"));
    }
}

TEST_F(MonitoredRun, WritesAHealthLineForEachSample) {
    train("out", {"--set", "monitor.every=10"});
    const std::vector<Json> health = lines("out", "health");
    ASSERT_EQ(health.size(), 4u);
    EXPECT_EQ(health[1].at("step"), 20);
    EXPECT_EQ(health[1].at("tokens"), 20 * 6 * 24);
    EXPECT_EQ(health[1].at("noise"), "predicted");
    EXPECT_GT(health[1].at("gradient_to_noise").at("median"), health[1].at("gradient_to_noise").at("least"));
    ASSERT_EQ(health[1].at("layers").size(), 8u);
    const Json& layer = health[1].at("layers").at(6);
    EXPECT_EQ(layer.at("layer"), "layers.1.mlp.gate_up");
    EXPECT_NEAR(layer.at("gradient_to_noise").get<double>(),
                layer.at("gradient").get<double>() / layer.at("noise").get<double>(), 1e-3);
    EXPECT_EQ(layer.at("operands").size(), 6u);
    for (const auto& [name, operand] : layer.at("operands").items()) {
        EXPECT_GT(operand.at("relative_mse"), 0.004) << name;
        EXPECT_LT(operand.at("relative_mse"), 0.04) << name;
        EXPECT_LT(operand.at("clipped"), 0.15) << name;
        EXPECT_LT(operand.at("flushed"), 0.3) << name;
        EXPECT_GT(operand.at("amax"), 0) << name;
    }
    EXPECT_GT(layer.at("operands").at("dgrad.dy").at("flushed"), 0.01);
    EXPECT_GT(layer.at("operands").at("fprop.w").at("to_four"), 0.2);
    EXPECT_LT(layer.at("operands").at("fprop.w").at("to_four"), 0.7);
    EXPECT_FALSE(layer.at("operands").at("dgrad.dy").contains("to_four"));  // its rule makes no choice
}

TEST_F(MonitoredRun, LeavesOutBlocksThatStayInBf16) {
    train("out", {"--set", "recipe.keep_last=1", "--set", "monitor.every=20"});
    ASSERT_EQ(lines("out", "health").at(0).at("layers").size(), 4u);
    EXPECT_EQ(lines("out", "health").at(0).at("layers").at(3).at("layer"), "layers.0.mlp.down");
    train("bf16", {"--set", "recipe.name=bf16", "--set", "monitor.every=20"});
    EXPECT_TRUE(lines("bf16", "health").at(0).at("gradient_to_noise").at("model").is_null());
}

// Where only the weight gradients are quantised, and with coins, nothing else differs between the two passes.
// A prediction from few tokens scatters: 5 % for the model over six samples, 20 % for a layer.
TEST_F(MonitoredRun, PredictsTheNoiseThatTwoPassesShow) {
    const std::vector<std::string> common = {
        "--set", "recipe.name=fp4-all-the-way", "--set", "recipe.dgrad=bf16", "--set", "monitor.every=6"};
    const auto noise = [&](const char* way) {
        std::vector<std::string> more = common;
        more.insert(more.end(), {"--set", std::string("monitor.noise=") + way});
        train(way, more);
        std::vector<double> of_layers(8, 0.0);
        for (const Json& sample : lines(way, "health"))
            for (size_t i = 0; i < 8; ++i)
                of_layers[i] += std::pow(sample.at("layers").at(i).at("noise").get<double>(), 2);
        return of_layers;
    };
    const std::vector<double> predicted = noise("predicted"), measured = noise("two-pass");
    double all_predicted = 0, all_measured = 0;
    for (size_t i = 0; i < 8; ++i) {
        EXPECT_NEAR(predicted[i] / measured[i], 1, 0.2) << i;
        all_predicted += predicted[i], all_measured += measured[i];
    }
    EXPECT_NEAR(all_predicted / all_measured, 1, 0.05);
}

// One channel before the last MLP is a million times larger than the others: what shares a tensor with it has
// no bits left.
TEST_F(MonitoredRun, NamesALayerThatIsMadeSick) {
    const ModelConfig shape = parse_model_config(read_text(run_ / "model.json"), "model.json");
    Transformer model(shape, find_recipe("bf16"), {});
    model.initialize(1);
    model.parameter("layers.1.mlp.norm").master.as<float>()[3] = 1e6f;
    write_model_directory(run_ / "sick", shape, model.parameters(),
                          {.dtype = DType::f32, .tokenizer = run_ / "tokenizer"});
    write_text(run_ / "run.toml", [&] {
        std::string text = read_text(run_ / "run.toml");
        return text.replace(text.find("config = \"model.json\""), 21, "init = \"sick\"");
    }());
    train("out", {"--set", "train.steps=4", "--set", "monitor.every=2"});
    const Json summary = lines("out", "end").at(0).at("health");
    EXPECT_EQ(summary.at("samples"), 2);
    EXPECT_EQ(summary.at("most").at("flushed").at("layer"), "layers.1.mlp.gate_up");
    EXPECT_GT(summary.at("most").at("flushed").at("value"), 0.9);
    EXPECT_EQ(summary.at("lowest").size(), 5u);
    EXPECT_NE(printed_.find("most flushed to zero: layers.1.mlp.gate_up"), std::string::npos) << printed_;
    EXPECT_NE(read_text(run_ / "out/report.html").find("most flushed to zero: layers.1.mlp.gate_up"),
              std::string::npos);
}

}  // namespace
}  // namespace nibble
