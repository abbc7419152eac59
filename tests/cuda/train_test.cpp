// Runs of the program on a GPU, end to end.
#include <cmath>

#include "cli/chain_model.h"
#include "cli/tiny_run.h"
#include "support/on_gpu.h"
#include "train/checkpoint.h"

namespace nibble {
namespace {

class TrainOnAGpu : public OnGpu {
  protected:
    // Into the folder `out`.
    static RunResult train(const TinyRun& run, const std::string& out, std::vector<std::string> more) {
        more.insert(more.end(), {"--set", "device.kind=cuda", "--set", "output.dir=" + out});
        return run.train(more);
    }
    static std::vector<nlohmann::json> lines(const TinyRun& run, const std::string& out,
                                             const std::string& type) {
        std::vector<nlohmann::json> found;
        std::istringstream log(read_text(run / out / "log.jsonl"));
        for (std::string line; std::getline(log, line);) {
            found.push_back(nlohmann::json::parse(line));
            if (found.back().at("type") != type) found.pop_back();
        }
        return found;
    }
};

TEST_F(TrainOnAGpu, ResumesToTheBit) {
    const std::string after_updates =
        R"(["cage silence=0", "qema after=2", "oscireset start=0 period=6 window=3"])";
    for (const auto& [recipe, modifiers] : {std::pair<std::string, std::string>{"bf16", "[]"},
                                            {"quartet2", "[]"},
                                            {"quartet", "[]"},
                                            {"nvidia", "[]"},
                                            {"dge-occ", "[]"},
                                            {"quartet2", after_updates},
                                            {"quartet2", "smooth-swiglu"}}) {
        const TinyRun run;
        const std::vector<std::string> chosen = {"--set", "recipe.name=" + recipe, "--set",
                                                 "recipe.modifiers=" + modifiers};
        const auto part = [&](const std::string& out, std::vector<std::string> more) {
            more.insert(more.end(), chosen.begin(), chosen.end());
            TinyRun::expect_success(train(run, out, more));
        };
        part("whole", {});
        part("parts", {"--until", "20"});
        part("parts", {"--resume"});
        expect_same_training(run, "whole", "parts");
    }
}

TEST_F(TrainOnAGpu, ScalesByTheStepBeforeAndResumesToTheBit) {
    const TinyRun run;
    Recipe recipe = find_recipe("nvidia");
    for (const char* name : {"fprop.x", "dgrad.dy"}) operand(recipe, name).spec.tensor = TensorScale::delayed;
    write_text(run / "delayed.toml", to_toml(recipe));
    const auto part = [&](const std::string& out, std::vector<std::string> more) {
        more.insert(more.end(), {"--set", "recipe.file=delayed.toml", "--set", "recipe.keep_last=0"});
        TinyRun::expect_success(train(run, out, more));
    };
    part("whole", {});
    part("parts", {"--until", "20"});
    part("parts", {"--resume"});
    expect_same_training(run, "whole", "parts");
}

TEST_F(TrainOnAGpu, LearnsWhatItLearnsOnACpu) {
    for (const std::string recipe : {"quartet2", "dge-occ"}) {
        const TinyRun run;
        const std::vector<std::string> chosen = {"--set", "recipe.name=" + recipe};
        std::vector<std::string> on_cpu = chosen;
        on_cpu.insert(on_cpu.end(), {"--set", "output.dir=cpu"});
        TinyRun::expect_success(run.train(on_cpu));
        TinyRun::expect_success(train(run, "cuda", chosen));
        const RunLog cpu = run.log("cpu"), gpu = run.log("cuda");
        // The same numbers at first; then the order of sums drives the two apart, slowly.
        EXPECT_NEAR(gpu.steps.front().loss, cpu.steps.front().loss, 2e-4) << recipe;
        EXPECT_NEAR(gpu.evals.back().loss, cpu.evals.back().loss, 0.03) << recipe;
        EXPECT_EQ(gpu.header.at("machine").at("gpu"), cuda_devices().front().name);
    }
}

TEST_F(TrainOnAGpu, SaysInItsHeaderWhetherAttentionRepeatsToTheBit) {
    const TinyRun run;
    std::string model = read_text(run / "model.json");  // with heads that cuDNN takes
    model.replace(model.find("\"head_dim\": 10"), 14, "\"head_dim\": 16");
    write_text(run / "model.json", model);
    const auto attention = [&](const std::string& order) {
        TinyRun::expect_success(train(run, order, {"--until", "1", "--set", "device.attention=" + order}));
        return run.log(order).header.at("attention").get<std::string>();
    };
    EXPECT_TRUE(attention("deterministic").ends_with(", deterministic"));
    EXPECT_FALSE(attention("any-order").ends_with(", deterministic"));
}

TEST_F(TrainOnAGpu, IsMonitoredWithoutChangingABit) {
    for (const std::string noise : {"predicted", "two-pass"}) {
        const TinyRun run;
        TinyRun::expect_success(train(run, "off", {"--set", "monitor.every=0"}));
        TinyRun::expect_success(
            train(run, "on", {"--set", "monitor.every=3", "--set", "monitor.noise=" + noise}));
        expect_same_training(run, "off", "on");
    }
}

TEST_F(TrainOnAGpu, ReplaysItsStepsButForTheFirstTwo) {
    const TinyRun run;
    TinyRun::expect_success(train(run, "out", {"--until", "20", "--set", "monitor.every=0"}));
    EXPECT_EQ(lines(run, "out", "end").at(0).at("replayed_steps"), 18);
}

TEST_F(TrainOnAGpu, NamesTheStepAndTheTensorWhereALossIsNotFinite) {
    for (const std::string recipe : {"bf16", "quartet2"}) {
        const TinyRun run;
        const RunResult result =
            train(run, "out",
                  {"--set", "recipe.name=" + recipe, "--set", "optimizer.lr=1000", "--set",
                   "optimizer.grad_clip=0", "--set", "schedule.warmup=0", "--set",
                   "optimizer.weight_decay=1000", "--set", "checkpoint.every=1", "--set", "monitor.every=0",
                   "--set", "optimizer.decay=[\"matrices\",\"norms\"]"});
        EXPECT_EQ(result.exit_code, 1) << result.err;
        const std::string last = result.err.substr(result.err.rfind('\n', result.err.size() - 2) + 1);
        EXPECT_TRUE(last.starts_with("nibble: step ")) << last;
        EXPECT_NE(last.find("the first tensor that is not finite: "), std::string::npos) << last;
        EXPECT_NE(last.find("layers."), std::string::npos) << last;
        const nlohmann::json end = lines(run, "out", "end").at(0);
        EXPECT_EQ(end.at("reason"), "failed");
        // The weights are those of the last step that was whole.
        EXPECT_EQ(lines(run, "out", "step").size(), end.at("step").get<size_t>());
        EXPECT_EQ(newest_checkpoint(run / "out" / "checkpoints").value().step, end.at("step"));
    }
}

// The first step's operands differ by what BF16 rounds differently, no more.
TEST_F(TrainOnAGpu, ShowsTheHealthThatTheCpuShows) {
    for (const std::string recipe : {"quartet2", "fp4-all-the-way", "dge-occ"}) {
        const TinyRun run;
        const std::vector<std::string> chosen = {"--set", "monitor.every=1", "--until",
                                                 "1",     "--set",           "recipe.name=" + recipe};
        std::vector<std::string> on_cpu = chosen;
        on_cpu.insert(on_cpu.end(), {"--set", "output.dir=cpu"});
        TinyRun::expect_success(run.train(on_cpu));
        TinyRun::expect_success(train(run, "cuda", chosen));
        const nlohmann::json cpu = lines(run, "cpu", "health").at(0),
                             gpu = lines(run, "cuda", "health").at(0);
        ASSERT_EQ(gpu.at("layers").size(), cpu.at("layers").size()) << recipe;
        for (size_t i = 0; i < cpu.at("layers").size(); ++i) {
            const nlohmann::json &expected = cpu["layers"][i], &found = gpu["layers"][i];
            EXPECT_EQ(found.at("layer"), expected.at("layer"));
            ASSERT_EQ(found.contains("gradient_to_noise"), expected.contains("gradient_to_noise"));
            if (expected.contains("gradient_to_noise")) {
                const double ratio = expected.at("gradient_to_noise");
                EXPECT_NEAR(found.at("gradient_to_noise").get<double>(), ratio, 0.1 * ratio + 0.05)
                    << recipe << " " << expected.at("layer");
            }
            ASSERT_EQ(found.at("operands").size(), expected.at("operands").size());
            for (const auto& [operand, figures] : expected.at("operands").items())
                EXPECT_NEAR(found["operands"][operand].at("relative_mse").get<double>(),
                            figures.at("relative_mse").get<double>(),
                            0.35 * figures.at("relative_mse").get<double>())
                    << recipe << " " << expected.at("layer") << " " << operand;
        }
    }
}

TEST_F(TrainOnAGpu, IsNotChangedByWhatIsMadeAgainAndByWhereMomentsLie) {
    for (const std::string recipe : {"bf16", "quartet2"}) {
        const TinyRun run;
        const auto part = [&](const std::string& out, std::vector<std::string> more) {
            more.insert(more.end(), {"--set", "recipe.name=" + recipe, "--set", "optimizer.moments=bf16",
                                     "--set", "train.gradients=bf16", "--set", "monitor.every=0"});
            TinyRun::expect_success(train(run, out, more));
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

TEST_F(TrainOnAGpu, LeavesAModelThatIsEvaluatedAndSampledThere) {
    const TinyRun run;
    TinyRun::expect_success(train(run, "out", {"--set", "train.steps=20"}));
    const auto loss = [&](const std::string& device) {
        const RunResult result =
            run.work().nibble({"eval", "--model", "out/model", "--data", "data/validation", "--json",
                               "--sequence-length", "24", "--device", device});
        TinyRun::expect_success(result);
        return nlohmann::json::parse(result.out).at("results").at(0).at("loss").get<double>();
    };
    EXPECT_NEAR(loss("cuda"), loss("cpu"), 2e-3);
    TinyRun::expect_success(run.work().nibble(
        {"generate", "--model", "out/model", "--prompt", "ka", "--max-tokens", "70", "--device", "cuda"}));
}

TEST_F(TrainOnAGpu, GeneratesAndRanksWhatTheModelExpects) {
    const Workspace work;
    make_chain_model(work, "model", "abc defghijk");
    for (const std::string recipe : {"bf16", "quartet2"}) {
        const RunResult text = work.nibble({"generate", "--model", "model", "--prompt", "ab", "--temperature",
                                            "0", "--recipe", recipe, "--device", "cuda"});
        EXPECT_EQ(text.exit_code, 0) << text.err;
        EXPECT_EQ(text.out, "abc defghijk\n") << recipe;
    }
    write_text(work / "task.jsonl", "{\"context\": \"abc\", \"choices\": [\"xy\", \"de\"], \"answer\": 1}\n");
    const RunResult ranked =
        work.nibble({"eval", "--model", "model", "--task", "task.jsonl", "--json", "--device", "cuda"});
    EXPECT_EQ(ranked.exit_code, 0) << ranked.err;
    EXPECT_EQ(nlohmann::json::parse(ranked.out).at("results").at(0).at("accuracy"), 1.0);
}

TEST_F(TrainOnAGpu, ResetsOscillationsAndSaysHowMany) {
    const TinyRun run;
    TinyRun::expect_success(train(
        run, "out",
        {"--set", "recipe.modifiers=oscireset start=0 period=10 window=5 threshold=2", "--until", "20"}));
    EXPECT_FALSE(lines(run, "out", "oscireset").empty());
}

}  // namespace
}  // namespace nibble
