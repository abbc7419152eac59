// Which tokenizer.json files are read, and how others are refused.
#include "data/tokenizer_json.h"

#include <nlohmann/json.hpp>

#include "data/support.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

Json good() { return Json::parse(read_text(test::recorded("plain.json"))); }

std::string refusal_of(const Json& json) {
    return test::refusal([&] { Tokenizer::from_json(json.dump(), "T"); });
}

// What is refused after `change`, as JSON merge patch.
std::string refusal_after(const char* change) {
    Json json = good();
    json.merge_patch(Json::parse(change));
    return refusal_of(json);
}

TEST(TokenizerJson, ReadsAGoodFile) {
    EXPECT_EQ(refusal_of(good()), "accepted");
    const TokenizerDescription description = parse_tokenizer_json(good().dump(), "T");
    EXPECT_EQ(description.vocabulary.size(), 410u);
    EXPECT_EQ(description.vocabulary[0], "<|endoftext|>");
    EXPECT_EQ(description.vocabulary[1], "!");
    ASSERT_EQ(description.patterns.size(), 1u);
    EXPECT_EQ(description.patterns[0], kLlama3Pattern);
}

TEST(TokenizerJson, RefusesOtherKindsOfTokenizersByName) {
    test::expect_contains(refusal_after(R"({"model": {"type": "WordPiece"}})"), {"T", "WordPiece"});
    test::expect_contains(refusal_after(R"({"model": {"byte_fallback": true}})"), {"byte_fallback"});
    test::expect_contains(refusal_after(R"({"model": {"dropout": 0.1}})"), {"dropout"});
    test::expect_contains(refusal_after(R"({"model": {"end_of_word_suffix": "</w>"}})"),
                          {"end_of_word_suffix"});
    test::expect_contains(refusal_after(R"({"model": {"continuing_subword_prefix": "##"}})"),
                          {"continuing_subword_prefix"});
    test::expect_contains(refusal_after(R"({"normalizer": {"type": "NFC"}})"), {"normalizer"});
    test::expect_contains(refusal_after(R"({"pre_tokenizer": {"type": "Metaspace"}})"), {"Metaspace"});
    test::expect_contains(refusal_after(R"({"pre_tokenizer": null})"), {"pre_tokenizer"});
    test::expect_contains(
        refusal_after(R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true}})"),
        {"add_prefix_space"});
    test::expect_contains(refusal_after(R"({"pre_tokenizer": {"pretokenizers": []}})"), {"pre-tokeniser"});
    test::expect_contains(refusal_after(R"({"pre_tokenizer": {"pretokenizers": [{"type": "Digits"}]}})"),
                          {"Digits"});
    test::expect_contains(refusal_after(R"({"pre_tokenizer": {"pretokenizers": [{"type": "Split",
        "pattern": {"String": " "}, "behavior": "Isolated"}, {"type": "ByteLevel"}]}})"),
                          {"regular expressions"});
    test::expect_contains(refusal_after(R"({"pre_tokenizer": {"pretokenizers": [{"type": "Split",
        "pattern": {"Regex": " "}, "behavior": "MergedWithNext"}, {"type": "ByteLevel"}]}})"),
                          {"MergedWithNext"});
    test::expect_contains(refusal_after(R"({"pre_tokenizer": {"pretokenizers": [{"type": "Split",
        "pattern": {"Regex": "("}, "behavior": "Isolated"},
        {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]}})"),
                          {"regular expression"});
}

TEST(TokenizerJson, RefusesVocabulariesThatCannotBe) {
    test::expect_contains(refusal_after(R"({"model": {"vocab": {"a": 66}}})"), {"id 66"});  // two tokens
    test::expect_contains(refusal_after(R"({"model": {"vocab": {"a": -1}}})"), {"-1"});
    test::expect_contains(refusal_after(R"({"model": {"vocab": {"a": 1e300}}})"), {"1e+300"});
    test::expect_contains(refusal_after(R"({"model": {"vocab": {"a": 4294967361}}})"), {"4294967361"});
    test::expect_contains(refusal_after(R"({"model": {"vocab": {"a": null}}})"), {"256 bytes", "\"a\""});
    test::expect_contains(refusal_after(R"({"model": {"vocab": {"\u2581a": 5000}}})"), {"byte-level"});
    test::expect_contains(refusal_after(R"({"model": {"vocab": {"<|endoftext|>": 5000}}})"),
                          {"5000", "<|endoftext|>"});
    test::expect_contains(refusal_after(R"({"model": {"vocab": null}})"), {"vocab"});
    test::expect_contains(refusal_after(R"({"model": {"merges": null}})"), {"merges"});
    test::expect_contains(refusal_after(R"({"model": {"merges": ["a"]}})"), {"merge", "\"a\""});
    test::expect_contains(refusal_after(R"({"model": {"merges": ["a b c"]}})"), {"a b c"});
    test::expect_contains(refusal_after(R"({"model": {"merges": [["a"]]}})"), {"merge"});
    test::expect_contains(refusal_after(R"({"model": {"merges": [["z", "q"]]}})"), {"\"zq\""});
}

