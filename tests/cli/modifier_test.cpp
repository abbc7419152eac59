// Modifiers end to end: asked for in a configuration or a recipe's file, shown, planned, stored, and
// effective.
#include "cli/tiny_run.h"
#include "recipe/recipe.h"

namespace nibble {
namespace {

// Twenty steps of the tiny run.
class ModifiedRun : public testing::Test {
  protected:
    ModifiedRun() {
        std::string config = read_text(run_ / "run.toml");
        write_text(run_ / "run.toml", config.replace(config.find("steps = 40"), 10, "steps = 20"));
    }
    void train(const std::string& out, const std::string& modifiers, std::vector<std::string> more = {}) {
        more.insert(more.end(), {"--set", "output.dir=" + out, "--set", "recipe.modifiers=" + modifiers});
        TinyRun::expect_success(run_.train(more));
    }
    nlohmann::json lines(const std::string& out, const std::string& type) const {
        auto found = nlohmann::json::array();
        std::istringstream lines(read_text(run_ / out / "log.jsonl"));
        for (std::string line; std::getline(lines, line);) {
            const nlohmann::json record = nlohmann::json::parse(line);
            if (record.at("type") == type) found.push_back(record);
        }
        return found;
    }
    size_t state_bytes(const std::string& out) const {
        return run_.log(out).header.at("memory").at("modifiers").get<size_t>();
    }
    // The first step whose loss differs; 0 if none does.
    int64_t first_difference(const std::string& a, const std::string& b) const {
        const RunLog first = run_.log(a), second = run_.log(b);
        for (size_t i = 0; i < first.steps.size(); ++i)
            if (first.steps[i].loss != second.steps[i].loss) return first.steps[i].step;
        return 0;
    }
    // qkv, out, gate_up and down of a block of the tiny model.
    static constexpr size_t kBlockElements = 80 * 40 + 40 * 40 + 144 * 40 + 40 * 72;

