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

TEST(Bench, OnAGpuThatIsNotThereIsOneLine) {
    if (!cuda_devices().empty()) GTEST_SKIP() << "there is a GPU";
    const RunResult result = Workspace().nibble({"bench", "copy", "--device", "cuda"});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_NE(result.err.find("choose the device cpu"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace nibble
