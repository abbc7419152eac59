// A run that was stopped goes on as if it had not been, to the bit; and never on damaged or different ground.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <thread>

#include "cli/tiny_run.h"

namespace nibble {
namespace {

struct Case {
    const char *name, *recipe, *threads;  // recipe: an override
};

// Scales by the step before: a state beside weights and moments.
constexpr std::string_view kDelayed = R"(
    name = "delayed"
    title = "scales of the step before"
    source = "a test"
    [fprop]
    x  = { from = "original", spec = "nvfp4 1x16 tensor=delayed" }
    w  = { from = "original", spec = "nvfp4 16x16 tensor=delayed" }
    [dgrad]
    dy = { from = "original", spec = "nvfp4 1x16 round=stochastic tensor=delayed" }
    w  = { from = "same-bits", spec = "nvfp4 16x16 tensor=delayed" }
    [wgrad]
    dy = { from = "original", spec = "nvfp4 1x16 round=stochastic tensor=delayed" }
    x  = { from = "original", spec = "nvfp4 1x16 tensor=delayed" }
)";

class Resume : public testing::TestWithParam<Case> {};

TEST_P(Resume, IsBitExact) {
    const TinyRun run;
    write_text(run / "delayed.toml", kDelayed);
    const auto train = [&](const char* out, std::vector<std::string> more) {
        for (const std::string& word :
             {std::string("--set"), std::string(GetParam().recipe), std::string("--set"),
              fmt::format("output.dir={}", out), std::string("--threads"), std::string(GetParam().threads)})
            more.push_back(word);
        TinyRun::expect_success(run.train(more));
    };
    train("whole", {});
    train("parts", {"--until", "20"});
    train("parts", {"--resume"});
    expect_same_training(run, "whole", "parts");
}

INSTANTIATE_TEST_SUITE_P(
    Recipes, Resume,
    testing::Values(Case{"bf16_one_thread", "recipe.name=bf16", "1"},
                    Case{"bf16_two_threads", "recipe.name=bf16", "2"},
                    Case{"quartet2_one_thread", "recipe.name=quartet2", "1"},
                    Case{"quartet2_two_threads", "recipe.name=quartet2", "2"},
                    Case{"stochastic_one_thread", "recipe.name=fp4-all-the-way", "1"},
                    Case{"stochastic_two_threads", "recipe.name=fp4-all-the-way", "2"},
                    Case{"delayed_two_threads", "recipe.file=delayed.toml", "2"},
                    Case{"moments_in_bf16", "optimizer.moments=bf16", "2"},
                    // Acts from the first step on.
                    Case{"cage", "recipe.modifiers=cage silence=0", "2"},
                    Case{"qema", "recipe.modifiers=qema decay=0.9 after=5", "2"},
                    // A window from step 15 to 25, another from 35 on; stopped in the middle.
                    Case{"oscireset", "recipe.modifiers=oscireset start=0.375 period=20 window=10", "2"},
                    Case{"smooth_swiglu", "recipe.modifiers=smooth-swiglu", "2"}),
    [](const auto& of) { return std::string(of.param.name); });

TEST(Interrupt, StopsWithACheckpointFromWhichTheRunGoesOnToTheBit) {
    const TinyRun run;
    const std::vector<std::string> long_run = {"--set", "train.steps=150",   "--set", "checkpoint.every=0",
                                               "--set", "train.eval_every=0"};
    const auto with = [&](std::vector<std::string> more) {
        more.insert(more.end(), long_run.begin(), long_run.end());
        return more;
    };
    TinyRun::expect_success(run.train(with({"--set", "output.dir=whole"})));

    RunningProgram program(run.work().folder(), with({"train", "run.toml", "--threads", "1"}));
    const fs::path log = run / "out/log.jsonl";
    const auto has_step = [&] {
        return fs::exists(log) && read_text(log).find("\"step\":5,") != std::string::npos;
    };
    for (int i = 0; i < 3000 && !has_step(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    program.send(SIGINT);
    const RunResult result = program.wait();
    EXPECT_EQ(result.exit_code, 1) << result.err;
    EXPECT_NE(result.err.find("nibble: interrupted after step "), std::string::npos) << result.err;
    EXPECT_EQ(run.log("out").end.at("reason"), "interrupted");
    EXPECT_LT(run.log("out").steps.size(), 150u);

    TinyRun::expect_success(run.train(with({"--resume"})));
    expect_same_training(run, "whole", "out");
}

// Runs on top of twenty steps with checkpoints at 10 and 20.
class AfterTwentySteps : public testing::Test {
  protected:
    AfterTwentySteps() { TinyRun::expect_success(run_.train({"--until", "20"})); }

    void flip_byte(const std::string& file, int64_t from_end) const {
        std::string bytes = read_text(run_ / file);
        bytes[bytes.size() - static_cast<size_t>(from_end)] ^= 1;
        write_text(run_ / file, bytes);
    }
    TinyRun run_;
};

TEST_F(AfterTwentySteps, ADamagedCheckpointIsNamedAndTheOneBeforeItTaken) {
    flip_byte("out/checkpoints/step-20/optimizer.safetensors", 100);
    const RunResult result = run_.train({"--resume"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.err.find("checkpoint step-20 is damaged"), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("step-10 is taken instead"), std::string::npos) << result.err;
    EXPECT_EQ(run_.log("out").header.at("resumed_from"), 10);
    EXPECT_EQ(run_.log("out").steps.size(), 40u);
}

TEST_F(AfterTwentySteps, ATruncatedCheckpointCounts) {
    fs::resize_file(run_ / "out/checkpoints/step-20/model.safetensors", 1000);
    const RunResult result = run_.train({"--resume", "--until", "21"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.err.find("has 1000 bytes instead of"), std::string::npos) << result.err;
    EXPECT_EQ(run_.log("out").header.at("resumed_from"), 10);
}

TEST_F(AfterTwentySteps, AnEditedStateIsNoticed) {
    std::string state = read_text(run_ / "out/checkpoints/step-20/state.json");
    const size_t at = state.find("\"step\":20");
    ASSERT_NE(at, std::string::npos);
    write_text(run_ / "out/checkpoints/step-20/state.json", state.replace(at, 9, "\"step\":19"));
    const RunResult result = run_.train({"--resume", "--until", "21"});
    EXPECT_NE(result.err.find("step-10 is taken instead"), std::string::npos) << result.err;
}

TEST_F(AfterTwentySteps, WithoutAWholeCheckpointNothingIsResumed) {
    flip_byte("out/checkpoints/step-20/model.safetensors", 1);
    flip_byte("out/checkpoints/step-10/model.safetensors", 1);
    expect_refusal(run_.train({"--resume"}), 1,
                   {"step-20 is damaged", "step-10 is damaged", "without --resume"});
}

TEST_F(AfterTwentySteps, AnotherModelRecipeTextOrSeedIsRefused) {
    expect_refusal(run_.train({"--resume", "--set", "seed=2"}), 1, {"step-20", "another seed"});
    expect_refusal(run_.train({"--resume", "--set", "recipe.name=bf16"}), 1, {"another recipe"});
    expect_refusal(run_.train({"--resume", "--set", "recipe.keep_last=1"}), 1, {"another recipe"});
    expect_refusal(run_.train({"--resume", "--set", "data.train=data/validation"}), 1, {"another text"});
    expect_refusal(run_.train({"--resume", "--set", "train.batch_size=3"}), 1,
                   {"train.batch_size = 6", "now it is 3"});
    std::string model = read_text(run_ / "model.json");
    write_text(run_ / "model.json", model.replace(model.find("\"rope_theta\": 1"), 15, "\"rope_theta\": 2"));
    expect_refusal(run_.train({"--resume"}), 1, {"another model"});
}

TEST_F(AfterTwentySteps, AnotherNumberOfThreadsOrRateIsSaid) {
    const RunResult result =
        run_.train({"--resume", "--until", "21", "--threads", "2", "--set", "optimizer.lr=1e-3"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.err.find("threads was"), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("optimizer.lr was 0.003 before, now it is 0.001"), std::string::npos)
        << result.err;
}

TEST_F(AfterTwentySteps, AFullDiskAtTheNextCheckpointLeavesTheEarlierOnes) {
    // Files beyond a size that the log stays below and the weights do not: the kernel answers as for a full
    // disk.
    rlimit before{};
    ::getrlimit(RLIMIT_FSIZE, &before);
    const rlimit small{100'000, before.rlim_max};
    ::signal(SIGXFSZ, SIG_IGN);  // ignored in the child, too
    ::setrlimit(RLIMIT_FSIZE, &small);
    const RunResult result = run_.train({"--resume"});
    ::setrlimit(RLIMIT_FSIZE, &before);
    ::signal(SIGXFSZ, SIG_DFL);

    EXPECT_EQ(result.exit_code, 1) << result.err;
    const std::string last = result.err.substr(result.err.rfind('\n', result.err.size() - 2) + 1);
    EXPECT_TRUE(last.starts_with("nibble: cannot write out/checkpoints/step-30.partial/")) << last;
    EXPECT_NE(last.find("File too large"), std::string::npos) << last;
    EXPECT_EQ(checkpoint_steps(run_ / "out/checkpoints"), (std::vector<int64_t>{10, 20}));
    EXPECT_FALSE(fs::exists(run_ / "out/checkpoints/step-30.partial"));
    TinyRun::expect_success(run_.train({"--resume"}));
}

TEST(ResumeOfNothing, IsAnError) {
    const TinyRun run;
    expect_refusal(run.train({"--resume"}), 1, {"no checkpoint in out/checkpoints", "without --resume"});
}

TEST(ResumeOfAFinishedRun, TrainsNoFurtherStep) {
    const TinyRun run;
    TinyRun::expect_success(run.train({"--set", "train.steps=3"}));
    const std::string weights = read_text(run / "out/model/model.safetensors");
    TinyRun::expect_success(run.train({"--set", "train.steps=3", "--resume"}));
    EXPECT_EQ(read_text(run / "out/model/model.safetensors"), weights);
    EXPECT_EQ(run.log("out").steps.size(), 3u);
}

}  // namespace
}  // namespace nibble
