// nibble train, from the configuration to the folder that it leaves.
#include <gtest/gtest.h>

#include "cli/tiny_run.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

// One finished run, shared by the tests that only look at it.
class FinishedRun : public testing::Test {
  protected:
    static void SetUpTestSuite() {
        run_ = new TinyRun;
        result_ = new RunResult(run_->train({"--set", "seed=3"}));
    }
    static void TearDownTestSuite() {
        delete run_;
        delete result_;
    }
    void SetUp() override { ASSERT_EQ(result_->exit_code, 0) << result_->err; }

    static std::vector<Json> records(const std::string& type) {
        std::vector<Json> found;
        std::istringstream stream(read_text(*run_ / "out/log.jsonl"));
        for (std::string line; std::getline(stream, line);) {
            Json record = Json::parse(line);
            if (record.at("type") == type) found.push_back(std::move(record));
        }
        return found;
    }

    static TinyRun* run_;
    static RunResult* result_;
};
TinyRun* FinishedRun::run_ = nullptr;
RunResult* FinishedRun::result_ = nullptr;

TEST_F(FinishedRun, LearnsTheText) {
    const RunLog log = run_->log("out");
    ASSERT_EQ(log.steps.size(), 40u);
    EXPECT_NEAR(log.steps.front().loss, std::log(300.0), 0.3);  // knows nothing yet
    EXPECT_LT(log.steps.back().loss, log.steps.front().loss - 1.0);
    EXPECT_LT(log.evals.back().loss, log.evals.front().loss);
}

TEST_F(FinishedRun, LogsEveryStepWithItsPlaceAndSpeed) {
    const std::vector<Json> steps = records("step");
    ASSERT_EQ(steps.size(), 40u);
    for (size_t i = 0; i < steps.size(); ++i) {
        EXPECT_EQ(steps[i].at("step"), i + 1);
        EXPECT_EQ(steps[i].at("tokens"), (i + 1) * 6 * 24);
        for (const char* key : {"loss", "lr", "grad_norm", "tokens_per_s", "sol", "time"})
            EXPECT_GT(steps[i].at(key).get<double>(), 0) << key;
    }
}

TEST_F(FinishedRun, EvaluatesOnScheduleAndWithBothForwardsAtTheEnd) {
    const RunLog log = run_->log("out");
    ASSERT_EQ(log.evals.size(), 4u);
    const std::tuple<int64_t, const char*> expected[] = {
        {15, "quartet2"}, {30, "quartet2"}, {40, "quartet2"}, {40, "bf16"}};
    for (size_t i = 0; i < 4; ++i)
        EXPECT_EQ(std::tuple(log.evals[i].step, log.evals[i].forward), expected[i]);
    EXPECT_NE(log.evals[2].loss, log.evals[3].loss);
    EXPECT_NEAR(log.evals[2].loss, log.evals[3].loss, 0.1);
    // 2 to 3 bytes a token in this text.
    EXPECT_NEAR(log.evals[2].bits_per_byte, log.evals[2].loss / std::log(2.0) / 2.5, 1.0);
}

TEST_F(FinishedRun, SaysInTheHeaderWhatRanOnWhatWithWhat) {
    const std::vector<Json> headers = records("header");
    ASSERT_EQ(headers.size(), 1u);
    const Json& header = headers[0];
    EXPECT_EQ(header.at("command"), "nibble train run.toml --set seed=3");
    EXPECT_EQ(header.at("config").at("seed"), 3);
    EXPECT_EQ(header.at("config").at("optimizer").at("eps"), 1e-8);
    EXPECT_NE(header.at("recipe").at("table").get<std::string>().find("dgrad.dy"), std::string::npos);
    ASSERT_EQ(header.at("gemms").size(), 4u);
    EXPECT_EQ(header.at("gemms")[0].at("requested"), "nvfp4 x nvfp4");
    EXPECT_TRUE(
        header.at("gemms")[0].at("executed").get<std::string>().starts_with("emulated: exact products in "));
    EXPECT_EQ(header.at("gemms")[3].at("product"), "lm_head");
    EXPECT_TRUE(header.at("attention").get<std::string>().starts_with("products in "));
    EXPECT_GT(header.at("machine").at("threads"), 0);
    EXPECT_GT(header.at("device").at("gemm_peak").get<double>(), 1e6);
    EXPECT_EQ(header.at("data").at("train").at("hash").get<std::string>().size(), 16u);
    // The table that ran is also the first thing that a person sees.
    EXPECT_NE(result_->err.find(header.at("recipe").at("table").get<std::string>()), std::string::npos);
    EXPECT_EQ(result_->out, "");
}

