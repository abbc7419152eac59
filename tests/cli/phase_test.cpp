// Phases: from some step on a run goes on with another recipe, in its log, in its checkpoints and to the bit.
#include "cli/tiny_run.h"

namespace nibble {
namespace {

// A run whose last phases put one product after the other in bf16.
class PhasedRun : public testing::Test {
  protected:
    PhasedRun() { add("[[phase]]\nat = 0.5\ndgrad = 'bf16'\n[[phase]]\nat_step = 30\nrecipe = 'nvidia'\n"); }

    void add(const std::string& phases) {
        write_text(run_ / "run.toml", read_text(run_ / "run.toml") + phases);
    }
    void train(const std::string& out, std::vector<std::string> more = {}) {
        more.insert(more.end(), {"--set", "output.dir=" + out});
        TinyRun::expect_success(run_.train(more));
    }
    // (step, recipe) of the phase lines of a log.
    std::vector<std::pair<int64_t, std::string>> phases(const std::string& out) const {
        std::vector<std::pair<int64_t, std::string>> found;
        std::istringstream lines(read_text(run_ / out / "log.jsonl"));
        for (std::string line; std::getline(lines, line);) {
            const nlohmann::json record = nlohmann::json::parse(line);
            if (record.at("type") == "phase")
                found.emplace_back(record.at("step").get<int64_t>(), record.at("recipe").at("name"));
        }
        return found;
    }

