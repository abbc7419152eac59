#include "cli/chain_model.h"

namespace nibble {
namespace {

TEST(GenerateCommand, ContinuesThePromptUntilTheTextEnds) {
    const Workspace work;
    make_chain_model(work, "model", "abc defghijk");
    const RunResult result =
        work.nibble({"generate", "--model", "model", "--prompt", "ab", "--temperature", "0"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out, "abc defghijk\n");
    EXPECT_EQ(work.nibble({"generate", "--model", "model", "--prompt", "", "--temperature", "0"}).out,
              "abc defghijk\n");
}

TEST(GenerateCommand, StopsAfterTheGivenNumberOfTokens) {
    const Workspace work;
    make_chain_model(work, "model", "abc defghijk");
    const auto run = [&](const std::string& most) {
        return work
            .nibble({"generate", "--model", "model", "--prompt", "ab", "--max-tokens", most, "--top-k", "1"})
            .out;
    };
    EXPECT_EQ(run("3"), "abc d\n");
    EXPECT_EQ(run("0"), "ab\n");
}

TEST(GenerateCommand, GoesOnBeyondThePositionsOfTheModel) {
    const Workspace work;
    make_chain_model(work, "model", "aba", /*ends=*/false);
    const RunResult result = work.nibble(
        {"generate", "--model", "model", "--prompt", "a", "--max-tokens", "40", "--temperature", "0"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    std::string expected = "a";
    for (int i = 0; i < 20; ++i) expected += "ba";
    EXPECT_EQ(result.out, expected + "\n");
}

TEST(GenerateCommand, RepeatsItselfForOneSeedAndDiffersForAnother) {
    const Workspace work;
    make_chain_model(work, "model", "");
    const auto run = [&](const std::string& seed, const std::string& threads) {
        return work
            .nibble({"generate", "--model", "model", "--prompt", "x", "--seed", seed, "--max-tokens", "20",
                     "--threads", threads})
            .out;
    };
    EXPECT_EQ(run("1", "1"), run("1", "2"));
    EXPECT_NE(run("1", "1"), run("2", "1"));
}

TEST(GenerateCommand, RunsTheForwardOfARecipe) {
    const Workspace work;
    make_chain_model(work, "model", "abc defghijk");
    const RunResult result = work.nibble(
        {"generate", "--model", "model", "--prompt", "ab", "--temperature", "0", "--recipe", "quartet2"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out, "abc defghijk\n");
}

TEST(GenerateCommand, RefusesWhatItCannotUseInOneLine) {
    const Workspace work;
    make_chain_model(work, "model", "");
    expect_refusal(work.nibble({"generate", "--model", "none", "--prompt", "x"}), 1, {"none/config.json"});
    expect_refusal(work.nibble({"generate", "--model", "model"}), 2, {"--prompt"});
    expect_refusal(work.nibble({"generate", "--model", "model", "--prompt", "x", "--recipe", "quartet3"}), 2,
                   {"quartet3", "quartet2"});
    expect_refusal(work.nibble({"generate", "--model", "model", "--prompt", "x", "--temperature", "-1"}), 2,
                   {"--temperature"});
    expect_refusal(work.nibble({"generate", "--model", "model", "--prompt", "x", "--top-p", "1.5"}), 2,
                   {"--top-p"});
    fs::remove(work / "model/tokenizer.json");
    expect_refusal(work.nibble({"generate", "--model", "model", "--prompt", "x"}), 1, {"tokenizer.json"});
}

}  // namespace
}  // namespace nibble