TEST_F(FinishedRun, CanBeOfARecipeThatIsMoreThanItsOperands) {
    for (const std::string recipe : {"dge-occ", "halo"}) {
        const RunResult result =
            run_->train({"--set", "recipe.name=" + recipe, "--set", "output.dir=" + recipe});
        ASSERT_EQ(result.exit_code, 0) << result.err;
        const std::string second = "outliers requested fp32 x bf16, executed over elements that are not zero";
        EXPECT_EQ(result.err.find(second) != std::string::npos, recipe == "dge-occ") << result.err;
        const RunLog log = run_->log(recipe);
        EXPECT_LT(log.steps.back().loss, log.steps.front().loss - 1.0) << recipe;
    }
}

TEST_F(FinishedRun, PlansItsMemoryBeforeTheFirstStep) {
    const Json memory = records("header")[0].at("memory");
    // 300 * 40 embedding, 2 * (80*40 + 40*40 + 144*40 + 40*72) matrices, 5 * 40 norms
    const size_t parameters = 12000 + 2 * 13440 + 200;
    EXPECT_GE(memory.at("masters").get<size_t>(), parameters * 4);
    EXPECT_EQ(memory.at("moments").get<size_t>(), 2 * memory.at("masters").get<size_t>());
    EXPECT_GT(memory.at("step").get<size_t>(), 0u);
    const std::string& text = result_->err;
    const size_t table = text.find("\nmemory "), total = text.find("\ntotal ");
    EXPECT_LT(table, total);
    EXPECT_LT(total, text.find("step 1/40"));
    for (const char* part : {"masters", "gradients", "moments", "weights", "activations", "scratch"}) {
        const size_t line = text.find(fmt::format("\n{} ", part), table);
        EXPECT_LT(line, total) << part;
    }
}

