#include "cli/support.h"
#include "recipe/recipe.h"

namespace nibble {
namespace {

TEST(RecipesCommand, ListsEveryBuiltInRecipe) {
    const RunResult result = Workspace().nibble({"recipes"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    for (const Recipe& recipe : builtin_recipes()) {
        EXPECT_NE(("\n" + result.out).find("\n" + recipe.name + " "), std::string::npos) << recipe.name;
    }
}

TEST(RecipesCommand, ShowsTheTableOfARecipe) {
    const RunResult result = Workspace().nibble({"recipes", "show", "quartet2"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out, to_table(find_recipe("quartet2")));
    for (const std::string_view name : kOperandNames) {
        EXPECT_NE(result.out.find(name), std::string::npos) << name;
    }
}

TEST(RecipesCommand, PrintsTomlThatItReadsBack) {
    const Workspace work;
    for (const Recipe& recipe : builtin_recipes()) {
        const RunResult toml = work.nibble({"recipes", "show", recipe.name, "--toml"});
        ASSERT_EQ(toml.exit_code, 0) << toml.err;
        write_text(work / "mine.toml", toml.out);
        const RunResult again = work.nibble({"recipes", "show", "mine.toml", "--toml"});
        EXPECT_EQ(again.exit_code, 0) << again.err;
        EXPECT_EQ(again.out, toml.out);
    }
}

TEST(RecipesCommand, NamesTheNearestOfAnUnknownRecipe) {
    expect_refusal(Workspace().nibble({"recipes", "show", "quartet3"}), 2, {"quartet3", "quartet2"});
}

TEST(RecipesCommand, RefusesAFileThatIsNoRecipe) {
    const Workspace work;
    write_text(work / "bad.toml", "name = \"bad\"\n[fprop]\nx = \"nvfp5 1x16\"\n");
    expect_refusal(work.nibble({"recipes", "show", "bad.toml"}), 2, {"bad.toml"});
    expect_refusal(work.nibble({"recipes", "show", "missing.toml"}), 1, {"missing.toml"});
}

}  // namespace
}  // namespace nibble
