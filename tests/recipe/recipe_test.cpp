#include "recipe/recipe.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/refusal.h"

namespace nibble {
namespace {

using test::refusal;

const fs::path kSource = NIBBLE_SOURCE_DIR;

std::string refusal_of(const Recipe& recipe) {
    return refusal([&] { validate(recipe); });
}

void expect_says(const std::string& message, std::initializer_list<std::string_view> parts) {
    for (const std::string_view part : parts) {
        EXPECT_NE(message.find(part), std::string::npos) << "'" << part << "' is not in: " << message;
    }
}

Recipe changed(std::string_view base, std::string_view name, OperandSpec to) {
    Recipe recipe = find_recipe(base);
    operand(recipe, name) = to;
    return recipe;
}

TEST(Recipe, ShowsQuartet2AsTheDesignDoes) {
    EXPECT_EQ(to_table(find_recipe("quartet2")),
              "operand   made from   spec\n"
              "fprop.x   original    nvfp4 1x16 scale=four-six:mse\n"
              "fprop.w   original    nvfp4 1x16 scale=four-six:mse\n"
              "dgrad.dy  original    nvfp4 1x16 scale=eden rotate=rht:128 signs=step\n"
              "dgrad.w   forward     nvfp4 1x16 scale=eden rotate=rht:128 signs=step\n"
              "wgrad.dy  original    nvfp4 1x16 scale=eden rotate=rht:128 signs=call\n"
              "wgrad.x   forward     nvfp4 1x16 scale=eden rotate=rht:128 signs=call\n"
              "dx, dw    as computed\n"
              "high precision: embedding, lm_head, norms, attention; blocks kept: none\n"
              "arXiv 2601.22813\n");
}

TEST(Recipe, SaysHowGradientsComeBack) {
    EXPECT_NE(to_table(find_recipe("quartet")).find("\ndx, dw    mask, unrotate\n"), std::string::npos);
    const Recipe half =
        changed("quartet", "fprop.w", {Source::original, parse_spec("mxfp4 1x32 rotate=hadamard:32")});
    EXPECT_NE(to_table(half).find("\ndx        mask, unrotate\ndw        unrotate\n"), std::string::npos);
}

TEST(Recipe, SaysWhichBlocksAreKept) {
    EXPECT_NE(to_table(find_recipe("nvidia")).find("blocks kept: last 15%\n"), std::string::npos);
    Recipe recipe = find_recipe("bf16");
    recipe.keep_first = 2;
    recipe.keep_last = 8;
    EXPECT_NE(to_table(recipe).find("blocks kept: first 2, last 8\n"), std::string::npos);
}

TEST(Recipe, NotesWhatIsBiased) {
    EXPECT_NE(to_table(find_recipe("four-six")).find("note: dgrad.dy picks the better of two scales"),
              std::string::npos);
    EXPECT_TRUE(recipe_notes(find_recipe("quartet2")).empty());
    EXPECT_TRUE(recipe_notes(find_recipe("nvidia")).empty());
}

TEST(Recipe, ShowsAndReadsTheResultsThatAreQuantised) {
    Recipe recipe = find_recipe("nvidia");
    recipe.fprop_y = parse_spec("fp4 32x32");
    EXPECT_NE(to_table(recipe).find("\nfprop.y   result      fp4 32x32\ndx, dw "), std::string::npos);
    recipe.dgrad_dx = parse_spec("mxfp8:e5m2 1x32");
    EXPECT_EQ(parse_recipe(to_toml(recipe), "x.toml"), recipe) << to_toml(recipe);
    EXPECT_FALSE(with_bf16_product(recipe, "fprop").fprop_y.is_quantized());
    EXPECT_TRUE(with_bf16_product(recipe, "fprop").dgrad_dx.is_quantized());
    for (const char* spec : {"fp32", "fp4 32x32 round=stochastic", "nvfp4 rotate=hadamard:16",
                             "mxfp4 scale=quest:std mask=clip", "fp8 tensor tensor=delayed"}) {
        recipe.fprop_y = parse_spec(spec);
        expect_says(refusal_of(recipe), {"fprop.y", "result"});
    }
}

TEST(Recipe, KeepsTheNearestNumberOfBlocks) {
    Recipe recipe = find_recipe("nvidia");  // the last 15%
    EXPECT_EQ(recipe.kept_last(4), 1);
    EXPECT_EQ(recipe.kept_last(3), 0);
    EXPECT_EQ(recipe.kept_last(10), 2);
    EXPECT_EQ(recipe.kept_last(62), 9);
    EXPECT_EQ(recipe.kept_first(62), 0);
    EXPECT_EQ(find_recipe("four-six").kept_last(24), 4);
}

TEST(Recipe, NeverKeepsMoreBlocksThanThereAre) {
    Recipe recipe = find_recipe("bf16");
    recipe.keep_first = 3;
    recipe.keep_last = 3;
    EXPECT_EQ(recipe.kept_first(4), 3);
    EXPECT_EQ(recipe.kept_last(4), 1);
    EXPECT_EQ(recipe.kept_first(2), 2);
    EXPECT_EQ(recipe.kept_last(2), 0);
}

TEST(Recipe, IsFoundByNameOrTheNearestIsNamed) {
    EXPECT_EQ(find_recipe("four-six").source, "arXiv 2512.02010");
    expect_says(refusal([] { find_recipe("quartet3"); }), {"quartet3", "did you mean 'quartet2'"});
}

TEST(Recipe, TakesAnotherSpecForOneOperand) {
    const Recipe changed = with_operand(find_recipe("nvidia"), "wgrad.x", "nvfp4 1x16 round=stochastic");
    EXPECT_EQ(changed.name, "nvidia+wgrad.x");
    EXPECT_EQ(to_string(changed.wgrad_x.spec), "nvfp4 1x16 round=stochastic");
    EXPECT_EQ(changed.wgrad_x.source, Source::original);
    EXPECT_EQ(changed.dgrad_w, find_recipe("nvidia").dgrad_w);
    const Recipe of_forward = with_operand(find_recipe("nvidia"), "dgrad.w", "forward nvfp4 1x16");
    EXPECT_EQ(of_forward.dgrad_w.source, Source::forward);
    EXPECT_EQ(to_string(of_forward.dgrad_w.spec), "nvfp4 1x16");
    expect_says(refusal([] { with_operand(find_recipe("nvidia"), "fprop.x", "nvfp4 scale=amx"); }),
                {"fprop.x", "amx", "amax"});
}

TEST(Recipe, PutsOneProductInBf16) {
    for (const Recipe& recipe : builtin_recipes()) {
        for (const char* product : {"fprop", "dgrad", "wgrad"}) {
            const Recipe changed = with_bf16_product(recipe, product);
            EXPECT_EQ(refusal_of(changed), "") << to_table(changed);
            EXPECT_EQ(changed.name, recipe.name + "+" + product + "=bf16");
            for (const std::string_view name : kOperandNames) {
                const bool is_of_product = name.starts_with(product);
                EXPECT_EQ(operand(changed, name).spec,
                          is_of_product ? parse_spec("bf16") : operand(recipe, name).spec)
                    << recipe.name << " " << name;
            }
        }
    }
    // The forward's bytes are gone: the backward's are made from the weight itself, with the same spec.
    EXPECT_EQ(with_bf16_product(find_recipe("nvidia"), "fprop").dgrad_w.source, Source::original);
    // What was clipped in a rotated space has no gradient: the product stays in that space.
    EXPECT_EQ(with_bf16_product(find_recipe("quartet"), "dgrad").dgrad_w.source, Source::forward);
}

TEST(Recipe, ComesBackFromToml) {
    for (const Recipe& recipe : builtin_recipes()) {
        EXPECT_EQ(parse_recipe(to_toml(recipe), "x.toml"), recipe) << to_toml(recipe);
    }
    Recipe recipe = find_recipe("quartet2");
    recipe.title = "a \"quoted\\ title\t\x01 ü";
    recipe.keep_first = 2;
    for (const double share : {0.15, 0.167, 1.0 / 3, 0.07, 0.999, 1e-3}) {
        recipe.keep_last = share;
        EXPECT_EQ(parse_recipe(to_toml(recipe), "x.toml"), recipe) << to_toml(recipe);
    }
}

// The forward in 4 bits, the backward in BF16, with everything that a table can have beside its operands.
Recipe with_extras() {
    Recipe recipe = find_recipe("fp4-all-the-way-qaf");
    recipe.fprop_w.spec = parse_spec("fp4 row");
    recipe.outliers = {0.97, parse_spec("fp32")};
    recipe.wgrad_factor = {4.5, 2};
    recipe.dgrad_dy.spec = parse_spec("nvfp4 1x16 rotate=hadamard:64@rows");
    return recipe;
}

TEST(Recipe, KeepsWhatItHasBesideItsOperands) {
    const Recipe recipe = with_extras();
    EXPECT_EQ(refusal_of(recipe), "");
    EXPECT_EQ(parse_recipe(to_toml(recipe), "x.toml"), recipe) << to_toml(recipe);
    Recipe other = recipe;
    other.outliers.reset();
    EXPECT_NE(other, recipe);
    EXPECT_EQ(parse_recipe(to_toml(other), "x.toml"), other) << to_toml(other);
}

TEST(Recipe, ShowsWhatItHasBesideItsOperands) {
    const std::string table = to_table(with_extras());
    for (const char* line :
         {"dx        unrotate rows\n", "dw        times dge k=4.5 cap=2\n",
          "outliers  fprop.x clamped to its quantiles 0.03 and 0.97; the rest in a fp32 product\n"}) {
        EXPECT_NE(table.find(line), std::string::npos) << line << " in\n" << table;
    }
}

TEST(Recipe, WithAForwardInBf16HasNothingToClampOrToFollow) {
    const Recipe recipe = with_bf16_product(with_extras(), "fprop");
    EXPECT_EQ(refusal_of(recipe), "");
    EXPECT_FALSE(recipe.outliers.has_value());
    EXPECT_FALSE(recipe.wgrad_factor.has_value());
    const Recipe other = with_bf16_product(with_extras(), "wgrad");
    EXPECT_EQ(other.outliers, with_extras().outliers);
    EXPECT_EQ(other.wgrad_factor, with_extras().wgrad_factor);
}

TEST(Recipe, FilesEqualTheBuiltInOnes) {
    size_t files = 0;
    for (const auto& entry : fs::directory_iterator(kSource / "configs" / "recipes"))
        files += entry.is_regular_file();
    EXPECT_EQ(files, builtin_recipes().size());
    for (const Recipe& recipe : builtin_recipes()) {
        const fs::path path = kSource / "configs" / "recipes" / (recipe.name + ".toml");
        EXPECT_EQ(read_text(path), to_toml(recipe)) << path;
        EXPECT_EQ(find_recipe(path.string()), recipe);
    }
}

TEST(Recipe, PagesShowTheTableThatRuns) {
    for (const Recipe& recipe : builtin_recipes()) {
        const fs::path path = kSource / "docs" / "methods" / (recipe.name + ".md");
        EXPECT_NE(read_text(path).find("```\n" + to_table(recipe) + "```\n"), std::string::npos)
            << path << " should contain:\n"
            << to_table(recipe);
        EXPECT_NE(read_text(kSource / "docs" / "methods" / "README.md").find("(" + recipe.name + ".md)"),
                  std::string::npos)
            << recipe.name;
    }
}

// --- bad files ---

std::string minimal(std::string_view line, std::string_view replacement) {
    std::string toml = to_toml(find_recipe("bf16"));
    const size_t at = toml.find(line);
    EXPECT_NE(at, std::string::npos) << line;
    return toml.replace(at, line.size(), replacement);
}

std::string refusal_of_toml(const std::string& toml) {
    return refusal([&] { parse_recipe(toml, "my.toml"); });
}

TEST(RecipeToml, TakesABareSpecAsMadeFromTheOriginal) {
    const std::string row = "x  = { from = \"original\", spec = \"bf16\" }";
    EXPECT_EQ(parse_recipe(minimal(row, "x = \"bf16\""), "my.toml"), find_recipe("bf16"));
}

TEST(RecipeToml, PointsAtASyntaxError) {
    expect_says(refusal_of_toml("name = \"a\"\ntitle = oops\n"), {"my.toml:2:"});
}

TEST(RecipeToml, NamesTheNearestOfAnUnknownKey) {
    expect_says(refusal_of_toml(minimal("keep_last", "keep_lost")),
                {"my.toml:5:1: ", "'keep_lost'", "'keep_last'"});
    expect_says(refusal_of_toml(minimal("[wgrad]\ndy", "[wgrad]\ndyy")), {"my.toml:17:1: ", "'dyy'", "'dy'"});
    expect_says(refusal_of_toml(minimal("from", "form")), {"my.toml:9:8: ", "'form'", "'from'"});
}

TEST(RecipeToml, NamesWhatIsMissing) {
    expect_says(refusal_of_toml("title = \"no name\"\n"), {"my.toml:1:", "'name' is missing"});
    expect_says(refusal_of_toml(minimal("\n[wgrad]", "\n[wgrad]\n[extra]")), {"my.toml:17:", "'extra'"});
    const std::string without =
        minimal("w  = { from = \"original\", spec = \"bf16\" }\n\n[wgrad]", "\n[wgrad]");
    expect_says(refusal_of_toml(without), {"my.toml:12:1", "'dgrad.w' is missing"});
}

TEST(RecipeToml, PointsAtAWrongValue) {
    expect_says(refusal_of_toml(minimal("\"bf16\" }", "\"nvfp5 1x16\" }")),
                {"my.toml:9:34: fprop.x: ", "nvfp5"});
    expect_says(refusal_of_toml(minimal("\"original\"", "\"foward\"")),
                {"my.toml:9:15: ", "did you mean 'forward'?"});
    for (const char* value :
         {"\"100%\"", "-1", "1.5", "\"-3%\"", "\"many\"", "true", "\"nan%\"", "\"1.5\"", "nan", "[1]"}) {
        expect_says(refusal_of_toml(minimal("keep_last = 0", fmt::format("keep_last = {}", value))),
                    {"my.toml:5:13: ", "'keep_last'"});
    }
    expect_says(refusal_of_toml(minimal("[fprop]", "[[fprop]]")), {"my.toml:8:1: ", "'fprop' is a table"});
    expect_says(refusal_of_toml(minimal("name = \"bf16\"", "name = 16")),
                {"my.toml:1:8: ", "'name' is a text"});
}

TEST(RecipeToml, FillsInWhatOutliersAndFactorDoNotSay) {
    std::string toml = to_toml(find_recipe("fp4-all-the-way-qaf"));
    toml.replace(toml.rfind("nvfp4 1x16"), 10, "fp4 row");  // fprop.w
    toml += "factor = { name = \"dge\" }\n[outliers]\n";
    const Recipe recipe = parse_recipe(toml, "my.toml");
    EXPECT_EQ(recipe.outliers, (Outliers{0.99, parse_spec("bf16")}));
    EXPECT_EQ(recipe.wgrad_factor, (Dge{5, 3}));
}

TEST(RecipeToml, PointsAtAWrongOutlierOrFactor) {
    const std::string toml = to_toml(find_recipe("fp4-all-the-way-qaf"));
    const auto refused = [&](std::string_view end) { return refusal_of_toml(toml + std::string(end)); };
    expect_says(refused("factor = \"dge\"\n"), {"my.toml:19:10: ", "name = \"dge\""});
    expect_says(refused("factor = { name = \"dgf\" }\n"), {"my.toml:19:19: ", "\"dge\""});
    expect_says(refused("factor = { name = \"dge\", q = 5 }\n"), {"my.toml:19:26: ", "'q'"});
    expect_says(refused("factor = { k = 5 }\n"), {"wgrad.factor.name", "missing"});
    expect_says(refused("factor = { name = \"dge\", cap = \"3\" }\n"),
                {"my.toml:19:32: ", "'wgrad.factor.cap'"});
    expect_says(refused("outliers = 0.99\n"), {"'outliers'"});
    expect_says(refused("[outliers]\nquantil = 0.99\n"), {"'quantil'", "'quantile'"});
    expect_says(refused("[outliers]\nquantile = \"99%\"\n"), {"'outliers.quantile' is a number"});
    expect_says(refused("[outliers]\nproduct = \"bf17\"\n"), {"outliers.product", "bf17"});
    expect_says(refused("[outliers]\nquantile = 1.0\n"), {"my.toml: ", "quantile = 1 "});
}

TEST(RecipeToml, RefusesWhatCannotBeExecutedNamingTheFile) {
    expect_says(refusal_of_toml(minimal("lm_head = \"bf16\"", "lm_head = \"nvfp4\"")),
                {"my.toml: ", "lm_head"});
}

TEST(RecipeToml, KeepsAnFp8HeadAndItsTableSaysSo) {
    const Recipe recipe = with_lm_head(find_recipe("nvidia"), "fp8");
    EXPECT_EQ(parse_recipe(to_toml(recipe), "my.toml"), recipe);
    expect_says(to_table(recipe), {"\nlm_head   x and w fp8:e4m3 tensor, gradient of the logits fp8:e5m2\n",
                                   "\nhigh precision: embedding, norms, attention; "});
    EXPECT_EQ(with_lm_head(recipe, "bf16"), find_recipe("nvidia"));
    EXPECT_EQ(with_lm_head(recipe, "recipe"), recipe);
}

// --- tables that cannot be executed ---

TEST(RecipeValidation, AcceptsEveryBuiltInRecipe) {
    for (const Recipe& recipe : builtin_recipes()) EXPECT_EQ(refusal_of(recipe), "") << recipe.name;
}

TEST(RecipeValidation, RefusesRotationsThatDoNotCancel) {
    const auto dgrad_w = [](std::string_view spec) {
        return refusal_of(changed("quartet2", "dgrad.w", {Source::forward, parse_spec(spec)}));
    };
    expect_says(dgrad_w("nvfp4 1x16 rotate=rht:64 signs=step"),
                {"dgrad.dy (rht:128", "dgrad.w (rht:64", "cancel"});
    expect_says(dgrad_w("nvfp4 1x16 rotate=rht:128 signs=call"), {"signs=step", "signs=call", "cancel"});
    expect_says(dgrad_w("nvfp4 1x16 rotate=hadamard:128"), {"hadamard:128", "cancel"});
    expect_says(dgrad_w("nvfp4 1x16"), {"dgrad.w (not rotated)", "cancel"});
    expect_says(dgrad_w("bf16"), {"dgrad.w (not rotated)", "cancel"});
    // The default signs of dgrad are those of the step.
    EXPECT_EQ(dgrad_w("nvfp4 1x16 rotate=rht:128"), "");
}

TEST(RecipeValidation, RefusesSignsOfACallInTheForward) {
    Recipe recipe = find_recipe("bf16");
    recipe.fprop_x.spec = recipe.fprop_w.spec = parse_spec("nvfp4 1x16 rotate=rht:16 signs=call");
    expect_says(refusal_of(recipe), {"fprop.x", "signs=call"});
}

TEST(RecipeValidation, RefusesSameBitsWithoutTheSameSquareBlocks) {
    expect_says(refusal_of(changed("nvidia", "wgrad.x", {Source::same_bits, parse_spec("nvfp4 1x16")})),
                {"wgrad"});
    expect_says(
        refusal_of(changed("fp4-all-the-way", "dgrad.w", {Source::same_bits, parse_spec("nvfp4 1x16")})),
        {"dgrad.w", "square"});
    expect_says(
        refusal_of(changed("nvidia", "dgrad.w", {Source::same_bits, parse_spec("nvfp4 16x16 range=2/3")})),
        {"dgrad.w", "nvfp4 16x16"});
}

TEST(RecipeValidation, RefusesOtherSourcesWhereThereIsNoForward) {
    expect_says(refusal_of(changed("bf16", "dgrad.dy", {Source::forward, {}})), {"dgrad.dy", "original"});
    expect_says(refusal_of(changed("bf16", "fprop.w", {Source::forward, {}})), {"fprop.w", "original"});
}

TEST(RecipeValidation, RefusesMasksThatCannotBeApplied) {
    const Recipe recipe =
        changed("quartet", "dgrad.w", {Source::original, find_recipe("quartet").dgrad_w.spec});
    expect_says(refusal_of(recipe), {"mask of fprop.x", "dgrad.w"});
    Recipe backward = find_recipe("quartet");
    backward.dgrad_dy.spec = parse_spec("mxfp4 1x32 scale=quest:std rotate=rht:32 signs=step mask=clip");
    expect_says(refusal_of(backward), {"dgrad.dy", "mask=clip"});
}

TEST(RecipeValidation, RefusesOutliersThatCannotBeCutOff) {
    const auto refused = [](auto change) {
        Recipe recipe = with_extras();
        change(recipe);
        return refusal_of(recipe);
    };
    for (const double quantile : {0.5, 0.01, 1.0, std::nan("")}) {
        expect_says(refused([&](Recipe& r) { r.outliers->quantile = quantile; }),
                    {"quantile", "between 0.5 and 1"});
    }
    expect_says(refused([](Recipe& r) { r.outliers->product = parse_spec("nvfp4"); }),
                {"product", "nvfp4 1x16"});
    expect_says(refused([](Recipe& r) { r.fprop_x.spec = parse_spec("bf16"); }), {"[outliers]", "fprop.x"});
    expect_says(refused([](Recipe& r) { r.wgrad_x.source = Source::forward; }),
                {"wgrad.x", "'forward'", "[outliers]"});
}

TEST(RecipeValidation, RefusesASlopeOfWhatIsNotAQuantiserOfRows) {
    const auto refused = [](auto change) {
        Recipe recipe = with_extras();
        change(recipe);
        return refusal_of(recipe);
    };
    expect_says(refused([](Recipe& r) { r.wgrad_factor->k = 0.5; }), {"k = 0.5"});
    expect_says(refused([](Recipe& r) { r.wgrad_factor->cap = 0; }), {"cap = 0"});
    expect_says(refused([](Recipe& r) { r.wgrad_factor->cap = std::nan(""); }), {"cap = nan"});
    expect_says(refused([](Recipe& r) { r.fprop_w.spec = parse_spec("bf16"); }),
                {"wgrad.factor", "fprop.w", "bf16"});
    expect_says(
        refused([](Recipe& r) { r.fprop_x.spec = r.fprop_w.spec = parse_spec("nvfp4 rotate=hadamard:16"); }),
        {"wgrad.factor", "fp4 row"});
}

TEST(RecipeValidation, RefusesRotatedRowsThatNoProductTurnsBack) {
    for (const std::string_view name : {"fprop.x", "fprop.w", "dgrad.w", "wgrad.x"}) {
        Recipe recipe = find_recipe("bf16");
        operand(recipe, name).spec = parse_spec("nvfp4 1x16 rotate=hadamard:16@rows");
        expect_says(refusal_of(recipe), {name, "@rows", "dgrad.dy and wgrad.dy"});
    }
    Recipe recipe = find_recipe("bf16");
    recipe.wgrad_dy.spec = parse_spec("nvfp4 1x16 rotate=rht:16@rows");
    EXPECT_EQ(refusal_of(recipe), "");
}

TEST(RecipeValidation, RefusesNamesAndNumbersThatMakeNoSense) {
    Recipe recipe = find_recipe("bf16");
    recipe.name = "two words";
    expect_says(refusal_of(recipe), {"one word"});
    recipe = find_recipe("bf16");
    recipe.keep_first = 1.5;
    expect_says(refusal_of(recipe), {"kept blocks"});
}

}  // namespace
}  // namespace nibble
