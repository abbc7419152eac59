#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/chain_model.h"
#include "io/io.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

// Token shards in shards/ of one document a line of `text`.
void make_shards(const Workspace& work, const std::string& text) {
    write_text(work / "text.txt", text);
    const RunResult made =
        work.nibble({"tokenize", "--tokenizer", "tokenizer", "--out", "shards", "text.txt"});
    require(made.exit_code == 0, "{}", made.err);
}

Json eval_json(const Workspace& work, std::vector<std::string> more) {
    more.insert(more.begin(), {"eval", "--model", "model", "--json"});
    const RunResult result = work.nibble(more);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return Json::parse(result.out, nullptr, false);
}

TEST(EvalCommand, MeasuresAUniformModelAsTheLogarithmOfItsVocabulary) {
    const Workspace work;
    make_chain_model(work, "model", "");
    make_shards(work, "the quick brown fox jumps over the lazy dog, and then over another one");
    const Json result = eval_json(work, {"--data", "shards"});
    const Json text = result["results"][0];
    const TokenShards shards(work / "shards");
    EXPECT_EQ(text["tokens"], shards.tokens() - 1);
    EXPECT_EQ(text["text_bytes"], shards.text_bytes() - 1);  // the first token is not predicted
    EXPECT_NEAR(text["loss"], std::log(257.0), 1e-5);
    EXPECT_NEAR(text["perplexity"], 257.0, 2e-3);
    const double bits = static_cast<double>(shards.tokens() - 1) * std::log2(257.0);
    EXPECT_NEAR(text["bits_per_byte"], bits / static_cast<double>(shards.text_bytes() - 1), 1e-4);
    EXPECT_EQ(result["recipe"], "bf16");
}

TEST(EvalCommand, DoesNotDependOnBatchSizeWindowsOrThreads) {
    const Workspace work;
    make_chain_model(work, "model", "abc defghijk");
    make_shards(work, "abc defghijk, abd, cba, kjihgfed cba, abc defghijk defg");
    const Json one = eval_json(work, {"--data", "shards", "--batch-size", "1", "--threads", "1"});
    const Json all = eval_json(work, {"--data", "shards", "--batch-size", "100", "--threads", "2"});
    EXPECT_NEAR(one["results"][0]["loss"], all["results"][0]["loss"], 1e-6);
    const Json short_windows = eval_json(work, {"--data", "shards", "--sequence-length", "3"});
    EXPECT_NEAR(one["results"][0]["loss"], short_windows["results"][0]["loss"], 1e-6);
}

TEST(EvalCommand, FindsTextThatTheModelExpectsLikely) {
    const Workspace work;
    make_chain_model(work, "model", "abc defghijk");
    make_shards(work, "abc defghijk");
    EXPECT_LT(eval_json(work, {"--data", "shards"})["results"][0]["loss"], 0.01);
    EXPECT_LT(eval_json(work, {"--data", "shards", "--recipe", "quartet2"})["results"][0]["loss"], 0.01);
}

TEST(EvalCommand, WritesTheLogitsBehindItsLoss) {
    const Workspace work;
    make_chain_model(work, "model", "abc defghijk");
    make_shards(work, "abc defghijk, abd");
    const Json text =
        eval_json(work, {"--data", "shards", "--sequence-length", "32", "--batch-size", "1", "--precision",
                         "fp32", "--logits", "logits.safetensors"})["results"][0];
    const SafetensorsFile file(work / "logits.safetensors");
    const Tensor tokens = file.tensor("tokens"), logits = file.tensor("logits");
    ASSERT_EQ(tokens.shape, Shape({1, 32}));
    ASSERT_EQ(logits.shape, Shape({1, 32, 257}));
    double loss = 0;
    const int64_t count = text["tokens"];
    for (int64_t i = 0; i < count; ++i) {
        const float* row = logits.as<const float>() + i * 257;
        double sum = 0;
        for (int v = 0; v < 257; ++v) sum += std::exp(double{row[v]});
        loss += std::log(sum) - row[tokens.as<const int32_t>()[i + 1]];
    }
    EXPECT_NEAR(loss / static_cast<double>(count), text["loss"], 1e-5);
}