    TinyRun run_;
};

TEST_F(ModifiedRun, SaysSoInItsHeader) {
    const RunResult result = run_.train({"--until", "1", "--set", "recipe.modifiers=qema"});
    TinyRun::expect_success(result);
    const std::string line = "\nmodifier  qema decay=0.999 after=10\n";
    EXPECT_NE(result.err.find(line), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("\nmodifiers     107.6 kB\n"), std::string::npos) << result.err;
    const RunLog log = run_.log("out");
    EXPECT_EQ(log.recipe, "quartet2+qema");
    EXPECT_NE(log.header.at("recipe").at("table").get<std::string>().find(line), std::string::npos);
}

TEST_F(ModifiedRun, TakesTheModifiersOfARecipesFile) {
    const RunResult toml = run_.work().nibble({"recipes", "show", "quartet2", "--toml"});
    write_text(run_ / "mine.toml", toml.out + "\n[[modifier]]\nname = \"cage\"\nsilence = 0\n");
    TinyRun::expect_success(
        run_.train({"--set", "recipe.file=mine.toml", "--set", "output.dir=file", "--until", "9"}));
    train("set", "cage silence=0", {"--until", "9"});
    EXPECT_EQ(first_difference("file", "set"), 0);
    const RunResult table = run_.work().nibble({"recipes", "show", "mine.toml"});
    EXPECT_NE(table.out.find("\nmodifier  cage lambda=10 silence=0 ramp=linear\n"), std::string::npos)
        << table.out;
}

TEST_F(ModifiedRun, RefusesWhatItDoesNotKnow) {
    expect_refusal(run_.train({"--set", "recipe.modifiers=cagy"}), 2, {"did you mean \"cage\"?"});
    expect_refusal(run_.train({"--set", "recipe.modifiers=cage lambd=3"}), 2, {"did you mean \"lambda\"?"});
    expect_refusal(run_.train({"--set", "recipe.name=bf16", "--set", "recipe.modifiers=qema"}), 2,
                   {"qema needs a quantised fprop.w, which is bf16"});
    write_text(run_ / "mine.toml", to_toml(find_recipe("quartet2")) + "[[modifier]]\nname = \"oscreset\"\n");
    expect_refusal(run_.work().nibble({"recipes", "show", "mine.toml"}), 2,
                   {"mine.toml:20:8", "did you mean \"oscireset\"?"});
}

TEST_F(ModifiedRun, CageWithoutStrengthIsTheOptimizerAlone) {
    train("plain", "[]");
    train("idle", "cage lambda=0 silence=0");
    expect_same_training(run_, "plain", "idle");
}

// The pull leaves most codes, and so the loss, as they are: the masters tell.
TEST_F(ModifiedRun, CageActsWhenItsSilenceIsOver) {
    const std::vector<std::string> each_step = {"--until", "11", "--set", "checkpoint.every=1"};
    train("plain", "[]", each_step);
    train("cage", "cage silence=0.5", each_step);
    const auto masters = [&](const char* out, const char* step) {
        return read_text(run_ / out / "checkpoints" / step / "model.safetensors");
    };
    EXPECT_TRUE(masters("plain", "step-10") == masters("cage", "step-10"));
    EXPECT_FALSE(masters("plain", "step-11") == masters("cage", "step-11"));
    EXPECT_EQ(state_bytes("cage"), 0u);
}

TEST_F(ModifiedRun, QemaActsWhenItsAverageHasSeenEnough) {
    train("plain", "[]");
    train("qema", "qema after=7");
    EXPECT_EQ(first_difference("plain", "qema"), 8);
    EXPECT_EQ(state_bytes("qema"), 2 * kBlockElements * 4 + 2 * 8 * 4);
}

TEST_F(ModifiedRun, OsciResetActsAtTheEndOfAWindow) {
    train("plain", "[]");
    train("reset", "oscireset start=0.25 period=8 window=4 threshold=2");
    EXPECT_EQ(first_difference("plain", "reset"), 10);  // the window of updates 6 to 9
    const nlohmann::json resets = lines("reset", "oscireset");
    ASSERT_EQ(resets.size(), 2u);
    EXPECT_EQ(resets[0].at("step"), 9);
    EXPECT_EQ(resets[1].at("step"), 17);
    EXPECT_GT(resets[0].at("reset"), 0);
    EXPECT_EQ(state_bytes("reset"), 3 * 2 * kBlockElements * 4 + 2 * 8 * 4);
}

TEST_F(ModifiedRun, SmoothSwigluActsFromTheFirstStep) {
    train("plain", "[]", {"--until", "2"});
    train("smooth", "smooth-swiglu", {"--until", "2"});
    EXPECT_EQ(first_difference("plain", "smooth"), 1);
}

TEST_F(ModifiedRun, SmoothSwigluWithoutStrengthIsTheRecipeAlone) {
    const std::vector<std::string> whole_batch = {"--set", "train.micro_batch_size=6"};
    train("plain", "[]", whole_batch);
    train("idle", "smooth-swiglu strength=0", whole_batch);
    expect_same_training(run_, "plain", "idle");
}

TEST_F(ModifiedRun, LeavesKeptBlocksAlone) {
    const std::vector<std::string> kept = {"--set", "recipe.keep_first=1", "--set", "recipe.keep_last=1"};
    train("plain", "[]", kept);
    train("kept", R"(["cage silence=0", "qema after=1", "oscireset start=0 period=5 window=2"])", kept);
    expect_same_training(run_, "plain", "kept");
    EXPECT_EQ(state_bytes("kept"), 0u);
    train("half", "qema", {"--until", "1", "--set", "recipe.keep_last=1"});
    EXPECT_EQ(state_bytes("half"), kBlockElements * 4 + 2 * 8 * 4);
}

TEST_F(ModifiedRun, CountsUpdatesAndNotMicroBatches) {
    train("out", R"(["qema", "oscireset start=0.1 period=8 window=6"])",
          {"--until", "6", "--set", "train.micro_batch_size=2"});
    const SafetensorsFile state(run_ / "out/checkpoints/step-6/optimizer.safetensors");
    const auto counts = state.tensor("modifier_counts").span<const int32_t>();
    ASSERT_EQ(counts.size(), 16u);
    for (size_t layer = 0; layer < 8; ++layer) {
        EXPECT_EQ(counts[layer], 6) << layer;      // updates in the average
        EXPECT_EQ(counts[8 + layer], 5) << layer;  // a window that began after update 2
    }
}

// --- phases ---

class PhasedModifiers : public ModifiedRun {
  protected:
    void add(const std::string& phases) {
        write_text(run_ / "run.toml", read_text(run_ / "run.toml") + phases);
    }
};

TEST_F(PhasedModifiers, BeginAndEndWithThem) {
    train("plain", "[]");
    add("[[phase]]\nat_step = 5\nmodifiers = ['qema after=3']\n"
        "[[phase]]\nat_step = 15\nfprop = 'bf16'\nmodifiers = []\n");
    train("phased", "[]");
    EXPECT_EQ(first_difference("plain", "phased"), 9);  // updates 6 to 8 make the average
    EXPECT_EQ(lines("phased", "phase")[0].at("recipe").at("name"), "quartet2+qema");
    EXPECT_GT(state_bytes("phased"), 0u);
}

TEST_F(PhasedModifiers, NeedAQuantisedWeightInEachPhase) {
    add("[[phase]]\nat_step = 10\nfprop = 'bf16'\n");
    expect_refusal(run_.train({"--set", "recipe.modifiers=cage"}), 2,
                   {"cage needs a quantised fprop.w", "modifiers = []"});
}

// A state goes on through phases that have its modifier, and begins anew after one that has not.
TEST_F(PhasedModifiers, GoOnOrBeginAnew) {
    train("plain", "qema after=5");
    add("[[phase]]\nat_step = 10\nmodifiers = ['qema after=5']\n");
    train("again", "qema after=5");
    EXPECT_EQ(first_difference("plain", "again"), 0);
    add("[[phase]]\nat_step = 12\nmodifiers = []\n[[phase]]\nat_step = 14\nmodifiers = ['qema after=5']\n");
    train("anew", "qema after=5");
    EXPECT_EQ(first_difference("plain", "anew"), 13);
}

TEST_F(PhasedModifiers, AreResumedToTheBit) {
    add("[[phase]]\nat_step = 7\nmodifiers = ['qema after=4', 'oscireset start=0.4 period=8 window=5']\n"
        "[[phase]]\nat_step = 14\ndgrad = 'bf16'\n[[phase]]\nat_step = 17\nmodifiers = ['cage silence=0']\n");
    train("whole", "[]");
    for (const char* until : {"7", "11", "15"}) {
        const std::string out = std::string("parts") + until;
        train(out, "[]", {"--until", until});
        train(out, "[]", {"--resume"});
        expect_same_training(run_, "whole", out);
    }
}

TEST_F(ModifiedRun, IsNotResumedWithOthers) {
    train("out", "qema", {"--until", "10"});
    expect_refusal(run_.train({"--resume", "--set", "recipe.modifiers=qema after=11"}), 1,
                   {"another recipe"});
    expect_refusal(run_.train({"--resume"}), 1, {"another recipe"});
}

}  // namespace
}  // namespace nibble
