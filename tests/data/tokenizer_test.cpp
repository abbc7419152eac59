// Tokenizers against recordings of Hugging Face's package (scripts/record_tokenizer_cases.py).
#include "data/tokenizer.h"

#include <nlohmann/json.hpp>

#include "data/support.h"
#include "data/utf8.h"

namespace nibble {
namespace {

using Tokens = std::vector<int32_t>;

std::string from_hex(const std::string& hex) {
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2) {
        bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    }
    return bytes;
}

class RecordedTokenizer : public testing::TestWithParam<const char*> {
  protected:
    const Tokenizer tokenizer_ = Tokenizer::load(test::recorded(GetParam() + std::string(".json")));
    const nlohmann::json cases_ =
        nlohmann::json::parse(read_text(test::recorded("cases.json")))["cases"][GetParam()];
};

TEST_P(RecordedTokenizer, EncodesAsHuggingFaceDoes) {
    ASSERT_GT(cases_.size(), 40u);
    for (const auto& recorded : cases_) {
        const std::string text = from_hex(recorded["bytes"]);
        EXPECT_EQ(tokenizer_.encode(text), recorded["tokens"].get<Tokens>()) << text;
    }
}

TEST_P(RecordedTokenizer, LeavesSpecialTokensInTheTextOnRequest) {
    for (const auto& recorded : cases_) {
        const std::string text = from_hex(recorded["bytes"]);
        EXPECT_EQ(tokenizer_.encode(text, SpecialTokens::as_text), recorded["as_text"].get<Tokens>()) << text;
    }
}

TEST_P(RecordedTokenizer, DecodesToTheTextAgain) {
    for (const auto& recorded : cases_) {
        const std::string text = repair_utf8(from_hex(recorded["bytes"]));
        EXPECT_EQ(tokenizer_.decode(tokenizer_.encode(text)), text);
        EXPECT_EQ(tokenizer_.decode(tokenizer_.encode(text, SpecialTokens::as_text)), text);
        EXPECT_EQ(tokenizer_.decode(recorded["tokens"].get<Tokens>(), true),
                  recorded["decoded_without_special"].get<std::string>());
    }
}

TEST_P(RecordedTokenizer, EncodesTheSameWithAndWithoutAMemoryOfPieces) {
    Encoder encoder(tokenizer_);
    for (int pass = 0; pass < 2; ++pass) {
        for (const auto& recorded : cases_) {
            Tokens tokens = {-1};  // encode() appends
            encoder.encode(from_hex(recorded["bytes"]), SpecialTokens::parse, tokens);
            tokens.erase(tokens.begin());
            EXPECT_EQ(tokens, recorded["tokens"].get<Tokens>());
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Files, RecordedTokenizer, testing::Values("plain", "llama3", "gpt2", "digits"),
                         [](const auto& file) { return std::string(file.param); });

// The definition, word for word: the lowest-ranked pair that is there, at its leftmost place, until there is
// none.
Tokens merged_by_definition(const std::vector<Merge>& merges, Tokens tokens) {
    while (true) {
        size_t best = merges.size(), place = 0;
        for (size_t i = 0; i + 1 < tokens.size(); ++i) {
            for (size_t rank = 0; rank < best; ++rank) {
                if (merges[rank].left == tokens[i] && merges[rank].right == tokens[i + 1]) {
                    best = rank;
                    place = i;
                }
            }
        }
        if (best == merges.size()) return tokens;
        tokens[place] = merges[best].merged;
        tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(place) + 1);
    }
}

TEST(BytePairMerger, FollowsTheDefinition) {
    // Merges over three letters, so that they overlap in every way.
    const std::vector<Merge> merges = {{0, 1, 3}, {1, 0, 4}, {3, 3, 5},  {0, 0, 6},   {6, 0, 7},
                                       {3, 2, 8}, {4, 2, 9}, {2, 2, 10}, {10, 2, 11}, {5, 3, 12}};
    const MergeTable table(merges);
    BytePairMerger merger;
    for (uint64_t seed = 0; seed < 3000; ++seed) {
        Tokens tokens(seed % 40);
        for (size_t i = 0; i < tokens.size(); ++i)
            tokens[i] = static_cast<int32_t>(test::random_word(seed, i) % 3);
        const Tokens expected = merged_by_definition(merges, tokens);
        merger.merge(table, tokens);
        EXPECT_EQ(tokens, expected) << "seed " << seed;
    }
}

TEST(Tokenizer, TakesEndOfTextFromTheConfigurationOrTheUsualNames) {
    const std::string json = read_text(test::recorded("llama3.json"));
    const Tokenizer by_name = Tokenizer::from_json(json, "X");
    EXPECT_EQ(by_name.end_of_text(), by_name.find_added_token("<|endoftext|>"));
    const Tokenizer by_config = Tokenizer::from_json(json, "X", R"({"eos_token": "<|pad|>"})");
    EXPECT_EQ(by_config.end_of_text(), 401);
    const Tokenizer by_object =
        Tokenizer::from_json(json, "X", R"({"eos_token": {"content": "<|end_of_text|>"}})");
    EXPECT_EQ(by_object.end_of_text(), 402);
    EXPECT_NE(test::refusal([&] { Tokenizer::from_json(json, "X", R"({"eos_token": "<none>"})"); }),
              "accepted");
    EXPECT_NE(test::refusal([&] { Tokenizer::from_json(json, "X", R"({"eos_token": 7})"); }), "accepted");
    EXPECT_NE(test::refusal([&] { test::byte_tokenizer("<eot>").end_of_text(); }), "accepted");
}

TEST(Tokenizer, SavesTheVeryBytesItWasLoadedFrom) {
    const test::Folder folder;
    const std::string json = read_text(test::recorded("gpt2.json")),
                      config = R"({"eos_token": "<|endoftext|>", "more": 1})";
    Tokenizer::from_json(json, "X", config).save(folder.path());
    EXPECT_EQ(read_text(folder / "tokenizer.json"), json);
    EXPECT_EQ(read_text(folder / "tokenizer_config.json"), config);
}

TEST(Tokenizer, ReadsBackWhatItWrote) {
    const test::Folder folder;
    const Tokenizer made(parse_tokenizer_json(read_text(test::recorded("llama3.json")), "X"));
    made.save(folder.path());
    const Tokenizer again = Tokenizer::load(folder.path());
    EXPECT_EQ(again.vocabulary_hash(), made.vocabulary_hash());
    EXPECT_EQ(again.end_of_text(), made.end_of_text());
    const std::string text = read_text(test::recorded("corpus.txt")) + " universally <think><|pad|>";
    EXPECT_EQ(again.encode(text), made.encode(text));
}

TEST(Tokenizer, HashesWhatItsIdsMean) {
    const auto hash = [](const Tokenizer& tokenizer) { return tokenizer.vocabulary_hash(); };
    EXPECT_EQ(hash(test::byte_tokenizer()), hash(test::byte_tokenizer()));
    EXPECT_NE(hash(test::byte_tokenizer()), hash(test::byte_tokenizer("<|endofteXt|>")));
    EXPECT_NE(hash(test::byte_tokenizer()), hash(test::byte_tokenizer("<|endoftext|>", 258)));
    // docs/data.md gives this value as an example.
    EXPECT_EQ(hash(test::byte_tokenizer()), 0x55d8f3eb864f3e8eu);
}

TEST(Tokenizer, CountsTheBytesOfTextOfEachToken) {
    const Tokenizer tokenizer = Tokenizer::load(test::recorded("llama3.json"));
    const std::string text = "universally 🙂 neighbourhood<|pad|>";
    const std::vector<int32_t> bytes = tokenizer.text_bytes();
    int64_t sum = 0;
    for (int32_t token : tokenizer.encode(text)) sum += bytes[static_cast<size_t>(token)];
    EXPECT_EQ(sum, static_cast<int64_t>(text.size() - std::string("<|pad|>").size()));
}

TEST(Tokenizer, RefusesTokensOutsideItsVocabulary) {
    const Tokenizer tokenizer = test::byte_tokenizer();
    EXPECT_NE(test::refusal([&] { tokenizer.decode(Tokens{257}); }), "accepted");
    EXPECT_NE(test::refusal([&] { tokenizer.decode(Tokens{-1}); }), "accepted");
}

}  // namespace
}  // namespace nibble