TEST(EvalCommand, ScoresMultipleChoice) {
    const Workspace work;
    make_chain_model(work, "model", "abc defghijk");
    // The model expects "abc" to go on with " de". The long answer to the last question has one more
    // unexpected letter than the wrong one and many expected ones: it loses by the sum and wins per byte.
    write_text(work / "task.jsonl",
               "{\"context\": \"abc\", \"choices\": [\"xy\", \"de\"], \"answer\": 1}\n"
               "\n"
               "{\"question\": \"ab\", \"choices\": [\"c\", \"d\", \"e\"], \"answer\": 2}\n"
               "{\"context\": \"abc \", \"choices\": [\"x\", \"defghijzz\"], \"answer\": 1}\n");
    const Json task = eval_json(work, {"--task", "task.jsonl"})["results"][0];
    EXPECT_EQ(task["questions"], 3);
    EXPECT_EQ(task["file"], "task.jsonl");
    // "ab" + " c": all three choices begin with a blank that "b" does not expect, and then an unexpected
    // letter, but for "d", which follows a blank.
    EXPECT_NEAR(task["accuracy"], 1.0 / 3, 1e-9);
    EXPECT_NEAR(task["accuracy_per_byte"], 2.0 / 3, 1e-9);
}

TEST(EvalCommand, CutsContextsThatAreTooLongAtTheirBeginning) {
    const Workspace work;
    make_chain_model(work, "model", "abc defghijk");
    const std::string context = std::string(100, 'z') + "abc";
    write_text(work / "task.jsonl",
               Json{{"context", context}, {"choices", {"xy", "de"}}, {"answer", 1}}.dump());
    EXPECT_EQ(eval_json(work, {"--task", "task.jsonl"})["results"][0]["accuracy"], 1.0);
}

TEST(EvalCommand, PrintsPlainLinesWithoutJson) {
    const Workspace work;
    make_chain_model(work, "model", "");
    make_shards(work, "some text");
    const RunResult result = work.nibble({"eval", "--model", "model", "--data", "shards"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("loss 5.5491"), std::string::npos) << result.out;
    EXPECT_NE(result.out.find("bits per byte"), std::string::npos) << result.out;
}

TEST(EvalCommand, RefusesShardsOfAnotherTokenizer) {
    const Workspace work;
    make_chain_model(work, "model", "");
    make_shards(work, "some text, and some other text");
    ASSERT_EQ(
        work.nibble({"tokenizer", "train", "--vocab-size", "258", "--out", "other", "text.txt"}).exit_code,
        0);
    ASSERT_EQ(
        work.nibble({"tokenize", "--tokenizer", "other", "--out", "other-shards", "text.txt"}).exit_code, 0);
    expect_refusal(work.nibble({"eval", "--model", "model", "--data", "other-shards"}), 1,
                   {"other-shards", "tokenizer"});
}

TEST(EvalCommand, RefusesBadTasksInOneLine) {
    const Workspace work;
    make_chain_model(work, "model", "");
    const std::string good = "{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 0}\n";
    const auto refuse = [&](const std::string& text, const std::vector<std::string>& parts) {
        write_text(work / "task.jsonl", text);
        expect_refusal(work.nibble({"eval", "--model", "model", "--task", "task.jsonl"}), 1, parts);
    };
    refuse("", {"task.jsonl", "no question"});
    refuse(good + "{\"context\": \"a\"", {"task.jsonl, line 2", "not a JSON object"});
    refuse(good + "{\"context\": 1}", {"line 2", "context"});
    refuse(good + "{\"context\": \"a\", \"choices\": [\"b\"], \"answer\": 0}", {"line 2", "choices"});
    refuse(good + "{\"context\": \"a\", \"choices\": [\"b\", \"\"], \"answer\": 0}", {"line 2", "empty"});
    refuse(good + "{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 2}",
           {"line 2", "answer", "0 to 1"});
    refuse(good + "{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": -1}", {"line 2", "answer"});
}

TEST(EvalCommand, RefusesWrongUse) {
    const Workspace work;
    make_chain_model(work, "model", "");
    make_shards(work, "some text");
    expect_refusal(work.nibble({"eval", "--model", "model"}), 2, {"--data", "--task"});
    expect_refusal(work.nibble({"eval", "--model", "model", "--data", "none"}), 1, {"none"});
    expect_refusal(work.nibble({"eval", "--model", "model", "--data", "shards", "--recipe", "quarttet"}), 2,
                   {"quarttet", "quartet"});
    expect_refusal(work.nibble({"eval", "--model", "model", "--data", "shards", "--sequence-length", "33"}),
                   2, {"--sequence-length 33", "32 positions"});
    write_text(work / "model/model.safetensors", "truncated");
    expect_refusal(work.nibble({"eval", "--model", "model", "--data", "shards"}), 1,
                   {"model/model.safetensors"});
}

}  // namespace
}  // namespace nibble
