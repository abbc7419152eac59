#include "train/run_config.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>

namespace nibble {
namespace {

// A configuration file of its own for each test.
class RunConfigFile : public testing::Test {
  protected:
    RunConfigFile() {
        path_ = fs::temp_directory_path() /
                fmt::format("nibble_{}.toml", testing::UnitTest::GetInstance()->current_test_info()->name());
    }
    ~RunConfigFile() override { fs::remove(path_); }

    RunConfig load(std::string_view text, const std::vector<std::string>& overrides = {}) {
        write_text(path_, text);
        return load_run_config(path_.string(), overrides);
    }
    // The message of the UsageError, with the file's folder removed.
    std::string error(std::string_view text, const std::vector<std::string>& overrides = {}) {
        try {
            const RunConfig config = load(text, overrides);
            check_complete(config);
        } catch (const UsageError& e) {
            std::string message = e.what();
            if (const size_t at = message.find(path_.string()); at != std::string::npos)
                message.replace(at, path_.string().size(), "FILE");
            return message;
        }
        return "no error";
    }
    static constexpr std::string_view kComplete =
        "model.config = 'm.json'\ndata.train = 'd'\ntrain.steps = 10\n";
    fs::path path_;
};

TEST(RunConfig, EveryKeyHasItsOwnNamePlaceAndExplanation) {
    std::set<std::string_view> names;
    std::set<void*> places;
    RunConfig config;
    for (const ConfigKey& key : config_keys()) {
        EXPECT_TRUE(names.insert(key.name).second) << key.name;
        EXPECT_TRUE(
            places.insert(std::visit([](auto* p) { return static_cast<void*>(p); }, key.slot(config))).second)
            << key.name;
        EXPECT_FALSE(key.help.empty()) << key.name;
    }
}

TEST_F(RunConfigFile, ChangesProductsAndOperandsOfTheRecipe) {
    const RunConfig config =
        load("[recipe]\nname = 'nvidia'\ndgrad = 'bf16'\n", {"recipe.wgrad_x=nvfp4 1x16 round=stochastic "
                                                             "rotate=rht:16 signs=run"});
    const Recipe recipe = resolve_recipe(config);
    EXPECT_EQ(recipe.name, "nvidia+dgrad=bf16+wgrad.x");
    EXPECT_EQ(to_string(recipe.dgrad_dy.spec), "bf16");
    EXPECT_EQ(recipe.wgrad_x.spec.round, Rounding::stochastic);
    EXPECT_EQ(recipe.fprop_x, find_recipe("nvidia").fprop_x);
    EXPECT_THROW(
        resolve_recipe(load("recipe.wgrad_x = 'nvfp4 1x16 rotate=rht:32'\nrecipe.name = 'nvidia'\n")),
        UsageError);  // the rotations no longer cancel
    EXPECT_EQ(error("recipe.dgrad = 'fp8'\n"),
              "FILE:1: recipe.dgrad must be one of recipe, bf16, not \"fp8\"");
}

TEST_F(RunConfigFile, ChangesTheHeadOfTheRecipe) {
    EXPECT_EQ(resolve_recipe(load("")).lm_head, "bf16");
    const Recipe recipe = resolve_recipe(load("recipe.lm_head = 'fp8'\n"));
    EXPECT_EQ(recipe.name, "quartet2+lm_head=fp8");
    EXPECT_EQ(recipe.lm_head, "fp8");
    EXPECT_EQ(error("recipe.lm_head = 'fp4'\n"),
              "FILE:1: recipe.lm_head must be one of recipe, bf16, fp8, not \"fp4\"; did you mean \"fp8\"?");
}

TEST_F(RunConfigFile, GivesAPhaseAnotherHead) {
    const RunConfig config = load(
        "recipe.lm_head = 'fp8'\n[[phase]]\nat = 0.5\nfprop = 'bf16'\n"
        "[[phase]]\nat = 0.9\nrecipe = 'bf16'\nlm_head = 'bf16'\n",
        {"train.steps=10"});
    const std::vector<Phase> phases = resolve_phases(config);
    EXPECT_EQ(phases.at(1).recipe.lm_head, "fp8");
    EXPECT_EQ(phases.at(2).recipe.lm_head, "bf16");
    EXPECT_EQ(phases.at(2).recipe.name, "bf16");
    EXPECT_EQ(error("[[phase]]\nat = 0.5\nlm_head = 'fp4'\n"),
              "FILE:3: lm_head of a phase is \"bf16\" or \"fp8\", not \"fp4\"");
}

TEST_F(RunConfigFile, GivesARecipeModifiers) {
    const RunConfig config = load("recipe.modifiers = ['recipe', 'cage lambda=5']\n");
    EXPECT_EQ(resolve_recipe(config).name, "quartet2+cage");
    EXPECT_EQ(find_modifier<Cage>(resolve_recipe(config))->lambda, 5);
    EXPECT_TRUE(resolve_recipe(load("", {"recipe.modifiers=[]"})).modifiers.empty());
    // One of them alone may come without brackets and quotes.
    EXPECT_EQ(resolve_recipe(load("", {"recipe.modifiers=cage lambda=5"})), resolve_recipe(config));
    EXPECT_THROW(resolve_recipe(load("recipe.modifiers = ['cags']\n")), UsageError);
}

TEST_F(RunConfigFile, GivesAPhaseOtherModifiers) {
    const RunConfig config = load(R"(
        train.steps = 10
        recipe.modifiers = ['qema']
        [[phase]]
        at_step = 4
        dgrad = 'bf16'
        [[phase]]
        at_step = 6
        modifiers = ['recipe', 'cage']
        [[phase]]
        at_step = 8
        fprop = 'bf16'
        modifiers = []
    )");
    std::vector<size_t> counts;
    for (const Phase& phase : resolve_phases(config)) counts.push_back(phase.recipe.modifiers.size());
    EXPECT_EQ(counts, (std::vector<size_t>{1, 1, 2, 0}));
    RunConfig again = load(to_annotated_toml(config));
    EXPECT_EQ(to_json(again), to_json(config));
}

TEST_F(RunConfigFile, ReadsValuesAndRemembersTheirLines) {
    const RunConfig config =
        load("name = 'x'\nseed = 7\n[optimizer]\nlr = 2e-3\nbetas = [0.8, 0.99]\n[recipe]\nkeep_last = 2\n",
             {"train.tokens=1e6", "schedule.name=wsd"});
    EXPECT_EQ(config.name, "x");
    EXPECT_EQ(config.seed, 7);
    EXPECT_EQ(config.optimizer.lr, 2e-3);
    EXPECT_EQ(config.optimizer.betas, (std::vector<double>{0.8, 0.99}));
    EXPECT_EQ(config.recipe.keep_last.text, "2");
    EXPECT_EQ(config.train.tokens, 1000000);
    EXPECT_EQ(config.schedule.name, "wsd");
    const std::string text = to_annotated_toml(config);
    EXPECT_NE(text.find(fmt::format("# {}:4: learning rate", path_.string())), std::string::npos) << text;
    EXPECT_NE(text.find("# --set: or: tokens of the run"), std::string::npos) << text;
    EXPECT_NE(text.find("# default: added to the root"), std::string::npos) << text;
}

TEST_F(RunConfigFile, PrintsWhatItReadsBack) {
    const RunConfig config =
        load("name = 'a \"b\" \\ c'\noptimizer.lr = 1.2e-3\n[device]\nallow = ['fp8-folded']\n",
             {"recipe.keep_first=15%"});
    const RunConfig again = load(to_annotated_toml(config));
    EXPECT_EQ(to_json(again), to_json(config));
    EXPECT_EQ(again.recipe.keep_first.text, "15%");
}

TEST_F(RunConfigFile, NamesTheNearestKnownKey) {
    EXPECT_EQ(error("completely = 'different'\n"),
              "FILE:1: unknown key \"completely\"; `nibble train --print-config` lists all keys");
    EXPECT_EQ(error("[optimizer]\nlrr = 1e-3\n"),
              "FILE:2: unknown key \"optimizer.lrr\"; did you mean \"optimizer.lr\"?");
    EXPECT_EQ(error("[optimzer]\nlr = 1e-3\n"),
              "FILE:2: unknown key \"optimzer.lr\"; did you mean \"optimizer.lr\"?");
    EXPECT_EQ(error("steps = 3\n"), "FILE:1: unknown key \"steps\"; did you mean \"train.steps\"?");
    EXPECT_EQ(error("", {"train.step=3"}),
              "--set: unknown key \"train.step\"; did you mean \"train.steps\"?");
}

TEST_F(RunConfigFile, RefusesWrongTypesAndValues) {
    EXPECT_EQ(error("[optimizer]\nlr = 'fast'\n"), "FILE:2: optimizer.lr must be a number");
    EXPECT_EQ(error("[optimizer]\nlr = -1\n"), "FILE:2: optimizer.lr must be from 0 to 1000, not -1");
    EXPECT_EQ(error("[optimizer]\nlr = inf\n"), "FILE:2: optimizer.lr must be a number");
    EXPECT_EQ(error("train.steps = 1.5\n"), "FILE:1: train.steps must be a whole number");
    EXPECT_EQ(error("optimizer = 3\n"), "FILE:1: unknown key \"optimizer\"; did you mean \"optimizer.lr\"?");
    EXPECT_EQ(error("schedule.name = 'cosin'\n"),
              "FILE:1: schedule.name must be one of cosine, linear, wsd, constant, not \"cosin\"; "
              "did you mean \"cosine\"?");
    EXPECT_EQ(error("optimizer.betas = [0.9]\n"), "FILE:1: optimizer.betas must hold 2 numbers, not 1");
    EXPECT_EQ(error("optimizer.betas = [0.9, 1.0]\n"),
              "FILE:1: optimizer.betas each element must be from 0 to 0.9999999, not 1");
    EXPECT_EQ(error("seed = 2\n[[phase]]\nat = 1.5\n"),
              "FILE:3: at of a phase is a fraction of train.steps above 0 and at most 1");
    EXPECT_EQ(error("[[phase]]\nfprop = 'bf16'\n"), "FILE:1: a phase needs one of at, at_step and when");
    EXPECT_EQ(error("[[phase]]\nat = 0.5\nwhen = 'gradient_to_noise < 2'\nfprop = 'bf16'\n"),
              "FILE:1: a phase needs one of at, at_step and when");
    EXPECT_EQ(
        error("[[phase]]\nat = 0.5\nforward = 'bf16'\n"),
        "FILE:3: unknown key \"forward\" of a phase; it has at, at_step, when, recipe, fprop, dgrad, wgrad, "
        "lm_head, modifiers, schedule, extra_steps");
    EXPECT_EQ(
        error("[[phase]]\nat = 0.5\nfprop = 'fp8'\n"),
        "FILE:3: fprop of a phase can be \"bf16\", not \"fp8\"; recipe = \"NAME\" takes another recipe");
    EXPECT_EQ(
        error("[[phase]]\nat = 0.5\n"),
        "FILE:1: a phase needs recipe, fprop, dgrad, wgrad, lm_head, modifiers, schedule or extra_steps: "
        "what it changes");
    for (const char* when : {"gradient_to_noise > 2", "gradient_to_noise < 2 now", "loss < 2", "2"})
        EXPECT_EQ(error(fmt::format("[[phase]]\nwhen = '{}'\nfprop = 'bf16'\n", when)),
                  fmt::format("FILE:2: when of a phase is \"gradient_to_noise < NUMBER\", not \"{}\"", when));
    EXPECT_EQ(error("[[phase]]\nat = 1\nextra_steps = 0\n"),
              "FILE:3: extra_steps of a phase is a number of steps from 1 up");
    EXPECT_EQ(error("[[phase]]\nat = 1\nschedule = 'cosine'\n"),
              "FILE:3: schedule of a phase is a table like { name = \"cosine\", warmup_steps = 40 }");
    EXPECT_EQ(error("[[phase]]\nat = 0.5\nschedule = { name = 'cosin' }\n"),
              "FILE:3: there is no schedule \"cosin\"; did you mean \"cosine\"?");
    EXPECT_EQ(error("[[phase]]\nat = 0.5\nschedule = { lr = 1e-3 }\n"),
              "FILE:3: schedule of a phase needs a name");
    EXPECT_EQ(
        error("[[phase]]\nat = 0.5\nschedule = { name = 'cosine', warmup = 0.1 }\n"),
        "FILE:3: unknown key \"warmup\" of a phase's schedule; it has name, warmup_steps, decay_steps, lr, "
        "final");
    EXPECT_EQ(error("[[phase]]\nat = 0.5\nmodifiers = 'cage'\n"),
              "FILE:3: modifiers of a phase must be a list of texts");
    EXPECT_EQ(error("[phase]\nat = 0.5\n"), "FILE:2: phases are tables of a file, each begun by [[phase]]");
    EXPECT_EQ(error("recipe.keep_last = '101%'\n"),
              "FILE:1: recipe.keep_last must be \"recipe\", a number, or a share like \"15%\", not \"101%\"");
    EXPECT_EQ(error("device.allow = ['fp8-fold']\n"),
              "FILE:1: device.allow each element must be one of fp8, fp8-folded, fp8-fast-accumulation, not "
              "\"fp8-fold\"; did you mean \"fp8-folded\"?");
    EXPECT_EQ(error("", {"optimizer.lr=abc"}).substr(0, 22), "--set optimizer.lr: Er");
    EXPECT_EQ(error("", {"optimizer.lr"}), "--set optimizer.lr: write --set section.key=value");
    EXPECT_TRUE(error("name = \n").starts_with("FILE:1: Error while parsing"));
}

TEST_F(RunConfigFile, RefusesContradictions) {
    const std::string complete(kComplete);
    EXPECT_EQ(error(kComplete), "no error");
    EXPECT_EQ(error("data.train = 'd'\ntrain.steps = 10\n"),
              "the configuration needs model.config or model.init");
    EXPECT_EQ(error(complete + "train.tokens = 5\n"),
              "FILE:4: train.steps and train.tokens exclude each other; remove one");
    EXPECT_EQ(error(complete + "train.micro_batch_size = 3\n"),
              "FILE:4: train.batch_size 16 is not a multiple of train.micro_batch_size 3");
    EXPECT_EQ(error(complete + "recipe.name = 'bf16'\nrecipe.file = 'f.toml'\n"),
              "FILE:5: recipe.name and recipe.file exclude each other; remove one");
    EXPECT_EQ(error(complete + "precision.logits = 'bf16'\nprecision.activations = 'fp32'\n"),
              "FILE:4: precision.logits = \"bf16\" needs precision.activations = \"bf16\", not \"fp32\"");
    EXPECT_EQ(error(complete + "precision.logits = 'bf16'\n"), "no error");
    EXPECT_EQ(error(complete + "precision.activations = 'fp32'\n"), "no error");
}

TEST_F(RunConfigFile, KeepsTheDtypeOfTheLogits) {
    const RunConfig wide = load(kComplete), narrow = load(kComplete, {"precision.logits=bf16"});
    EXPECT_EQ(wide.precision.logits, "fp32");
    const auto found = differences(to_json(wide), to_json(narrow));
    ASSERT_EQ(found.size(), 1U);
    EXPECT_EQ(found[0].key, "precision.logits");
    EXPECT_EQ(found[0].on_resume, OnResume::fixed);
}

TEST_F(RunConfigFile, RoundsTokensUpToWholeSteps) {
    RunConfig config = load("model.config = 'm.json'\ndata.train = 'd'\ntrain.tokens = 1_000_000\n");
    EXPECT_EQ(config.steps(), 245);  // 244.14 steps of 16 * 256 tokens
}

TEST_F(RunConfigFile, ReportsWhichKeysDiffer) {
    const RunConfig a = load("optimizer.lr = 1e-3\nseed = 1\n"), b = load("optimizer.lr = 2e-3\nseed = 2\n");
    const auto found = differences(to_json(a), to_json(b));
    ASSERT_EQ(found.size(), 2U);
    EXPECT_EQ(found[0].key, "seed");
    EXPECT_EQ(found[0].on_resume, OnResume::fixed);
    EXPECT_EQ(found[1].key, "optimizer.lr");
    EXPECT_EQ(found[1].then, "0.001");
    EXPECT_EQ(found[1].now, "0.002");
    EXPECT_EQ(found[1].on_resume, OnResume::free);
}

// A checkpoint of before a key was made has been trained with what is now its default.
TEST_F(RunConfigFile, TakesAKeyThatAnOlderRunDidNotKnowForItsDefault) {
    auto before = to_json(load(""));
    before.at("optimizer").erase("moments");
    before.at("train").erase("recompute");
    EXPECT_TRUE(differences(before, to_json(load(""))).empty());
    const auto found = differences(before, to_json(load("optimizer.moments = 'bf16'")));
    ASSERT_EQ(found.size(), 1U);
    EXPECT_EQ(found[0].key, "optimizer.moments");
    EXPECT_EQ(found[0].then, "\"f32\"");
    EXPECT_EQ(found[0].on_resume, OnResume::fixed);
}

// --- phases ---

class PhasedConfig : public RunConfigFile {
  protected:
    std::vector<Phase> phases(const std::string& text) {
        config_ = load("recipe.name = 'fp4-all-the-way'\n" + std::string(kComplete) + text);
        return resolve_phases(config_);
    }
    std::string refusal(const std::string& text) {
        try {
            phases(text);
        } catch (const UsageError& e) {
            return e.what();
        }
        return "no error";
    }
    double rate(const std::vector<Phase>& all, size_t phase, int64_t step) const {
        const PhaseRate rate = rate_of_phase(all, phase, config_);
        return Schedule(rate.options).lr(step - rate.first_step);
    }
    RunConfig config_;
};

TEST_F(PhasedConfig, PrintsWhatItReads) {
    const std::string text =
        "[[phase]]\nat = 1\ndgrad = 'bf16'\nschedule = { name = 'wsd', warmup_steps = 4, decay_steps = 3, lr "
        "= "
        "1e-4, final = 0.5 }\nextra_steps = 10\n"
        "[[phase]]\nwhen = ' gradient_to_noise<1.732 '\nrecipe = 'bf16'\n";
    const RunConfig config = load(text);
    const RunConfig again = load(to_annotated_toml(config));
    EXPECT_EQ(to_json(again).at("phase").dump(), to_json(config).at("phase").dump());
    EXPECT_EQ(again.phases.at(1).when, 1.732);
    EXPECT_EQ(again.phases.at(0).schedule->decay_steps, 3);
    EXPECT_EQ(again.phases.at(0).schedule->lr, 1e-4);
}

TEST_F(PhasedConfig, ExtraStepsLengthenTheRunBehindItsOwnSchedule) {
    const std::vector<Phase> all = phases(
        "[[phase]]\nat = 1.0\ndgrad = 'bf16'\nextra_steps = 5\n"
        "schedule = { name = 'linear', warmup_steps = 2, lr = 0.5, final = 0 }\n");
    EXPECT_EQ(run_steps(all, config_), 15);
    EXPECT_EQ(all.at(1).first_step, 10);
    EXPECT_DOUBLE_EQ(rate(all, 0, 9), 1e-3 * 0.1);  // the run's own has ended
    EXPECT_DOUBLE_EQ(rate(all, 1, 10), 0.25);
    EXPECT_DOUBLE_EQ(rate(all, 1, 11), 0.5);
    EXPECT_DOUBLE_EQ(rate(all, 1, 14), 0);
}

TEST_F(PhasedConfig, AScheduleReachesTheNextPhaseThatHasOne) {
    const std::vector<Phase> all = phases(
        "[[phase]]\nat_step = 4\nschedule = { name = 'linear', lr = 1, final = 0.5 }\n"
        "[[phase]]\nat_step = 6\nfprop = 'bf16'\n"
        "[[phase]]\nat_step = 8\nschedule = { name = 'constant', lr = 3 }\n");
    EXPECT_DOUBLE_EQ(rate(all, 1, 7), 0.5);
    EXPECT_DOUBLE_EQ(rate(all, 2, 7), 0.5);  // a phase without one goes on with it
    EXPECT_DOUBLE_EQ(rate(all, 3, 8), 3);
}

TEST_F(PhasedConfig, AConditionalPhaseCountsOnceItHasBegun) {
    std::vector<Phase> all = phases(
        "[[phase]]\nwhen = 'gradient_to_noise < 2'\ndgrad = 'bf16'\nextra_steps = 7\n"
        "schedule = { name = 'constant', lr = 2 }\n"
        "[[phase]]\nat_step = 8\nfprop = 'bf16'\n");
    EXPECT_EQ(run_steps(all, config_), 10);
    EXPECT_EQ(phase_at(all, 7), 0u);
    EXPECT_EQ(phase_at(all, 8), 2u);  // the conditional one is passed over,
    EXPECT_EQ(all.at(2).recipe.name, "fp4-all-the-way+dgrad=bf16+fprop=bf16");  // but for its recipe
    EXPECT_DOUBLE_EQ(rate(all, 2, 9), 1e-3 * 0.1);
    const nlohmann::ordered_json plan = describe(all);
    all[1].first_step = 5, all[1].gradient_to_noise = 1.5;
    EXPECT_EQ(run_steps(all, config_), 17);
    EXPECT_EQ(phase_at(all, 7), 1u);
    EXPECT_DOUBLE_EQ(rate(all, 2, 9), 2);
    EXPECT_EQ(describe(all), plan);
    std::vector<Phase> resumed = resolve_phases(config_);
    restore_decisions(resumed, decisions(all));
    EXPECT_EQ(resumed.at(1).first_step, 5);
    EXPECT_EQ(resumed.at(1).gradient_to_noise, 1.5);
}

TEST_F(PhasedConfig, RefusesPlacesOutsideTheRunAndConditionsWithoutMeasurement) {
    const std::string when = "[[phase]]\nwhen = 'gradient_to_noise < 2'\nfprop = 'bf16'\n";
    EXPECT_NE(refusal("[[phase]]\nat = 1.0\nfprop = 'bf16'\n").find("after 10 of 10 steps"),
              std::string::npos);
    EXPECT_NE(refusal("[monitor]\nevery = 0\n" + when).find("needs the monitor; set monitor.every"),
              std::string::npos);
    EXPECT_NE(refusal("[[phase]]\nat = 0.5\nwgrad = 'bf16'\n" + when).find("would never begin"),
              std::string::npos);
    EXPECT_EQ(refusal(when), "no error");
}

}  // namespace
}  // namespace nibble
