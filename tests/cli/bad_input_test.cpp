// What a user can get wrong around a training run: one clear line, the right exit code, nothing left behind.
#include <gtest/gtest.h>

#include <limits>

#include "cli/tiny_run.h"
#include "io/safetensors.h"

namespace nibble {
namespace {

class BadInput : public testing::Test {
  protected:
    static void SetUpTestSuite() { shared_ = new TinyRun; }
    static void TearDownTestSuite() { delete shared_; }

    void refused(std::vector<std::string> arguments, int exit_code,
                 const std::vector<std::string>& parts) const {
        expect_refusal(shared_->train(std::move(arguments)), exit_code, parts);
        EXPECT_FALSE(fs::exists(*shared_ / "out"));
    }
    // A copy of a data folder to damage.
    fs::path copy_data(const std::string& name) const {
        fs::remove_all(*shared_ / name);
        fs::copy(*shared_ / "data", *shared_ / name, fs::copy_options::recursive);
        return *shared_ / name;
    }
    static TinyRun* shared_;
};
TinyRun* BadInput::shared_ = nullptr;

TEST_F(BadInput, InTheConfiguration) {
    refused({"--set", "optimizer.learning_rate=1"}, 2, {"unknown key \"optimizer.learning_rate\""});
    refused({"--set", "train.eval_evry=1"}, 2, {"did you mean \"train.eval_every\"?"});
    refused({"--set", "optimizer.lr=fast"}, 2, {"--set optimizer.lr"});
    refused({"--set", "recipe.name=quartet3"}, 2, {"quartet3", "quartet"});
    refused({"--set", "model.config="}, 2, {"model.config or model.init"});
    refused({"--until", "41"}, 2, {"--until 41", "40 steps"});
    refused({"--resume", "--overwrite"}, 2, {"exclude each other"});
    write_text(*shared_ / "wrong.toml", "name = 'x'\n[optimizer]\nlr = 1e-3\nlr_max = 2\n");
    expect_refusal(shared_->work().nibble({"train", "wrong.toml"}), 2,
                   {"wrong.toml:4: unknown key \"optimizer.lr_max\""});
    expect_refusal(shared_->work().nibble({"train", "missing.toml"}), 1, {"missing.toml"});
    expect_refusal(shared_->work().nibble({"train"}), 2, {"CONFIG.toml"});
}

TEST_F(BadInput, InTheShards) {
    refused({"--set", "data.train=nowhere", "--set", "data.tokenizer=tokenizer"}, 1, {"nowhere"});
    fs::resize_file(copy_data("cut") / "train/00000.shard", 300);
    refused({"--set", "data.train=cut/train"}, 1, {"cut/train/00000.shard"});
    const fs::path damaged = copy_data("flipped") / "train/00000.shard";
    std::string bytes = read_text(damaged);
    bytes[bytes.size() / 2] ^= 1;
    write_text(damaged, bytes);
    refused({"--set", "data.train=flipped/train"}, 1, {"flipped/train/00000.shard"});
    refused({"--set", "data.sequence_length=60", "--set", "data.validation=nowhere"}, 1, {"nowhere"});
}

TEST_F(BadInput, ShardsOfAnotherTokenizer) {
    const Workspace& work = shared_->work();
    TinyRun::expect_success(
        work.nibble({"tokenizer", "train", "--vocab-size", "290", "--out", "other", "train.txt"}));
    refused({"--set", "data.tokenizer=other"}, 1, {"other"});
    TinyRun::expect_success(
        work.nibble({"tokenize", "--tokenizer", "other", "--out", "other-data", "train.txt"}));
    refused({"--set", "data.validation=other-data"}, 1, {"other-data"});
}

TEST_F(BadInput, InTheModel) {
    std::string model = read_text(*shared_ / "model.json");
    write_text(*shared_ / "small.json", std::string(model).replace(model.find("300"), 3, "299"));
    refused({"--set", "model.config=small.json"}, 1, {"small.json has a vocabulary of 299", "need 300"});
    refused({"--set", "data.sequence_length=65"}, 1,
            {"data.sequence_length 65 exceeds the 64 positions of model.json"});
    // 21 trillion parameters: too many for any machine.
    model.replace(model.find("\"hidden_size\": 40"), 17, "\"hidden_size\": 64000000");
    model.replace(model.find("\"num_hidden_layers\": 2"), 22, "\"num_hidden_layers\": 1000");
    write_text(*shared_ / "huge.json", model);
    refused({"--set", "model.config=huge.json"}, 1, {"of memory", "smaller model"});
    refused({"--set", "model.config=", "--set", "model.init=nowhere"}, 1, {"nowhere"});
}

TEST_F(BadInput, ALossThatIsNotFiniteNamesStepAndTensor) {
    for (const char* recipe : {"bf16", "quartet2"}) {
        const std::string out = fmt::format("blown-{}", recipe);
        const RunResult result =
            shared_->train({"--set", "output.dir=" + out, "--set", fmt::format("recipe.name={}", recipe),
                            "--set", "optimizer.lr=1000", "--set", "optimizer.grad_clip=0", "--set",
                            "schedule.warmup=0", "--set", "optimizer.weight_decay=1000", "--set",
                            "checkpoint.every=1", "--set", "optimizer.decay=[\"matrices\",\"norms\"]"});
        EXPECT_EQ(result.exit_code, 1) << result.err;
        const std::string last = result.err.substr(result.err.rfind('\n', result.err.size() - 2) + 1);
        EXPECT_TRUE(last.starts_with("nibble: step ")) << last;
        const size_t named = last.find("the first tensor that is not finite: ");
        ASSERT_NE(named, std::string::npos) << last;
        EXPECT_NE(last.find("layers.", named), std::string::npos) << last;
        // What came before is whole.
        EXPECT_NO_THROW(newest_checkpoint(*shared_ / out / "checkpoints").value());
        EXPECT_FALSE(shared_->log(out).steps.empty());
        EXPECT_EQ(shared_->log(out).end.at("reason"), "failed");
    }
}

}  // namespace
}  // namespace nibble
