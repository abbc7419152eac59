#include "recipe/modifier.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "recipe/recipe.h"
#include "support/refusal.h"

namespace nibble {
namespace {

using test::refusal;

std::string refusal_of(std::string_view modifier) {
    return refusal([&] { parse_modifier(modifier); });
}

// What is said of a recipe with these modifiers.
std::string refusal_of(std::string_view recipe, const std::vector<std::string>& modifiers) {
    return refusal([&] { validate(with_modifiers(find_recipe(recipe), modifiers)); });
}

TEST(Modifier, PrintsEveryOptionAndReadsThemBack) {
    EXPECT_EQ(to_string(Modifier(Cage{})), "cage lambda=10 silence=0.8 ramp=linear");
    EXPECT_EQ(to_string(Modifier(Qema{})), "qema decay=0.999 after=10");
    EXPECT_EQ(to_string(Modifier(OsciReset{})), "oscireset start=0.64 period=200 window=50 threshold=8");
    EXPECT_EQ(to_string(Modifier(SmoothSwiglu{})), "smooth-swiglu strength=1 scale=power-of-two");
    for (const Modifier& modifier : {Modifier(Cage{5, 0.25, "constant"}), Modifier(Qema{0.99, 3}),
                                     Modifier(OsciReset{0, 20, 7, 16}), Modifier(SmoothSwiglu{0.5, "exact"})})
        EXPECT_EQ(parse_modifier(to_string(modifier)), modifier);
    EXPECT_EQ(parse_modifier("cage  lambda=5 "), Modifier(Cage{.lambda = 5}));
}

TEST(Modifier, NamesTheNearestOfAnUnknownNameOrOption) {
    EXPECT_EQ(refusal_of("cges"), "there is no modifier \"cges\"; did you mean \"cage\"?");
    EXPECT_EQ(refusal_of("cage lamda=3"), "cage has no option \"lamda\"; did you mean \"lambda\"?");
    EXPECT_EQ(refusal_of("cage 3"), "cage: \"3\" is no option=value");
}

TEST(Modifier, RefusesValuesOutsideTheirLimits) {
    EXPECT_EQ(refusal_of("cage silence=1"), "cage: silence must be from 0 to below 1, not 1");
    EXPECT_EQ(refusal_of("cage lambda=-1"), "cage: lambda must be from 0 to 1000000, not -1");
    EXPECT_EQ(refusal_of("cage lambda=nan"), "cage: lambda must be from 0 to 1000000, not nan");
    EXPECT_EQ(refusal_of("cage ramp=cosine"), "cage: ramp must be one of linear, constant, not \"cosine\"");
    EXPECT_EQ(refusal_of("qema after=1.5"), "qema: after must be a whole number, not \"1.5\"");
    EXPECT_EQ(refusal_of("oscireset period=50").substr(0, 28), "oscireset: a window of 50 st");
}

TEST(RecipeWithModifiers, ShowsALineForEach) {
    const Recipe recipe = with_modifiers(find_recipe("quartet2"), {"cage", "qema after=3"});
    EXPECT_EQ(recipe.name, "quartet2+cage+qema");
    EXPECT_NE(to_table(recipe).find("\nmodifier  cage lambda=10 silence=0.8 ramp=linear\n"
                                    "modifier  qema decay=0.999 after=3\n"),
              std::string::npos)
        << to_table(recipe);
}

TEST(RecipeWithModifiers, ComesBackFromToml) {
    const Recipe recipe = with_modifiers(find_recipe("tetrajet"), {"cage lambda=5 ramp=constant", "qema"});
    const std::string toml = to_toml(recipe);
    EXPECT_EQ(parse_recipe(toml, "mine.toml"), recipe) << toml;
    EXPECT_NE(toml.find("\n[[modifier]]\nname = \"cage\"\nlambda = 5\n"), std::string::npos) << toml;
}

TEST(RecipeWithModifiers, PointsAtWhatIsWrongInItsFile) {
    const std::string recipe = to_toml(find_recipe("quartet2"));
    ASSERT_EQ(std::count(recipe.begin(), recipe.end(), '\n'), 18);
    const auto refused = [&](const std::string& more) {
        return refusal([&] { parse_recipe(recipe + more, "mine.toml"); });
    };
    EXPECT_EQ(refused("[[modifier]]\nname = \"cag\"\n"),
              "mine.toml:20:8: there is no modifier \"cag\"; did you mean \"cage\"?");
    EXPECT_EQ(refused("[[modifier]]\nname = \"cage\"\nlambda = 'much'\n"),
              "mine.toml:21:10: cage: lambda must be a number, not \"much\"");
    EXPECT_EQ(refused("[modifier]\nname = \"cage\"\n").substr(0, 15), "mine.toml:19:1:");
    EXPECT_NE(refused("[[modifier]]\nlambda = 5\n").find("'name of a modifier' is missing"),
              std::string::npos);
}

TEST(RecipeWithModifiers, IsRefusedWhereTheWeightIsNotQuantised) {
    for (const char* name : {"cage", "qema", "oscireset"}) {
        const std::string message = refusal_of("bf16", {name});
        EXPECT_NE(message.find(std::string(name) + " needs a quantised fprop.w, which is bf16"),
                  std::string::npos)
            << message;
    }
    EXPECT_EQ(refusal_of("bf16", {"smooth-swiglu"}), "");
}

TEST(RecipeWithModifiers, IsRefusedWhereItCannotMeanAnything) {
    EXPECT_NE(refusal_of("quartet2", {"cage", "cage lambda=5"}).find("cage stands twice"), std::string::npos);
    EXPECT_NE(refusal_of("quartet", {"oscireset"}).find("rotation"), std::string::npos);
    EXPECT_NE(refusal_of("quartet2", {"smooth-swiglu", "cage"}).find("not combined"), std::string::npos);
    const Recipe coins = with_operand(find_recipe("quartet2"), "fprop.w", "nvfp4 1x16 round=stochastic");
    EXPECT_NE(refusal([&] { validate(with_modifiers(coins, {"cage"})); }).find("without coins"),
              std::string::npos);
    const Recipe wide = with_operand(find_recipe("fp4-all-the-way"), "fprop.w", "fp8:e4m3 tensor");
    EXPECT_NE(refusal([&] { validate(with_modifiers(wide, {"qema"})); }).find("neighbours"),
              std::string::npos);
    const Recipe delayed = with_operand(find_recipe("quartet2"), "fprop.x", "nvfp4 1x16 tensor=delayed");
    EXPECT_NE(refusal([&] { validate(with_modifiers(delayed, {"smooth-swiglu"})); }).find("tensor=delayed"),
              std::string::npos);
}

TEST(RecipeWithModifiers, KeepsOrDropsItsOwn) {
    const Recipe recipe = with_modifiers(find_recipe("quartet2"), {"cage"});
    EXPECT_EQ(with_modifiers(recipe, {"recipe"}), recipe);
    EXPECT_EQ(with_modifiers(recipe, {"recipe", "qema"}).modifiers.size(), 2u);
    EXPECT_TRUE(with_modifiers(recipe, {}).modifiers.empty());
    EXPECT_EQ(with_modifiers(recipe, {}).name, "quartet2+cage+modifiers=none");
}

}  // namespace
}  // namespace nibble
