// Changes of a recipe that a run asks for.
#include <algorithm>

#include "recipe/recipe.h"

namespace nibble {

namespace {

constexpr Source kSources[] = {Source::original, Source::forward, Source::same_bits};

// Without the forward's bytes nothing can be made of them.
void make_from_original_if_same_bits(OperandSpec& backward) {
    if (backward.source != Source::same_bits) return;
    backward.source = Source::original;
    backward.spec.rotation = Rotation::none;  // the forward's, along the other dimension
    backward.spec.rotation_size = 0;
    backward.spec.signs = Signs::by_gemm;
    backward.spec.out_bf16 = false;
}

bool masks_in_rotated_space(const OperandSpec& forward) {
    return forward.spec.mask_clip && forward.spec.rotation != Rotation::none;
}

}  // namespace

Recipe with_operand(Recipe recipe, std::string_view name, std::string_view text) {
    OperandSpec& changed = operand(recipe, name);
    const size_t end = std::min(text.find(' '), text.size());
    for (const Source source : kSources) {
        if (text.substr(0, end) != name_of(source)) continue;
        changed.source = source;
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    try {
        changed.spec = parse_spec(text);
    } catch (const UsageError& error) {
        fail_usage("{}: {}", name, error.what());
    }
    recipe.name += fmt::format("+{}", name);
    return recipe;
}

Recipe with_bf16_product(Recipe recipe, std::string_view product) {
    const std::string first = fmt::format("{}.{}", product, product == "fprop" ? "x" : "dy");
    const std::string second = fmt::format("{}.{}", product, product == "wgrad" ? "x" : "w");
    if (product == "fprop") {
        make_from_original_if_same_bits(recipe.dgrad_w);
        make_from_original_if_same_bits(recipe.wgrad_x);
        recipe.outliers.reset();      // nothing is quantised from which they would have to be kept,
        recipe.wgrad_factor.reset();  // or whose slope would matter
    }
    const bool is_masked = product == "dgrad"   ? masks_in_rotated_space(recipe.fprop_x)
                           : product == "wgrad" ? masks_in_rotated_space(recipe.fprop_w)
                                                : false;
    if (product == "fprop") recipe.fprop_y = {};
    if (product == "dgrad") recipe.dgrad_dx = {};
    operand(recipe, first) = {Source::original, parse_spec("bf16")};
    operand(recipe, second) = {is_masked ? Source::forward : Source::original, parse_spec("bf16")};
    recipe.name += fmt::format("+{}=bf16", product);
    return recipe;
}

Recipe with_lm_head(Recipe recipe, std::string_view precision) {
    if (precision.empty() || precision == "recipe" || precision == recipe.lm_head) return recipe;
    const std::string before = fmt::format("+lm_head={}", recipe.lm_head);
    const size_t at = recipe.name.find(before);
    if (at != std::string::npos)
        recipe.name.erase(at, before.size());
    else
        recipe.name += fmt::format("+lm_head={}", precision);
    recipe.lm_head = precision;
    return recipe;
}

Recipe with_modifiers(Recipe recipe, const std::vector<std::string>& texts) {
    const std::vector<Modifier> own = std::move(recipe.modifiers);
    recipe.modifiers.clear();
    for (const std::string& text : texts) {
        if (text == "recipe") {
            recipe.modifiers.insert(recipe.modifiers.end(), own.begin(), own.end());
            continue;
        }
        recipe.modifiers.push_back(parse_modifier(text));
        recipe.name += fmt::format("+{}", name_of(recipe.modifiers.back()));
    }
    if (recipe.modifiers.empty() && !own.empty()) recipe.name += "+modifiers=none";
    return recipe;
}

}  // namespace nibble
