#include <nlohmann/json.hpp>

#include "cli/tiny_run.h"

namespace nibble {
namespace {

TEST(StudyCommand, TabulatesQuantisersOnRandomData) {
    const Workspace work;
    const RunResult result =
        work.nibble({"study", "quantizers", "nvfp4 1x16", "mxfp4 scale=rceil", "--data", "normal,laplace",
                     "--rows", "64", "--cols", "256", "--json", "q.json"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("nvfp4 1x16\n"), std::string::npos);
    EXPECT_NE(result.out.find("laplace"), std::string::npos);
    EXPECT_NE(read_text(work / "q.json").find("\"relative_mse\""), std::string::npos);
}

TEST(StudyCommand, TabulatesTheErrorsOfALayer) {
    const RunResult result =
        Workspace().nibble({"study", "linear", "--data", "normal", "nvidia", "quartet2", "--tokens", "64",
                            "--in", "64", "--out", "32", "--draws", "2"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("quartet2"), std::string::npos);
    EXPECT_NE(result.out.find("slope dW"), std::string::npos);
}

TEST(StudyCommand, SaysWhichGradientsAreBiased) {
    const RunResult result =
        Workspace().nibble({"study", "unbiased", "quartet2", "quartet2-double", "--data", "few-tokens",
                            "--tokens", "128", "--in", "32", "--out", "32", "--draws", "256"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const size_t once = result.out.find("quartet2 "), twice = result.out.find("quartet2-double");
    ASSERT_NE(once, std::string::npos) << result.out;
    ASSERT_NE(twice, std::string::npos) << result.out;
    EXPECT_NE(result.out.substr(once, twice - once).find("biased"), std::string::npos) << result.out;
    EXPECT_EQ(result.out.substr(twice).find("biased"), std::string::npos) << result.out;
}

void expect_picture(const fs::path& file, const std::vector<std::string>& parts) {
    const std::string svg = read_text(file);
    EXPECT_TRUE(svg.starts_with("<svg"));
    for (const std::string& part : parts)
        EXPECT_NE(svg.find(part), std::string::npos) << file << " without " << part;
}

TEST(StudyCommand, DrawsQuantisersLayersAndBias) {
    const Workspace work;
    const auto run = [&](std::vector<std::string> arguments) {
        arguments.insert(arguments.begin(), "study");
        const RunResult result = work.nibble(arguments);
        EXPECT_EQ(result.exit_code, 0) << result.err;
    };
    run({"quantizers", "nvfp4 1x16", "mxfp4 scale=rceil", "--rows", "16", "--cols", "64", "--plot", "q.svg"});
    expect_picture(work / "q.svg", {"mean squared error", "nvfp4 1x16", "laplace", "student-t5"});
    run({"linear", "nvidia", "quartet2", "--tokens", "32", "--in", "32", "--out", "32", "--draws", "2",
         "--plot", "l.svg"});
    expect_picture(work / "l.svg", {"relative error", "normal", "laplace", "nvidia", "mean dW"});
    run({"unbiased", "tetrajet", "quartet2", "--data", "normal,laplace", "--tokens", "32", "--in", "16",
         "--out", "16", "--draws", "4", "--plot", "u.svg"});
    expect_picture(work / "u.svg", {"averaged draws B", "1/B", "normal", "laplace", "tetrajet"});
}

TEST(StudyCommand, MeasuresNothingWhenItCannotDraw) {
    const Workspace work;
    for (const char* study : {"quantizers", "linear", "unbiased"}) {
        expect_refusal(
            work.nibble({"study", study, "--json", "a.json", "--plot", "a.svg"}, {"PATH=/nonexistent"}), 1,
            {"gnuplot", "not installed"});
        EXPECT_FALSE(fs::exists(work / "a.json"));
        EXPECT_FALSE(fs::exists(work / "a.svg"));
    }
}

TEST(StudyCommand, AlignsTheGradientsOfATrainedModel) {
    const TinyRun run;
    TinyRun::expect_success(run.train({"--set", "train.steps=10"}));
    const auto align = [&](std::vector<std::string> more) {
        more.insert(more.begin(), {"study", "align", "quartet2", "nvidia", "--draws", "2", "--batch-size",
                                   "2", "--json", "a.json", "--plot", "a.svg", "--model"});
        const RunResult result = run.work().nibble(more);
        EXPECT_EQ(result.exit_code, 0) << result.err;
        return result.out;
    };
    const std::string of_data = align({"out/model", "--data", "data/validation"});
    EXPECT_NE(of_data.find("2 sequences of 64 from data/validation"), std::string::npos) << of_data;
    const auto json = nlohmann::json::parse(read_text(run / "a.json"));
    ASSERT_EQ(json["recipes"].size(), 2u);
    const auto& gradients = json["recipes"][0]["gradients"];
    ASSERT_EQ(gradients.size(), 2u * 5);
    EXPECT_EQ(gradients[9]["gradient"], "mlp.down");
    EXPECT_GT(gradients[9]["cosine"], 0.9);
    EXPECT_LT(gradients[9]["cosine"], 0.9999);
    expect_picture(run / "a.svg", {"residual stream", "dW of mlp.down", "cosine with bf16", "nvidia"});

    // A checkpoint holds the same weights.
    const std::string of_checkpoint = align({"out/checkpoints/step-10", "--data", "data/validation"});
    EXPECT_EQ(of_data.substr(of_data.find('\n')), of_checkpoint.substr(of_checkpoint.find('\n')));

    const std::string of_random = align({"out/model", "--bf16-forward"});
    EXPECT_NE(of_random.find("random tokens"), std::string::npos);
    EXPECT_NE(of_random.find("quartet2+fprop=bf16"), std::string::npos);

    const auto refused = [&](std::vector<std::string> more, int code, const std::vector<std::string>& parts) {
        more.insert(more.begin(), {"study", "align", "quartet2", "--model"});
        expect_refusal(run.work().nibble(more), code, parts);
    };
    refused({"missing"}, 1, {"missing"});
    refused({"out/model", "--data", "missing"}, 1, {"missing"});
    refused({"out/model", "--sequence-length", "65"}, 2, {"65", "64 positions"});
    refused({"out/model", "--data", "data/validation", "--draws", "0"}, 2, {"--draws"});
    expect_refusal(
        run.work().nibble({"study", "align", "quartet2", "--model", "out/model", "--plot", "b.svg"},
                          {"PATH=/nonexistent"}),
        1, {"gnuplot", "not installed"});
    expect_refusal(run.work().nibble({"study", "align"}), 2, {"--model"});
}

TEST(StudyCommand, RefusesWhatItDoesNotKnow) {
    const Workspace work;
    expect_refusal(work.nibble({"study", "quantizers", "nvfp4 scale=amx"}), 2, {"amx", "amax"});
    expect_refusal(work.nibble({"study", "quantizers", "bf16"}), 2, {"bf16"});
    expect_refusal(work.nibble({"study", "quantizers", "--data", "cauchy"}), 2, {"cauchy", "normal"});
    expect_refusal(work.nibble({"study", "linear", "quartet3"}), 2, {"quartet3", "quartet2"});
    expect_refusal(work.nibble({"study", "unbiased", "--data", "dense"}), 2, {"dense", "few-tokens"});
    expect_refusal(work.nibble({"study", "unbiased", "--active", "128"}), 2, {"--active"});
    expect_refusal(work.nibble({"study", "quantizers", "--tensors", "missing.safetensors"}), 1,
                   {"missing.safetensors"});
}

}  // namespace
}  // namespace nibble
