// nibble tokenizer train, nibble tokenize, nibble data info: from text to shards and every way to fail.
#include "cli/support.h"
#include "data/data.h"

namespace nibble {
namespace {

class TextCommands : public testing::Test {
  protected:
    TextCommands() {
        std::string text;
        for (int i = 0; i < 3000; ++i)
            text += fmt::format("Line {} of a text with some words in it.\n", i * 37 % 1000);
        write_text(work_ / "a.txt", text);
    }
    RunResult train(const std::string& size = "300", const std::string& out = "tok") const {
        return work_.nibble({"tokenizer", "train", "--vocab-size", size, "--out", out, "a.txt"});
    }
    Workspace work_;
};

TEST_F(TextCommands, GoFromTextToShards) {
    const RunResult trained = train();
    ASSERT_EQ(trained.exit_code, 0) << trained.err;
    EXPECT_EQ(Tokenizer::load(work_ / "tok").vocabulary_size(), 300);

    const RunResult tokenized = work_.nibble(
        {"tokenize", "--tokenizer", "tok", "--out", "data", "--validation-fraction", "0.1", "a.txt"});
    ASSERT_EQ(tokenized.exit_code, 0) << tokenized.err;
    const TokenShards train_data(work_ / "data/train"), validation(work_ / "data/validation");
    EXPECT_NE(tokenized.out.find(fmt::format("data/train: {} tokens", train_data.tokens())),
              std::string::npos)
        << tokenized.out;
    EXPECT_EQ(train_data.text_bytes() + validation.text_bytes(),
              static_cast<int64_t>(fs::file_size(work_ / "a.txt")));

    const RunResult info = work_.nibble({"data", "info", "data/train", "--verify"});
    EXPECT_EQ(info.exit_code, 0) << info.err;
    EXPECT_NE(info.out.find(std::to_string(train_data.tokens())), std::string::npos) << info.out;
    EXPECT_NE(info.out.find("verified"), std::string::npos) << info.out;
    EXPECT_EQ(work_.nibble({"data", "info", "data/train/00000.shard"}).exit_code, 0);
}

TEST_F(TextCommands, RefuseAVocabularyThatTheTextDoesNotAllow) {
    expect_refusal(train("100000"), 1, {"100000", "at most"});
    expect_refusal(train("200"), 2, {"200", "257"});
    EXPECT_FALSE(fs::exists(work_ / "tok/tokenizer.json"));
}

TEST_F(TextCommands, RefuseEmptyAndMissingText) {
    write_text(work_ / "empty.txt", "");
    expect_refusal(work_.nibble({"tokenizer", "train", "--vocab-size", "300", "--out", "x", "empty.txt"}), 1,
                   {"no text"});
    expect_refusal(work_.nibble({"tokenizer", "train", "--vocab-size", "300", "--out", "x", "none.txt"}), 1,
                   {"none.txt"});
    ASSERT_EQ(train().exit_code, 0);
    expect_refusal(work_.nibble({"tokenize", "--tokenizer", "tok", "--out", "x", "empty.txt"}), 1,
                   {"no text"});
    expect_refusal(work_.nibble({"tokenize", "--tokenizer", "none", "--out", "x", "a.txt"}), 1,
                   {"none", "tokenizer train"});
    expect_refusal(work_.nibble({"data", "info", "none"}), 1, {"none", "nibble tokenize"});
    EXPECT_FALSE(fs::exists(work_ / "x"));
}

TEST_F(TextCommands, KeepWhatIsThereAlready) {
    ASSERT_EQ(train().exit_code, 0);
    const std::string before = read_text(work_ / "tok/tokenizer.json");
    expect_refusal(train("310"), 1, {"tokenizer.json", "exists already"});
    EXPECT_EQ(read_text(work_ / "tok/tokenizer.json"), before);
}

TEST_F(TextCommands, NoticeADamagedShardAndAShardOfAnotherTokenizer) {
    ASSERT_EQ(train().exit_code, 0);
    ASSERT_EQ(train("310", "tok2").exit_code, 0);
    ASSERT_EQ(work_.nibble({"tokenize", "--tokenizer", "tok", "--out", "d", "a.txt"}).exit_code, 0);
    std::string shard = read_text(work_ / "d/00000.shard");
    shard[500] = static_cast<char>(shard[500] ^ 1);
    write_text(work_ / "d/00000.shard", shard);
    EXPECT_EQ(work_.nibble({"data", "info", "d"}).exit_code, 0);
    expect_refusal(work_.nibble({"data", "info", "d", "--verify"}), 1, {"00000.shard", "checksum"});
    fs::copy_file(work_ / "tok2/tokenizer.json", work_ / "d/tokenizer.json",
                  fs::copy_options::overwrite_existing);
    expect_refusal(work_.nibble({"data", "info", "d"}), 1, {"another tokenizer"});
    write_text(work_ / "d/00000.shard", shard.substr(0, 1000));
    expect_refusal(work_.nibble({"data", "info", "d"}), 1, {"00000.shard", "truncated"});
}

}  // namespace
}  // namespace nibble
