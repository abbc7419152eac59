#include "data/tokenize.h"

#include <map>

#include "data/support.h"

namespace nibble {
namespace {

std::string decoded(const fs::path& folder) {
    const TokenShards data(folder);
    std::vector<int32_t> tokens(static_cast<size_t>(data.tokens()));
    data.copy(0, tokens);
    return Tokenizer::load(folder).decode(tokens);
}

std::map<std::string, std::string> files_of(const fs::path& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
        if (entry.is_regular_file())
            files[fs::relative(entry.path(), folder).string()] = read_text(entry.path());
    }
    return files;
}

// JSON lines of `count` short documents, all different.
fs::path write_lines(const test::Folder& folder, int count) {
    std::string lines;
    for (int i = 0; i < count; ++i)
        lines += fmt::format("{{\"text\": \"document {} of many words {}\"}}\n", i, i * i);
    write_text(folder / "lines.jsonl", lines);
    return folder / "lines.jsonl";
}

TEST(Tokenize, WritesDocumentsInOrderEachWithItsEnd) {
    const test::Folder folder;
    write_text(folder / "a.txt", "first text");
    write_text(folder / "b.jsonl",
               "{\"text\": \"second\"}\n{\"text\": \"\"}\n{\"text\": \"third <|endoftext|>\"}\n");
    const auto result =
        tokenize_files(test::byte_tokenizer(), {folder / "a.txt", folder / "b.jsonl"}, folder / "out", {});
    EXPECT_EQ(decoded(folder / "out"),
              "first text<|endoftext|>second<|endoftext|>third <|endoftext|><|endoftext|>");
    EXPECT_EQ(result.train.documents, 3);
    EXPECT_EQ(result.train.text_bytes, 35);
    EXPECT_EQ(result.train.tokens, 38);  // the text of an end-of-text in a document is text
    EXPECT_EQ(result.validation.documents, 0);
}

TEST(Tokenize, ParsesSpecialTokensOnRequest) {
    const test::Folder folder;
    write_text(folder / "a.txt", "one<|endoftext|>two");
    TokenizeOptions options;
    options.special = SpecialTokens::parse;
    EXPECT_EQ(
        tokenize_files(test::byte_tokenizer(), {folder / "a.txt"}, folder / "out", options).train.tokens, 8);
}

TEST(Tokenize, WritesTheSameBytesWithAnyNumberOfThreads) {
    const test::Folder folder;
    const fs::path lines = write_lines(folder, 3000);
    const Tokenizer tokenizer = Tokenizer::load(test::recorded("plain.json"));
    TokenizeOptions options;
    options.validation_fraction = 0.1;
    options.tokens_per_shard = 5000;
    const int threads = thread_count();
    for (int count : {1, 2, 3}) {
        set_thread_count(count);
        tokenize_files(tokenizer, {lines}, folder / std::to_string(count), options);
    }
    set_thread_count(threads);
    EXPECT_GT(files_of(folder / "1").size(), 6u);
    EXPECT_EQ(files_of(folder / "1"), files_of(folder / "2"));
    EXPECT_EQ(files_of(folder / "1"), files_of(folder / "3"));
}

TEST(Tokenize, HoldsOutShortDocumentsWholeByTheirText) {
    const test::Folder folder;
    const fs::path lines = write_lines(folder, 4000);
    TokenizeOptions options;
    options.validation_fraction = 0.1;
    const auto result = tokenize_files(test::byte_tokenizer(), {lines}, folder / "out", options);
    EXPECT_EQ(result.train.documents + result.validation.documents, 4000);
    EXPECT_NEAR(static_cast<double>(result.validation.documents), 400, 80);
    const std::string validation = decoded(folder / "out/validation");
    const std::string train = decoded(folder / "out/train");
    EXPECT_EQ(validation.size() + train.size(),
              4000 * 13u + static_cast<size_t>(result.train.text_bytes + result.validation.text_bytes));
    EXPECT_TRUE(validation.starts_with("document "));
    EXPECT_EQ(training_prefix("same text", 0.5), training_prefix(std::string("same text"), 0.5));
}

TEST(Tokenize, HoldsOutTheEndOfALongDocumentFromALineOn) {
    std::string document;
    for (int i = 0; document.size() < 200'000; ++i) document += fmt::format("line {}\n", i);
    for (double fraction : {0.01, 0.05, 0.5}) {
        const size_t cut = training_prefix(document, fraction);
        EXPECT_EQ(document[cut - 1], '\n');
        const double part = static_cast<double>(document.size() - cut) / static_cast<double>(document.size());
        EXPECT_NEAR(part, fraction, 0.001);
    }
    EXPECT_EQ(training_prefix(document, 0), document.size());
    // Without line ends, at a character.
    std::string wide;
    while (wide.size() < 100'000) wide += "\xf0\x9f\x99\x82";
    EXPECT_EQ(training_prefix(wide, 0.0501) % 4, 0u);
    EXPECT_LT(training_prefix(wide, 0.05), wide.size());
}

TEST(Tokenize, KeepsTheTokenizerBesideTheShards) {
    const test::Folder folder;
    write_text(folder / "a.txt", "text");
    const Tokenizer tokenizer = Tokenizer::load(test::recorded("gpt2.json"));
    tokenize_files(tokenizer, {folder / "a.txt"}, folder / "out", {});
    EXPECT_EQ(read_text(folder / "out/tokenizer.json"), read_text(test::recorded("gpt2.json")));
    EXPECT_NO_THROW(TokenShards(folder / "out").require_tokenizer(tokenizer, "T"));
}

TEST(Tokenize, LeavesNothingBehindWhenItFails) {
    const test::Folder folder;
    write_text(folder / "a.jsonl", "{\"text\": \"fine\"}\nbroken\n");
    write_text(folder / "empty.txt", "");
    TokenizeOptions split;
    split.validation_fraction = 0.5;
    for (const TokenizeOptions& options : {TokenizeOptions{}, split}) {
        for (const char* name : {"a.jsonl", "empty.txt", "none.txt"}) {
            EXPECT_NE(test::refusal([&] {
                          tokenize_files(test::byte_tokenizer(), {folder / name}, folder / "out", options);
                      }),
                      "accepted");
            EXPECT_TRUE(!fs::exists(folder / "out") || fs::is_empty(folder / "out"));
        }
    }
}

TEST(Tokenize, DoesNotTouchShardsThatAreThere) {
    const test::Folder folder;
    write_text(folder / "a.txt", "text");
    tokenize_files(test::byte_tokenizer(), {folder / "a.txt"}, folder / "out", {});
    const auto before = files_of(folder / "out");
    test::expect_contains(test::refusal([&] {
                              tokenize_files(test::byte_tokenizer(), {folder / "a.txt"}, folder / "out", {});
                          }),
                          {"exists"});
    EXPECT_EQ(files_of(folder / "out"), before);
}

TEST(Tokenize, SaysWhenASideWouldBeEmpty) {
    const test::Folder folder;
    write_text(folder / "a.txt", "text");
    TokenizeOptions options;
    options.validation_fraction = 0.05;
    test::expect_contains(
        test::refusal(
            [&] { tokenize_files(test::byte_tokenizer(), {folder / "a.txt"}, folder / "out", options); }),
        {"0.05", "validation"});
}

}  // namespace
}  // namespace nibble
