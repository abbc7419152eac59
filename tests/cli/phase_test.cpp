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

}  // namespace
}  // namespace nibble