TEST(TokenizerJson, RefusesAddedTokensThatItDoesNotFindAsHuggingFaceDoes) {
    const auto with = [](const char* token) {
        Json json = good();
        json["added_tokens"].push_back(Json::parse(token));
        return refusal_of(json);
    };
    EXPECT_EQ(with(R"({"id": 410, "content": "<x>", "special": true})"), "accepted");
    test::expect_contains(with(R"({"id": 410, "content": "<x>", "lstrip": true})"), {"<x>", "lstrip"});
    test::expect_contains(with(R"({"id": 410, "content": "<x>", "single_word": true})"), {"single_word"});
    test::expect_contains(with(R"({"id": 5, "content": "<x>"})"), {"id 5"});
    test::expect_contains(with(R"({"id": 411, "content": "<x>"})"), {"<x>", "411", "410"});
    test::expect_contains(with(R"({"id": 5000, "content": "<|endoftext|>"})"), {"twice"});
    test::expect_contains(with(R"({"id": 5000, "content": ""})"), {"without text"});
    test::expect_contains(with(R"({"content": "<x>"})"), {"<x>", "id"});
    test::expect_contains(with("7"), {"added token"});
}

TEST(TokenizerJson, RefusesWhatIsNoJsonInOneShortLine) {
    for (const char* text : {"", "{", "[]", "7", "{\"a\"\n:\n}", "\xff\xfe", "{\"model\": 3}"}) {
        const std::string message = test::refusal([&] { Tokenizer::from_json(text, "T"); });
        EXPECT_NE(message, "accepted") << text;
        EXPECT_LT(message.size(), 300u);
    }
    EXPECT_NE(test::refusal([] { Tokenizer::from_json(std::string(1 << 20, '['), "T"); }), "accepted");
}

TEST(TokenizerJson, NamesTheMissingFile) {
    const test::Folder folder;
    test::expect_contains(test::refusal([&] { Tokenizer::load(folder.path()); }),
                          {folder.path().string(), "tokenizer train"});
    test::expect_contains(test::refusal([&] { Tokenizer::load(folder / "no"); }), {(folder / "no").string()});
}

// A damaged file is either refused or read as what it still says; it never crashes.
TEST(TokenizerJson, SurvivesAnyDamage) {
    const std::string json = read_text(test::recorded("llama3.json")),
                      text = read_text(test::recorded("corpus.txt"));
    int refused = 0;
    for (uint64_t seed = 0; seed < 600; ++seed) {
        refused += test::refusal([&] {
                       const Tokenizer tokenizer = Tokenizer::from_json(test::damaged(json, seed), "T");
                       tokenizer.decode(tokenizer.encode(text));
                   }) != "accepted";
    }
    EXPECT_GT(refused, 300);
}

// Damage to the values rather than to the text: other types, wild numbers, odd strings.
TEST(TokenizerJson, SurvivesAnyValueAnywhere) {
    const Json values[] = {nullptr,
                           true,
                           -1,
                           1e18,
                           3.5,
                           "",
                           "a",
                           "\u2581",
                           Json::array(),
                           Json::object(),
                           Json::array({1, "b"})};
    const Json whole = Json::parse(read_text(test::recorded("llama3.json")));
    const Json flat = whole.flatten();
    uint64_t i = 0;
    for (const auto& item : flat.items()) {
        if (test::random_word(3, i++) % 4 != 0) continue;
        for (Json::json_pointer at(item.key()); !at.empty(); at = at.parent_pointer()) {
            Json json = whole;
            json[at] = values[test::random_word(4, i++) % std::size(values)];
            refusal_of(json);
        }
    }
}

}  // namespace
}  // namespace nibble
