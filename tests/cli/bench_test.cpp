// nibble bench prints what it measures, and writes the same as JSON. No test looks at how fast anything is.
#include <nlohmann/json.hpp>

#include "cli/support.h"
#include "core/cuda.h"

namespace nibble {
namespace {

nlohmann::json bench(std::vector<std::string> arguments) {
    const Workspace work;
    arguments.insert(arguments.begin(), "bench");
    arguments.insert(arguments.end(), {"--json", "figures.json"});
    const RunResult result = work.nibble(arguments, {"OMP_WAIT_POLICY=passive"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return nlohmann::json::parse(read_text(work / "figures.json"));
}

TEST(Bench, OfQuantisersHasBothOrientations) {
    const auto figures = bench({"quant", "nvfp4 1x16", "--tokens", "64", "--in", "128"});
    EXPECT_EQ(figures.at("command"), "quant");
    ASSERT_EQ(figures.at("results").size(), 1u);
    EXPECT_EQ(figures.at("results")[0].at("spec"), "nvfp4 1x16");
    EXPECT_GT(figures.at("results")[0].at("rows").at("seconds"), 0);
    EXPECT_GT(figures.at("results")[0].at("columns").at("seconds"), 0);
}

TEST(Bench, OfALayerComparesRecipesWithBf16) {
    const auto figures = bench({"layer", "quartet2", "--tokens", "32", "--in", "64", "--out", "48"});
    ASSERT_EQ(figures.at("results").size(), 1u);
    EXPECT_EQ(figures.at("results")[0].at("recipe"), "quartet2");
    EXPECT_GT(figures.at("results")[0].at("of_bf16"), 0);
}

TEST(Bench, OfKernelsHasTheLeastTimeOfEach) {
    const auto figures = bench({"kernels", "--batch", "2", "--sequence", "64", "--model",
                                NIBBLE_SOURCE_DIR "/configs/models/llama-1m.json"});
    ASSERT_GT(figures.at("results").size(), 30u);
    for (const auto& kernel : figures.at("results")) {
        EXPECT_GT(kernel.at("bytes"), 0) << kernel;
        EXPECT_GT(kernel.at("least_seconds"), 0) << kernel;
        EXPECT_GT(kernel.at("seconds"), 0) << kernel;
    }
    // 2 x 64 tokens, 3 values of 2 bytes for each of 384 features.
    const auto swiglu = std::ranges::find(figures.at("results"), "swiglu and its amax",
                                          [](const auto& kernel) { return kernel.at("kernel"); });
    ASSERT_NE(swiglu, figures.at("results").end());
    EXPECT_EQ(swiglu->at("bytes"), 2.0 * 64 * 3 * 2 * 384);
}

TEST(Bench, TakesTheNamesOfDeviceAllow) {
    const auto figures = bench({"layer", "--allow", "fp8", "--allow", "fp8-fast-accumulation", "fp8",
                                "--tokens", "32", "--in", "64", "--out", "48"});
    EXPECT_EQ(figures.at("results").size(), 1u);
    const RunResult result =
        Workspace().nibble({"bench", "layer", "fp8", "--allow", "fp4", "--tokens", "32"});
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_NE(result.err.find("no way of multiplying named 'fp4'"), std::string::npos) << result.err;
}

TEST(Bench, OfTrainingTakesWholeSteps) {
    const auto figures =
        bench({"train", "bf16", "quartet2", "--model", NIBBLE_SOURCE_DIR "/configs/models/llama-1m.json",
               "--batch", "1", "--sequence", "16", "--accumulate", "2", "--steps", "1"});
    ASSERT_EQ(figures.at("results").size(), 2u);
    // The logarithm of the vocabulary is 7.62; an update on the same few tokens have taught it some.
    EXPECT_LT(figures.at("results")[0].at("loss"), 7.6);
    EXPECT_GT(figures.at("results")[0].at("loss"), 5.0);
    EXPECT_GT(figures.at("results")[1].at("arena_bytes"), 0);
}

TEST(Bench, OfTrainingSaysWhatMakingAgainSaves) {
    const auto bytes = [](const std::string& level) {
        return bench({"train", "quartet2", "--batch", "1", "--sequence", "64", "--steps", "1", "--recompute",
                      level, "--model", NIBBLE_SOURCE_DIR "/configs/models/llama-1m.json"})
            .at("results")[0]
            .at("arena_bytes")
            .get<int64_t>();
    };
    EXPECT_LT(bytes("mlp"), bytes("none"));
    const RunResult wrong = Workspace().nibble({"bench", "train", "--recompute", "blok", "--model",
                                                NIBBLE_SOURCE_DIR "/configs/models/llama-1m.json"});
    EXPECT_EQ(wrong.exit_code, 2);
    EXPECT_NE(wrong.err.find("did you mean \"block\"?"), std::string::npos) << wrong.err;
}

// 7 billion parameters: planned anywhere, and nothing is allocated.
TEST(Bench, PlansTheMemoryOfATrainingThatThisMachineCouldNotRun) {
    const std::vector<std::string> training = {
        "train",  "quartet2",    "--model", NIBBLE_SOURCE_DIR "/configs/models/llama-7b.json",
        "--plan", "--sequence",  "2048",    "--batch",
        "1",      "--moments",   "bf16",    "--gradients",
        "bf16",   "--recompute", "block"};
    const auto memory = bench(training).at("results")[0].at("memory");
    const size_t matrices = size_t{32} * (4 * 4096 * 4096 + 3 * 4096 * 11008), rest = 2 * 32000 * 4096;
    EXPECT_NEAR(memory.at("masters").get<double>(), 4.0 * static_cast<double>(matrices + rest), 2e6);
    EXPECT_NEAR(memory.at("gradients").get<double>(), static_cast<double>(2 * matrices + 4 * rest), 2e6);
    EXPECT_NEAR(memory.at("moments").get<double>(), 4.0 * static_cast<double>(matrices + rest), 2e6);
    EXPECT_LT(memory.at("total").get<double>(), 80.0 * (1 << 30));

    std::vector<std::string> large = training;
    large.resize(large.size() - 2);  // without recomputation
    large.insert(large.begin(), "bench");
    large.insert(large.end(), {"--memory", "80GB"});
    const RunResult refused = Workspace().nibble(large);
    EXPECT_EQ(refused.exit_code, 1);
    EXPECT_NE(refused.err.find("take --recompute "), std::string::npos) << refused.err;
}

TEST(Bench, OnAGpuThatIsNotThereIsOneLine) {
    if (!cuda_devices().empty()) GTEST_SKIP() << "there is a GPU";
    const RunResult result = Workspace().nibble({"bench", "copy", "--device", "cuda"});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_NE(result.err.find("choose the device cpu"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace nibble
