// A folder with everything that a training run of seconds needs: a text, its tokenizer and shards, a model of
// two small blocks, and a configuration, all made through the program itself.
#pragma once

#include <nlohmann/json.hpp>

#include "cli/support.h"
#include "numerics/philox.h"
#include "train/checkpoint.h"
#include "train/metrics_log.h"

namespace nibble {

class TinyRun {
  public:
    TinyRun() {
        write_text(work_ / "train.txt", text(1, 4000));
        write_text(work_ / "validation.txt", text(2, 400));
        expect_success(
            work_.nibble({"tokenizer", "train", "--vocab-size", "300", "--out", "tokenizer", "train.txt"}));
        for (const std::string part : {"train", "validation"})
            expect_success(work_.nibble(
                {"tokenize", "--tokenizer", "tokenizer", "--out", "data/" + part, part + ".txt"}));
        // Sizes that are no multiples of any quantiser's block, so that tails are padded.
        write_text(work_ / "model.json", R"({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 40, "intermediate_size": 72,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
            "vocab_size": 300, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": true, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false})");
        write_text(work_ / "run.toml", R"(
            name = "tiny"
            [model]
            config = "model.json"
            [data]
            train = "data/train"
            validation = "data/validation"
            sequence_length = 24
            [train]
            steps = 40
            batch_size = 6
            micro_batch_size = 3
            eval_every = 15
            eval_batches = 2
            [optimizer]
            lr = 3e-3
            [checkpoint]
            every = 10
            keep = 2
            [output]
            dir = "out"
        )");
    }

    // One thread, unless the arguments say otherwise: tests run beside each other.
    RunResult train(std::vector<std::string> arguments) const {
        arguments.insert(arguments.begin(), {"train", "run.toml"});
        if (std::find(arguments.begin(), arguments.end(), "--threads") == arguments.end())
            arguments.insert(arguments.end(), {"--threads", "1"});
        // Threads that wait for each other sleep: on a busy machine they would take each other's core.
        return work_.nibble(arguments, {"OMP_WAIT_POLICY=passive"});
    }
    static void expect_success(const RunResult& result) { EXPECT_EQ(result.exit_code, 0) << result.err; }

    const Workspace& work() const { return work_; }
    fs::path operator/(const std::string& name) const { return work_ / name; }
    RunLog log(const std::string& out) const { return read_run_log(work_ / out / "log.jsonl"); }

  private:
    // Words of a small made-up language, in an order with some regularity.
    static std::string text(uint64_t seed, uint64_t words) {
        std::string result;
        uint32_t word = 0;
        for (uint64_t i = 0; i < words; ++i) {
            const uint32_t random = philox_draw(seed, Purpose::sampling, i).word[0];
            word = random % 3 == 0 ? random / 3 % 97 : (word * 7 + random / 3 % 3) % 97;
            const std::string syllables[] = {"ka", "lo", "mi", "ner", "tu", "sha", "ve", "pon", "ri", "da"};
            result += syllables[word % 10] + syllables[word / 10] + (random % 11 == 0 ? ".\n" : " ");
        }
        return result;
    }

    Workspace work_;
};

inline std::string file_text(const fs::path& path) { return read_text(path); }

// Everything that a run's mathematics decides: losses, gradients and weights to the last bit, but no times.
inline void expect_same_training(const TinyRun& run, const std::string& a, const std::string& b) {
    const RunLog first = run.log(a), second = run.log(b);
    ASSERT_EQ(first.steps.size(), second.steps.size());
    for (size_t i = 0; i < first.steps.size(); ++i) {
        EXPECT_EQ(first.steps[i].step, second.steps[i].step);
        EXPECT_EQ(first.steps[i].loss, second.steps[i].loss) << "step " << first.steps[i].step;
        EXPECT_EQ(first.steps[i].grad_norm, second.steps[i].grad_norm) << "step " << first.steps[i].step;
        EXPECT_EQ(first.steps[i].lr, second.steps[i].lr) << "step " << first.steps[i].step;
    }
    ASSERT_EQ(first.evals.size(), second.evals.size());
    for (size_t i = 0; i < first.evals.size(); ++i) {
        EXPECT_EQ(first.evals[i].step, second.evals[i].step);
        EXPECT_EQ(first.evals[i].loss, second.evals[i].loss) << "evaluation at step " << first.evals[i].step;
    }
    EXPECT_EQ(file_text(run / a / "model/model.safetensors"), file_text(run / b / "model/model.safetensors"));
}

}  // namespace nibble
