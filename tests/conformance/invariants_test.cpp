// No published invariant without a test or a reason: the list of invariants.json against
// the names of all tests, and docs/conformance.md against both.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>
#include <string>
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

// For each id, the tests whose names begin with it ("Suite.Name"; a name may begin with several).
std::map<std::string, std::vector<std::string>> named_tests() {
    std::map<std::string, std::vector<std::string>> tests;
    const std::regex test(R"((?:TEST|TEST_P|TEST_F|RC_GTEST_PROP)\((\w+),\s+((?:[TIL]\d\d[a-z]?_)+)(\w+))");
    for (const auto& entry : fs::recursive_directory_iterator(kSource / "tests")) {
        if (entry.path().extension() != ".cpp") continue;
        const std::string text = text_of(entry.path());
        for (std::sregex_iterator found(text.begin(), text.end(), test), end; found != end; ++found) {
            std::istringstream ids((*found)[2]);
            for (std::string id; std::getline(ids, id, '_');) {
                tests[id].push_back((*found)[1].str() + "." + (*found)[2].str() + (*found)[3].str());
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
