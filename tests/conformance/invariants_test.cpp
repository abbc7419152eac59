// No published invariant without a test or a reason: the list of invariants.json against
// the names of all tests, and docs/conformance.md against both.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {
namespace {

namespace fs = std::filesystem;

const fs::path kSource = NIBBLE_SOURCE_DIR;

std::string text_of(const fs::path& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
}

// The invariants of the list, by id.
std::map<std::string, nlohmann::json> listed() {
    std::map<std::string, nlohmann::json> all;
    const auto list = nlohmann::json::parse(text_of(kSource / "tests/conformance/invariants.json"));
    for (const auto& source : list.at("sources")) {
        for (const auto& invariant : source.at("invariants")) {
            const std::string id = invariant.at("id");
            EXPECT_TRUE(all.emplace(id, invariant).second) << id << " is listed twice";
        }
    }
    return all;
}

// "T07", "L12b".
bool is_id(std::string_view word) {
    const auto is_digit = [](char c) { return '0' <= c && c <= '9'; };
    return (word.size() == 3 || (word.size() == 4 && 'a' <= word[3] && word[3] <= 'z')) &&
           std::string_view("TIL").find(word[0]) != std::string_view::npos && is_digit(word[1]) &&
           is_digit(word[2]);
}

// For each id, the tests whose names begin with it ("Suite.Name"; a name may begin with several).
std::map<std::string, std::vector<std::string>> named_tests() {
    std::map<std::string, std::vector<std::string>> tests;
    for (const auto& entry : fs::recursive_directory_iterator(kSource / "tests")) {
        if (entry.path().extension() != ".cpp") continue;
        const std::string text = text_of(entry.path());
        for (const std::string macro : {"TEST(", "TEST_P(", "TEST_F(", "RC_GTEST_PROP("}) {
            for (size_t at = text.find(macro); at != std::string::npos; at = text.find(macro, at)) {
                at += macro.size();
                const size_t comma = text.find(',', at);
                const size_t begin = text.find_first_not_of(" \n", comma + 1);
                const std::string name = text.substr(begin, text.find_first_of(",) \n", begin) - begin);
                const std::string full = text.substr(at, comma - at) + "." + name;
                std::istringstream words(name);
                for (std::string word; std::getline(words, word, '_') && is_id(word);)
                    tests[word].push_back(full);
            }
        }
    }
    return tests;
}

TEST(Invariants, HaveATestOrAReason) {
    const auto tests = named_tests();
    for (const auto& [id, invariant] : listed()) {
        const bool has_test = tests.count(id) > 0, is_exempt = invariant.contains("exempt");
        EXPECT_TRUE(has_test || is_exempt) << id << " has neither";
        EXPECT_FALSE(has_test && is_exempt)
            << id << " is exempt, but " << tests.at(id).front() << " checks it";
        EXPECT_TRUE(is_exempt || invariant.contains("published")) << id;
    }
}

TEST(Invariants, OfWhichTestsAreNamedAreListed) {
    const auto invariants = listed();
    for (const auto& [id, tests] : named_tests())
        EXPECT_EQ(invariants.count(id), 1u) << id << " " << tests[0];
}

TEST(Invariants, AreAllOnThePageWithTheirTests) {
    const std::string page = text_of(kSource / "docs/conformance.md");
    for (const auto& [id, invariant] : listed()) {
        EXPECT_NE(page.find("| " + id + " |"), std::string::npos) << id << ": run make conformance";
    }
    for (const auto& [id, tests] : named_tests()) {
        for (const std::string& test : tests) {
            EXPECT_NE(page.find("`" + test + "`"), std::string::npos) << test << ": run make conformance";
        }
    }
}

}  // namespace
}  // namespace nibble
