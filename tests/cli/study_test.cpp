#include "cli/support.h"

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

TEST(StudyCommand, RefusesWhatItDoesNotKnow) {
    const Workspace work;
    expect_refusal(work.nibble({"study", "quantizers", "nvfp4 scale=amx"}), 2, {"amx", "amax"});
    expect_refusal(work.nibble({"study", "quantizers", "bf16"}), 2, {"bf16"});
    expect_refusal(work.nibble({"study", "quantizers", "--data", "cauchy"}), 2, {"cauchy", "normal"});
    expect_refusal(work.nibble({"study", "linear", "quartet3"}), 2, {"quartet3", "quartet2"});
    expect_refusal(work.nibble({"study", "unbiased", "--data", "dense"}), 2, {"dense", "few-tokens"});
    expect_refusal(work.nibble({"study", "quantizers", "--tensors", "missing.safetensors"}), 1,
                   {"missing.safetensors"});
}

}  // namespace
}  // namespace nibble
