// Runs of the program on a GPU, end to end.
#include <cmath>

#include "cli/tiny_run.h"
#include "support/on_gpu.h"

namespace nibble {
namespace {

class TrainOnAGpu : public OnGpu {
  protected:
    static RunResult train(const TinyRun& run, std::vector<std::string> more) {
        more.insert(more.end(), {"--set", "monitor.every=0"});
        return run.train(more);
    }
};

TEST_F(TrainOnAGpu, ResumesToTheBit) {
    for (const std::string recipe : {"bf16", "quartet2", "quartet", "nvidia"}) {
        const TinyRun run;
        const auto part = [&](const std::string& out, std::vector<std::string> more) {
            more.insert(more.end(), {"--set", "device.kind=cuda", "--set", "recipe.name=" + recipe, "--set",
                                     "output.dir=" + out});
            TinyRun::expect_success(train(run, more));
        };
        part("whole", {});
        part("parts", {"--until", "20"});
        part("parts", {"--resume"});
        expect_same_training(run, "whole", "parts");
    }
}

TEST_F(TrainOnAGpu, LearnsWhatItLearnsOnACpu) {
    const TinyRun run;
    for (const std::string device : {"cpu", "cuda"})
        TinyRun::expect_success(
            train(run, {"--set", "device.kind=" + device, "--set", "output.dir=" + device}));
    const RunLog cpu = run.log("cpu"), gpu = run.log("cuda");
    // The same numbers at first; then the order of sums drives the two apart, slowly.
    EXPECT_NEAR(gpu.steps.front().loss, cpu.steps.front().loss, 2e-4);
    EXPECT_NEAR(gpu.evals.back().loss, cpu.evals.back().loss, 0.02);
    EXPECT_EQ(gpu.header.at("machine").at("gpu"), cuda_devices().front().name);
}

TEST_F(TrainOnAGpu, IsNotChangedByWhatIsMadeAgainAndByWhereMomentsLie) {
    for (const std::string recipe : {"bf16", "quartet2"}) {
        const TinyRun run;
        const auto part = [&](const std::string& out, std::vector<std::string> more) {
            more.insert(more.end(), {"--set", "device.kind=cuda", "--set", "recipe.name=" + recipe, "--set",
                                     "optimizer.moments=bf16", "--set", "train.gradients=bf16", "--set",
                                     "output.dir=" + out});
            TinyRun::expect_success(train(run, more));
        };
        part("kept", {});
        for (const std::string level : {"norms", "mlp", "block"}) {
            part(level, {"--set", "train.recompute=" + level, "--set", "optimizer.offload=moments"});
            expect_same_training(run, "kept", level);
        }
        part("parts", {"--until", "20", "--set", "optimizer.offload=moments"});
        part("parts", {"--resume"});
        expect_same_training(run, "kept", "parts");
    }
}

TEST_F(TrainOnAGpu, SaysWhatRunsOnTheCpuAlone) {
    const TinyRun run;
    const RunResult monitored = run.train({"--set", "device.kind=cuda", "--set", "monitor.every=5"});
    EXPECT_EQ(monitored.exit_code, 2);
    EXPECT_NE(monitored.err.find("set it to 0"), std::string::npos) << monitored.err;
    const RunResult modified =
        train(run, {"--set", "device.kind=cuda", "--set", "recipe.modifiers=cage silence=0"});
    EXPECT_EQ(modified.exit_code, 2);
    EXPECT_NE(modified.err.find("modifiers run on the cpu"), std::string::npos) << modified.err;
}

}  // namespace
}  // namespace nibble