TEST_F(FinishedRun, LeavesAModelFolderAndTheNewestCheckpoints) {
    for (const char* file : {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"})
        EXPECT_TRUE(fs::exists(*run_ / "out/model" / file)) << file;
    EXPECT_EQ(checkpoint_steps(*run_ / "out/checkpoints"), (std::vector<int64_t>{30, 40}));
    EXPECT_EQ(records("checkpoint").size(), 4u);
    EXPECT_EQ(records("end").at(0).at("reason"), "complete");
}

TEST_F(FinishedRun, IsNotOverwrittenByAccident) {
    const std::string before = read_text(*run_ / "out/log.jsonl");
    expect_refusal(run_->train({}), 1, {"out/log.jsonl exists", "--resume", "--overwrite"});
    EXPECT_EQ(read_text(*run_ / "out/log.jsonl"), before);
}

TEST(Train, RepeatsToTheByteAndDependsOnTheSeed) {
    const TinyRun run;
    const auto train = [&](const char* out, const char* seed) {
        TinyRun::expect_success(
            run.train({"--set", "train.steps=6", "--set", fmt::format("output.dir={}", out), "--set",
                       fmt::format("seed={}", seed)}));
    };
    train("a", "1"), train("b", "1"), train("c", "2");
    expect_same_training(run, "a", "b");
    EXPECT_NE(run.log("a").steps[0].loss, run.log("c").steps[0].loss);
}

TEST(Train, IsNotChangedByEvaluation) {
    const TinyRun run;
    for (const char* every : {"0", "2"})
        TinyRun::expect_success(run.train({"--set", "recipe.name=fp4-all-the-way", "--set", "train.steps=6",
                                           "--set", fmt::format("output.dir=every{}", every), "--set",
                                           fmt::format("train.eval_every={}", every)}));
    EXPECT_EQ(run.log("every0").evals.size(), 2u);
    EXPECT_EQ(run.log("every2").evals.size(), 4u);
    EXPECT_EQ(read_text(run / "every0/model/model.safetensors"),
              read_text(run / "every2/model/model.safetensors"));
}

TEST(Train, GivesTheSameGradientForAnyMicroBatch) {
    const TinyRun run;
    const auto first_step = [&](const char* out, const char* micro) {
        TinyRun::expect_success(
            run.train({"--set", "recipe.name=bf16", "--set", "precision.activations=fp32", "--set",
                       "train.steps=1", "--set", fmt::format("output.dir={}", out), "--set",
                       fmt::format("train.micro_batch_size={}", micro)}));
        return run.log(out).steps.at(0);
    };
    const RunLog::Step whole = first_step("whole", "6"), parts = first_step("parts", "2");
    EXPECT_NEAR(whole.loss, parts.loss, 1e-5);
    EXPECT_NEAR(whole.grad_norm, parts.grad_norm, 1e-3 * whole.grad_norm);
}

TEST(Train, IsNotChangedByWhatItMakesAgain) {
    const TinyRun run;
    const auto train = [&](const std::string& out, std::vector<std::string> more) {
        more.insert(more.end(), {"--set", "output.dir=" + out, "--set", "monitor.every=10"});
        TinyRun::expect_success(run.train(more));
    };
    train("none", {});
    const auto memory = [&](const std::string& out) {
        return run.log(out).header.at("memory").at("step").get<int64_t>();
    };
    for (const std::string level : {"norms", "mlp", "block"}) {
        train(level, {"--set", "train.recompute=" + level});
        expect_same_training(run, "none", level);
        EXPECT_LE(memory(level), memory("none"));
    }
    // The level may change where a run goes on.
    train("parts", {"--until", "20", "--set", "train.recompute=mlp"});
    train("parts", {"--resume", "--set", "train.recompute=block"});
    expect_same_training(run, "none", "parts");
}

TEST(Train, LearnsWithMomentsAndGradientsInBf16AndResumesToTheBit) {
    const TinyRun run;
    const auto train = [&](const std::string& out, std::vector<std::string> more) {
        more.insert(more.end(), {"--set", "output.dir=" + out, "--set", "monitor.every=0"});
        return run.train(more);
    };
    const std::vector<std::string> narrow = {"--set", "optimizer.moments=bf16", "--set",
                                             "train.gradients=bf16"};
    const auto with = [&](std::vector<std::string> more) {
        more.insert(more.end(), narrow.begin(), narrow.end());
        return more;
    };
    TinyRun::expect_success(train("wide", {}));
    const RunResult run_narrow = train("narrow", narrow);
    TinyRun::expect_success(run_narrow);
    EXPECT_NE(run_narrow.err.find("moments bf16 (rounded stochastically), gradients of linear layers bf16"),
              std::string::npos)
        << run_narrow.err;
    TinyRun::expect_success(train("parts", with({"--until", "20"})));
    // The dtypes are the run's: another is refused.
    const RunResult other = train("parts", {"--resume", "--set", "train.gradients=bf16"});
    EXPECT_EQ(other.exit_code, 1);
    EXPECT_NE(other.err.find("was written with optimizer.moments = \"bf16\", now it is \"f32\""),
              std::string::npos)
        << other.err;
    TinyRun::expect_success(train("parts", with({"--resume"})));
    expect_same_training(run, "narrow", "parts");
    const RunLog wide = run.log("wide"), log = run.log("narrow");
    EXPECT_NEAR(log.evals.back().loss, wide.evals.back().loss, 0.05);
    EXPECT_NE(log.evals.back().loss, wide.evals.back().loss);
    const auto memory = [](const RunLog& of, const char* what) {
        return of.header.at("memory").at(what).get<size_t>();
    };
    EXPECT_EQ(2 * memory(log, "moments"), memory(wide, "moments"));
    EXPECT_LT(memory(log, "gradients"), memory(wide, "gradients"));
    const RunResult watched = run.train({"--set", "train.gradients=bf16"});
    EXPECT_EQ(watched.exit_code, 2);
    EXPECT_NE(watched.err.find("set it to 0 for train.gradients"), std::string::npos) << watched.err;
}

TEST(Train, LearnsWithLogitsInBf16) {
    const TinyRun run;
    const auto train = [&](const std::string& out, const std::string& logits) {
        const RunResult result =
            run.train({"--set", "precision.logits=" + logits, "--set", "output.dir=" + out});
        TinyRun::expect_success(result);
        return result.err;
    };
    EXPECT_EQ(train("wide", "fp32").find("logits   rounded"), std::string::npos);
    const std::string says = train("narrow", "bf16");
    EXPECT_NE(says.find("logits   rounded to bf16; softmax and loss in f32"), std::string::npos) << says;
    const RunLog wide = run.log("wide"), narrow = run.log("narrow");
    EXPECT_NEAR(narrow.evals.back().loss, wide.evals.back().loss, 0.05);
    EXPECT_NE(narrow.evals.back().loss, wide.evals.back().loss);
}

TEST(Train, ThatDoesNotFitSaysWhatToChange) {
    const TinyRun run;
    const auto refusal = [&](size_t memory) {
        const RunResult result =
            run.train({"--set", "monitor.every=0", "--set", fmt::format("device.memory={}", memory)});
        EXPECT_EQ(result.exit_code, 1);
        EXPECT_FALSE(fs::exists(run / "out"));
        return result.err;
    };
    const auto plan_of = [&](const std::string& out, std::vector<std::string> more) {
        more.insert(more.end(), {"--until", "1", "--set", "monitor.every=0", "--set", "output.dir=" + out});
        TinyRun::expect_success(run.train(more));
        return run.log(out).header.at("memory");
    };
    const Json kept = plan_of("kept", {});
    const Json least =
        plan_of("least", {"--set", "train.recompute=block", "--set", "train.micro_batch_size=1"});
    const auto bytes = [](const Json& plan, const char* what) { return plan.at(what).get<size_t>(); };

    const std::string less = refusal(bytes(kept, "total") - bytes(kept, "activations") / 10);
    EXPECT_NE(less.find("allowed by device.memory; set train.recompute = \""), std::string::npos) << less;
    const std::string much_less = refusal(bytes(least, "total") - bytes(least, "moments") / 4);
    EXPECT_NE(much_less.find("optimizer.moments = \"bf16\""), std::string::npos) << much_less;
    EXPECT_EQ(much_less.find("train.gradients"), std::string::npos) << much_less;
    EXPECT_NE(refusal(10'000).find("choose a smaller model"), std::string::npos);
}

TEST(Train, StartsFromTheWeightsOfAModelFolder) {
    const TinyRun run;
    TinyRun::expect_success(run.train({"--set", "recipe.name=bf16"}));
    const double trained = run.log("out").evals.back().loss;
    TinyRun::expect_success(
        run.train({"--set", "recipe.name=bf16", "--set", "model.config=", "--set", "model.init=out/model",
                   "--set", "output.dir=more", "--set", "train.steps=1", "--set", "optimizer.lr=0"}));
    EXPECT_NEAR(run.log("more").evals.back().loss, trained, 1e-6);
}

// Qwen2 has biases, Qwen3 norms of heads: they train, are saved and resumed, and leave folders that evaluate.
TEST(Train, OfQwenModelsLearnsResumesAndLeavesModelFolders) {
    for (const auto& [type, name] : {std::pair("qwen2", "Qwen2ForCausalLM"), {"qwen3", "Qwen3ForCausalLM"}}) {
        SCOPED_TRACE(type);
        const TinyRun run;
        Json model = Json::parse(read_text(run / "model.json"));
        model["model_type"] = type;
        model["architectures"] = {name};
        model.erase("mlp_bias");
        write_text(run / "model.json", model.dump());
        const std::vector<std::string> decay = {"--set", "optimizer.decay=['matrices', 'biases']"};
        TinyRun::expect_success(run.train(decay));
        const RunLog log = run.log("out");
        EXPECT_LT(log.steps.back().loss, log.steps.front().loss - 1.0);
        std::vector<std::string> part = decay;
        part.insert(part.end(), {"--set", "output.dir=parts", "--until", "20"});
        TinyRun::expect_success(run.train(part));
        part.back() = "40";
        part.push_back("--resume");
        TinyRun::expect_success(run.train(part));
        expect_same_training(run, "out", "parts");
        const RunResult more =
            run.train({"--set", "model.config=", "--set", "model.init=out/model", "--set", "output.dir=more",
                       "--set", "train.steps=1", "--set", "optimizer.lr=0"});
        TinyRun::expect_success(more);
        EXPECT_NEAR(run.log("more").evals.back().loss, log.evals.back().loss, 1e-6);
    }
}

TEST(Train, PrintsEveryKeyWithoutRunning) {
    const Workspace work;
    write_text(work / "c.toml", "optimizer.lr = 5e-3\n");
    const RunResult result = work.nibble({"train", "c.toml", "--print-config", "--set", "seed=9"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("# c.toml:1: learning rate"), std::string::npos) << result.out;
    EXPECT_NE(result.out.find("# --set: decides initial weights"), std::string::npos) << result.out;
}

}  // namespace
}  // namespace nibble
