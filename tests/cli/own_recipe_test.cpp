// A method that is a TOML file and nothing else: the one of the guide docs/methods/your-own.md.
#include <gtest/gtest.h>

#include <algorithm>

#include "cli/tiny_run.h"
#include "recipe/recipe.h"

namespace nibble {
namespace {

// The first block of the guide that is marked as TOML.
std::string table_of_the_guide() {
    const std::string page = read_text(fs::path(NIBBLE_SOURCE_DIR) / "docs/methods/your-own.md");
    const std::string opening = "```toml\n";
    const size_t begin = page.find(opening) + opening.size();
    return page.substr(begin, page.find("```", begin) - begin);
}

bool has_same_operands(const Recipe& a, const Recipe& b) {
    return std::all_of(kOperandNames.begin(), kOperandNames.end(),
                       [&](std::string_view name) { return operand(a, name) == operand(b, name); });
}

TEST(OwnRecipe, OfTheGuideIsNoBuiltInOne) {
    const Recipe own = parse_recipe(table_of_the_guide(), "your-own.md");
    for (const Recipe& builtin : builtin_recipes())
        EXPECT_FALSE(has_same_operands(own, builtin)) << builtin.name;
}

TEST(OwnRecipe, TrainsFromItsFile) {
    const TinyRun run;
    write_text(run / "mine.toml", table_of_the_guide());
    const RunResult result = run.train({"--set", "recipe.file=mine.toml"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const RunLog log = run.log("out");
    EXPECT_EQ(log.header.at("recipe").at("name"), "mine");
    EXPECT_LT(log.steps.back().loss, log.steps.front().loss - 1.0);
}

}  // namespace
}  // namespace nibble
