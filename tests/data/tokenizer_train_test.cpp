#include "data/tokenizer_train.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "data/support.h"

namespace nibble {
namespace {

Tokenizer trained(const std::vector<std::string>& texts, int64_t size, int64_t min_frequency = 2) {
    TokenizerTrainOptions options;
    options.vocabulary_size = size;
    options.min_frequency = min_frequency;
    TokenizerTrainer trainer(options);
    trainer.add(texts);
    return trainer.train();
}

std::vector<std::string> corpus() { return {read_text(test::recorded("corpus.txt"))}; }

TEST(TokenizerTrainer, WritesTheFileOfHuggingFacesTrainer) {
    const test::Folder folder;
    trained(corpus(), 410).save(folder.path());
    auto ours = nlohmann::json::parse(read_text(folder / "tokenizer.json"));
    auto theirs = nlohmann::json::parse(read_text(test::recorded("plain.json")));
    for (auto& merge : theirs["model"]["merges"]) {
        merge = merge[0].get<std::string>() + ' ' + merge[1].get<std::string>();
    }
    EXPECT_EQ(ours, theirs);
}

TEST(TokenizerTrainer, BreaksTiesByTheSmallerIds) {
    // Three times "ab", "cd" and then " ab"; twice "ef", "gh" and others.
    const Tokenizer tokenizer = trained({"cd ab cd ab gh ef ab cd gh ef"}, 257 + 4);
    const auto text = [&](int32_t id) { return std::string(tokenizer.bytes_of(id)); };
    EXPECT_EQ(text(257), "ab");
    EXPECT_EQ(text(258), "cd");
    EXPECT_EQ(text(259), " ab");
    EXPECT_EQ(text(260), "ef");
}

TEST(TokenizerTrainer, DependsNotOnTheOrderOfTextsNorOnThreads) {
    std::vector<std::string> texts;
    const std::string whole = corpus()[0];
    for (size_t at = 0; at < whole.size();) {
        const size_t end = std::min(whole.find('\n', at), whole.size() - 1) + 1;
        texts.push_back(whole.substr(at, end - at));
        at = end;
    }
    const int threads = thread_count();
    set_thread_count(1);
    const Tokenizer straight = trained(texts, 380);
    std::reverse(texts.begin(), texts.end());
    set_thread_count(3);
    const Tokenizer reversed = trained(texts, 380);
    set_thread_count(threads);
    EXPECT_EQ(straight.vocabulary_hash(), reversed.vocabulary_hash());
    EXPECT_EQ(straight.encode(whole), reversed.encode(whole));
}

TEST(TokenizerTrainer, SaysTheLargestVocabularyThatTheTextAllows) {
    const std::string message = test::refusal([] { trained({"abab abab"}, 1000); });
    // ab, then abab: two merges.
    test::expect_contains(message, {"1000", "at most 259"});
    EXPECT_EQ(trained({"abab abab"}, 259).vocabulary_size(), 259);
    EXPECT_EQ(test::refusal([] { trained({"abab abab"}, 260); }).find("at most 259") == std::string::npos,
              false);
    // The pair of a single occurrence counts too, on request: " abab".
    EXPECT_EQ(trained({"abab abab"}, 260, 1).vocabulary_size(), 260);
}

TEST(TokenizerTrainer, RefusesNoTextAndTooSmallAVocabulary) {
    EXPECT_NE(test::refusal([] { trained({}, 300); }), "accepted");
    EXPECT_NE(test::refusal([] { trained({""}, 300); }), "accepted");
    EXPECT_THROW(trained(corpus(), 256), UsageError);
    EXPECT_EQ(trained(corpus(), 257).vocabulary_size(), 257);
}

TEST(TokenizerTrainer, ManagesLongRepeatsAndLongPieces) {
    const Tokenizer tokenizer = trained({std::string(20000, 'a') + " " + std::string(9000, 'b')}, 275);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode("aaaaaaaaaab")), "aaaaaaaaaab");
    EXPECT_LT(tokenizer.encode(std::string(1000, 'a')).size(), 20u);
}

// A slow trainer that counts all pairs anew for each merge.
std::vector<Merge> merges_by_definition(const std::vector<std::string>& words, size_t count) {
    std::vector<std::vector<int32_t>> tokens;
    for (const std::string& word : words) {
        auto& row = tokens.emplace_back();
        for (char c : word) row.push_back(c);
    }
    std::vector<Merge> merges;
    while (merges.size() < count) {
        std::vector<std::pair<std::pair<int32_t, int32_t>, int64_t>> pairs;
        for (const auto& row : tokens) {
            for (size_t i = 0; i + 1 < row.size(); ++i) {
                const std::pair pair(row[i], row[i + 1]);
                const auto found =
                    std::find_if(pairs.begin(), pairs.end(), [&](const auto& p) { return p.first == pair; });
                if (found == pairs.end())
                    pairs.push_back({pair, 1});
                else
                    ++found->second;
            }
        }
        std::sort(pairs.begin(), pairs.end(), [](const auto& a, const auto& b) {
            return a.second != b.second ? a.second > b.second : a.first < b.first;
        });
        if (pairs.empty() || pairs[0].second < 2) break;
        const auto [left, right] = pairs[0].first;
        const auto merged = static_cast<int32_t>(1000 + merges.size());
        merges.push_back({left, right, merged});
        for (auto& row : tokens) {
            std::vector<int32_t> next;
            for (size_t i = 0; i < row.size(); ++i) {
                const bool here = i + 1 < row.size() && row[i] == left && row[i + 1] == right;
                next.push_back(here ? merged : row[i]);
                i += here;
            }
            row = next;
        }
    }
    return merges;
}

TEST(TokenizerTrainer, FollowsTheDefinition) {
    for (uint64_t seed = 0; seed < 60; ++seed) {
        std::vector<std::string> words;
        std::string text;
        for (uint64_t word = 0; word < 30; ++word) {
            std::string letters;
            for (uint64_t i = 0; i < 1 + test::random_word(seed, word) % 12; ++i) {
                letters.push_back(static_cast<char>('a' + test::random_word(seed, 1000 + word * 20 + i) % 3));
            }
            words.push_back(letters);
            text += letters + "1";  // a digit is a piece of its own
        }
        const auto expected = merges_by_definition(words, 25);
        const Tokenizer tokenizer = trained({text}, 257 + static_cast<int64_t>(expected.size()));
        const auto& merges = tokenizer.description().merges;
        // Pieces of the same bytes are one token, which the definition above does not know: compare up to
        // there.
        for (size_t i = 0; i < merges.size() && merges[i].merged == static_cast<int32_t>(257 + i); ++i) {
            const auto id = [](int32_t token) {
                return token >= 257 ? token - 257 + 1000 : token - 65 + 'a';
            };
            ASSERT_EQ(id(merges[i].left), expected[i].left) << "seed " << seed << ", merge " << i;
            ASSERT_EQ(id(merges[i].right), expected[i].right) << "seed " << seed << ", merge " << i;
        }
    }
}

}  // namespace
}  // namespace nibble
