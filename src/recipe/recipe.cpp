#include "recipe/recipe.h"

#include <algorithm>
#include <cmath>

namespace nibble {

namespace {

int kept(double amount, int blocks) {
    const double exact = amount < 1 ? std::floor(amount * blocks + 0.5) : amount;
    return static_cast<int>(std::clamp(exact, 0.0, static_cast<double>(blocks)));
}

// True if the backward operand lives in the space that the forward quantised in.
bool is_of_forward(const OperandSpec& backward) { return backward.source != Source::original; }

bool rotates(const OperandSpec& operand) { return operand.spec.rotates_columns(); }

}  // namespace

std::string_view name_of(Source source) {
    switch (source) {
        case Source::original:
            return "original";
        case Source::forward:
            return "forward";
        case Source::same_bits:
            return "same-bits";
    }
    return "?";
}

int Recipe::kept_first(int blocks) const { return kept(keep_first, blocks); }
int Recipe::kept_last(int blocks) const {
    return std::min(kept(keep_last, blocks), blocks - kept_first(blocks));
}

OperandSpec& operand(Recipe& recipe, std::string_view name) {
    OperandSpec* const all[] = {&recipe.fprop_x, &recipe.fprop_w,  &recipe.dgrad_dy,
                                &recipe.dgrad_w, &recipe.wgrad_dy, &recipe.wgrad_x};
    for (size_t i = 0; i < kOperandNames.size(); ++i) {
        if (kOperandNames[i] == name) return *all[i];
    }
    fail("a recipe has no operand '{}'", name);
}

const OperandSpec& operand(const Recipe& recipe, std::string_view name) {
    return operand(const_cast<Recipe&>(recipe), name);
}

QuantSpec& output(Recipe& recipe, std::string_view name) {
    if (name == kOutputNames[0]) return recipe.fprop_y;
    if (name == kOutputNames[1]) return recipe.dgrad_dx;
    fail("a recipe has no result '{}'", name);
}

const QuantSpec& output(const Recipe& recipe, std::string_view name) {
    return output(const_cast<Recipe&>(recipe), name);
}

Finish finish_dx(const Recipe& recipe) {
    return {recipe.fprop_x.spec.mask_clip, is_of_forward(recipe.dgrad_w) && rotates(recipe.fprop_w),
            recipe.dgrad_dy.spec.rotates_rows()};
}

Finish finish_dw(const Recipe& recipe) {
    return {recipe.fprop_w.spec.mask_clip, is_of_forward(recipe.wgrad_x) && rotates(recipe.fprop_x),
            recipe.wgrad_dy.spec.rotates_rows()};
}

}  // namespace nibble