    TinyRun run_;
};

TEST_F(PhasedRun, ChangesTheRecipeAtItsSteps) {
    train("phased");
    EXPECT_EQ(phases("phased"),
              (std::vector<std::pair<int64_t, std::string>>{{20, "quartet2+dgrad=bf16"}, {30, "nvidia"}}));
    TinyRun plain;
    TinyRun::expect_success(plain.train({}));
    const RunLog a = run_.log("phased"), b = plain.log("out");
    ASSERT_EQ(a.steps.size(), b.steps.size());
    for (size_t i = 0; i < 20; ++i) EXPECT_EQ(a.steps[i].grad_norm, b.steps[i].grad_norm) << i;
    EXPECT_EQ(a.steps[20].loss, b.steps[20].loss);  // the forward is the same ...
    EXPECT_NE(a.steps[20].grad_norm, b.steps[20].grad_norm);
    EXPECT_NE(a.steps[30].loss, b.steps[30].loss);  // ... until the second phase
    EXPECT_EQ(a.evals.back().forward, "bf16");
    EXPECT_EQ(a.evals[a.evals.size() - 2].forward, "nvidia");
    EXPECT_TRUE(a.evals[a.evals.size() - 2].own);
}

TEST_F(PhasedRun, ResumesAcrossAPhaseToTheBit) {
    train("whole");
    for (const char* until : {"15", "20", "25"}) {
        const std::string out = std::string("parts") + until;
        train(out, {"--until", until});
        train(out, {"--resume", "--until", "35"});
        train(out, {"--resume"});
        expect_same_training(run_, "whole", out);
    }
}

TEST_F(PhasedRun, ResumedAfterItsLastStepEndsWithTheLastPhase) {
    train("out");
    train("out", {"--resume"});
    const RunLog log = run_.log("out");
    EXPECT_EQ(log.recipe, "nvidia");
    EXPECT_EQ(log.evals[log.evals.size() - 2].forward, "nvidia");
}

TEST_F(PhasedRun, WithOtherPhasesIsNotResumed) {
    train("out", {"--until", "25"});
    expect_refusal(run_.train({"--resume", "--set", "train.steps=50"}), 1,
                   {"another list of phases", "train.steps"});
    add("[[phase]]\nat_step = 35\nwgrad = 'bf16'\n");
    expect_refusal(run_.train({"--resume"}), 1, {"[[phase]]"});
}

TEST_F(PhasedRun, IsNotTakenForARunOfItsFirstRecipeAlone) {
    train("out");
    const RunResult report = run_.work().nibble({"report", "out"});
    ASSERT_EQ(report.exit_code, 0) << report.err;
    EXPECT_NE(report.out.find("quartet2, then quartet2+dgrad=bf16, then nvidia"), std::string::npos)
        << report.out;
}

TEST_F(PhasedRun, EndsInBf16WithOneEvaluation) {
    add("[[phase]]\nat_step = 35\nrecipe = 'bf16'\n");
    train("out");
    const RunLog log = run_.log("out");
    EXPECT_EQ(log.evals.back().forward, "bf16");
    EXPECT_TRUE(log.evals.back().own);
    EXPECT_NE(log.evals[log.evals.size() - 2].step, 40);
}

TEST_F(PhasedRun, OutsideTheRunOrOutOfOrderIsRefused) {
    add("[[phase]]\nat_step = 30\nfprop = 'bf16'\n");
    expect_refusal(run_.train({}), 2, {"run.toml", "must begin after step 30"});
    EXPECT_FALSE(fs::exists(run_ / "out"));
}

// --- phases of the methods, and phases that wait for the monitor ---

// A run with the phases of a test behind its configuration.
class RunWithPhases : public testing::Test {
  protected:
    void begin(const std::string& recipe, const std::string& phases) {
        write_text(run_ / "run.toml",
                   read_text(run_ / "run.toml") + "\n[recipe]\nname = '" + recipe + "'\n" + phases);
    }
    void train(const std::string& out, std::vector<std::string> more = {}) {
        more.insert(more.end(), {"--set", "output.dir=" + out});
        TinyRun::expect_success(run_.train(more));
    }
    std::vector<nlohmann::json> lines(const std::string& out, const std::string& type) const {
        std::vector<nlohmann::json> found;
        std::istringstream text(read_text(run_ / out / "log.jsonl"));
        for (std::string line; std::getline(text, line);) {
            const nlohmann::json record = nlohmann::json::parse(line);
            if (record.at("type") == type) found.push_back(record);
        }
        return found;
    }
    // The run in two parts, for each of the steps between them, ends as the whole does.
    void expect_exact_resume(const std::vector<std::string>& steps) {
        train("whole");
        for (const std::string& step : steps) {
            train("parts" + step, {"--until", step});
            train("parts" + step, {"--resume"});
            expect_same_training(run_, "whole", "parts" + step);
        }
    }
    TinyRun run_;
};

// FP4 All the Way: the backward in bf16 behind the end of the run, with a rate of its own.
TEST_F(RunWithPhases, EndInQuantizationAwareFinetuning) {
    begin("fp4-all-the-way",
          "[[phase]]\nat = 1.0\ndgrad = 'bf16'\nwgrad = 'bf16'\nextra_steps = 12\n"
          "schedule = { name = 'cosine', warmup_steps = 4, lr = 1e-3, final = 0.1 }\n");
    expect_exact_resume({"35", "40", "42", "51"});
    const RunLog log = run_.log("whole");
    ASSERT_EQ(log.steps.size(), 52u);
    EXPECT_DOUBLE_EQ(log.steps[39].lr, 3e-3 * 0.1);
    EXPECT_DOUBLE_EQ(log.steps[40].lr, 1e-3 / 4);
    EXPECT_DOUBLE_EQ(log.steps[43].lr, 1e-3);
    EXPECT_DOUBLE_EQ(log.steps[51].lr, 1e-3 * 0.1);
    EXPECT_EQ(log.header.at("steps"), 52);
    EXPECT_EQ(log.evals[log.evals.size() - 2].forward, "fp4-all-the-way+dgrad=bf16+wgrad=bf16");
    const nlohmann::json phase = lines("whole", "phase").at(0);
    EXPECT_EQ(phase.at("after_step"), 40);
    EXPECT_EQ(phase.at("extra_steps"), 12);
    EXPECT_EQ(phase.at("steps"), 52);
    EXPECT_EQ(phase.at("schedule").at("warmup_steps"), 4);
    // The forty steps before are those of a run without the phase.
    TinyRun plain;
    TinyRun::expect_success(plain.train({"--set", "recipe.name=fp4-all-the-way"}));
    const RunLog before = plain.log("out");
    for (size_t i = 0; i < 40; ++i) EXPECT_EQ(log.steps[i].grad_norm, before.steps[i].grad_norm) << i;
    EXPECT_EQ(log.steps[40].loss < before.steps[0].loss, true);
}

// NVIDIA's switch: the forward alone, for the last 18 % of the schedule, which stays as it is.
TEST_F(RunWithPhases, EndWithAForwardInBf16) {
    begin("nvidia", "[[phase]]\nat = 0.82\nfprop = 'bf16'\n");
    expect_exact_resume({"20", "33", "36"});
    const RunLog log = run_.log("whole");
    EXPECT_EQ(lines("whole", "phase").at(0).at("after_step"), 33);
    EXPECT_EQ(log.evals.back().forward, "bf16");
    TinyRun plain;
    TinyRun::expect_success(plain.train({"--set", "recipe.name=nvidia"}));
    const RunLog without = plain.log("out");
    for (size_t i = 0; i < 40; ++i) EXPECT_EQ(log.steps[i].lr, without.steps[i].lr) << i;
    EXPECT_EQ(log.steps[32].loss, without.steps[32].loss);
    EXPECT_NE(log.steps[33].loss, without.steps[33].loss);
}

// The same at the start of the decay of a WSD schedule; and all in bf16 for the last steps.
TEST_F(RunWithPhases, EndInBf16AtTheStartOfTheDecay) {
    begin("nvidia",
          "[schedule]\nname = 'wsd'\ndecay = 0.3\n"
          "[[phase]]\nat = 0.7\nfprop = 'bf16'\n[[phase]]\nat = 0.9\nrecipe = 'bf16'\n");
    expect_exact_resume({"28", "37"});
    const RunLog log = run_.log("whole");
    EXPECT_EQ(log.steps[27].lr, 3e-3);
    EXPECT_LT(log.steps[28].lr, 3e-3);
    EXPECT_EQ(lines("whole", "phase").at(0).at("after_step"), 28);
    EXPECT_EQ(log.evals.back().forward, "bf16");
    EXPECT_TRUE(log.evals.back().own);
}

TEST_F(RunWithPhases, HaveTheirOwnPrecisionOfTheHead) {
    begin("nvidia", "lm_head = 'fp8'\n[[phase]]\nat = 0.5\nrecipe = 'bf16'\nlm_head = 'bf16'\n");
    expect_exact_resume({"10", "20", "30"});
    const RunLog log = run_.log("whole");
    EXPECT_EQ(log.header.at("recipe").at("name"), "nvidia+lm_head=fp8");
    EXPECT_EQ(log.header.at("gemms").at(3).at("requested"), "fp8:e4m3 x fp8:e4m3, gradient fp8:e5m2");
    EXPECT_EQ(lines("whole", "phase").at(0).at("gemms").at(3).at("requested"), "bf16 x bf16");
    EXPECT_EQ(log.evals.back().forward, "bf16");
    EXPECT_LT(log.steps.back().loss, log.steps.front().loss - 1.0);
}

// A limit that every ratio is below: the phase begins with the fifth sample.
TEST_F(RunWithPhases, BeginWhenTheMonitorSaysSo) {
    begin("fp4-all-the-way",
          "[monitor]\nevery = 3\n"
          "[[phase]]\nwhen = 'gradient_to_noise < 1000'\ndgrad = 'bf16'\nwgrad = 'bf16'\nextra_steps = 5\n"
          "schedule = { name = 'linear', warmup_steps = 2 }\n");
    expect_exact_resume({"14", "15", "16", "43"});
    const nlohmann::json phase = lines("whole", "phase").at(0);
    EXPECT_EQ(phase.at("after_step"), 15);
    EXPECT_EQ(phase.at("when"), "gradient_to_noise < 1000");
    EXPECT_GT(phase.at("gradient_to_noise"), 0.5);
    EXPECT_LT(phase.at("gradient_to_noise"), 1000);
    EXPECT_EQ(phase.at("steps"), 45);
    const RunLog log = run_.log("whole");
    ASSERT_EQ(log.steps.size(), 45u);
    EXPECT_DOUBLE_EQ(log.steps[15].lr, 3e-3 / 2);
    EXPECT_DOUBLE_EQ(log.steps[44].lr, 3e-3 * 0.1);
    const Checkpoint checkpoint = open_checkpoint(run_ / "whole/checkpoints/step-45");
    EXPECT_EQ(checkpoint.state.at("decisions").at(0).at("after_step"), 15);
    const RunResult report = run_.work().nibble({"report", "whole"});
    EXPECT_NE(report.out.find("fp4-all-the-way, then fp4-all-the-way+dgrad"), std::string::npos)
        << report.out;
    expect_refusal(run_.train({"--set", "output.dir=parts14", "--resume", "--set", "monitor.every=2"}), 1,
                   {"monitor.every", "restore it"});
}

TEST_F(RunWithPhases, ThatAreNeverDueAreNotCounted) {
    begin("quartet2",
          "[monitor]\nevery = 3\n"
          "[[phase]]\nwhen = 'gradient_to_noise < 1e-6'\ndgrad = 'bf16'\nextra_steps = 5\n");
    train("out");
    EXPECT_TRUE(lines("out", "phase").empty());
    EXPECT_EQ(run_.log("out").steps.size(), 40u);
    const RunResult report = run_.work().nibble({"report", "out"});
    EXPECT_EQ(report.out.find("then"), std::string::npos) << report.out;
}

TEST_F(RunWithPhases, ThatWaitForAMonitorThatIsOffAreRefused) {
    begin("quartet2", "[[phase]]\nwhen = 'gradient_to_noise < 1.732'\nfprop = 'bf16'\n");
    expect_refusal(run_.train({"--set", "monitor.every=0"}), 2, {"run.toml", "needs the monitor"});
}

// Every example of the page on training can be read, and is printed as it can be read again.
TEST_F(RunWithPhases, OfTheDocumentationAreRead) {
    const std::string page = read_text(fs::path(NIBBLE_SOURCE_DIR) / "docs/training.md");
    const std::string fence = "```toml\n";
    int examples = 0;
    for (size_t at = page.find(fence); at != std::string::npos; at = page.find(fence, at + 1)) {
        const size_t begin = at + fence.size();
        const std::string text = page.substr(begin, page.find("```", begin) - begin);
        if (text.find("[[phase]]") == std::string::npos) continue;
        ++examples;
        write_text(run_ / "example.toml", text);
        const RunResult printed = run_.work().nibble({"train", "example.toml", "--print-config"});
        EXPECT_EQ(printed.exit_code, 0) << printed.err << text;
        write_text(run_ / "printed.toml", printed.out);
        const RunResult again = run_.work().nibble({"train", "printed.toml", "--print-config"});
        EXPECT_EQ(again.exit_code, 0) << again.err;
        EXPECT_EQ(again.out.substr(again.out.find("[[phase]]")).size() > 20, true);
    }
    EXPECT_GE(examples, 4);
}

}  // namespace
}  // namespace nibble
