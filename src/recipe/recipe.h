// recipe/: a method is a table. Six operands, each with a spec and the tensor that it is made from, and
// modifiers, which have a state.
// This room holds the table, the built-in methods, TOML in and out, and printing; it executes nothing.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/core.h"
#include "quant/spec.h"
#include "recipe/modifier.h"

namespace nibble {

enum class Source : uint8_t {
    original,   // the high-precision tensor
    forward,    // what the forward used, re-quantised; where that was not quantised: its BF16 value
    same_bits,  // the forward's own bytes, transposed (square blocks, or one for the tensor)
};
std::string_view name_of(Source source);  // "original", "forward", "same-bits"

struct OperandSpec {
    Source source = Source::original;
    QuantSpec spec;
    friend bool operator==(const OperandSpec&, const OperandSpec&) = default;
};

// Outlier clamping and compensation (OCC, arXiv 2501.17116, section 3.2): fprop.x is clamped at the quantiles
// 1 - quantile and quantile of its tensor before it is quantised; what was cut off is multiplied with the
// weight in `product`.
struct Outliers {
    double quantile = 0.99;  // above 1/2, below 1
    QuantSpec product;       // bf16 or fp32: the weight's
    friend bool operator==(const Outliers&, const Outliers&) = default;
};

// The differentiable gradient estimator (DGE, arXiv 2501.17116, section 3.1): dW is multiplied, element by
// element, by the slope of a smooth stand-in for the quantiser of fprop.w.
struct Dge {
    double k = 5;    // the steepness of the stand-in, at least 1
    double cap = 3;  // the largest slope
    friend bool operator==(const Dge&, const Dge&) = default;
};

struct Recipe {
    std::string name;
    std::string title;   // one line for the list
    std::string source;  // "arXiv 2601.22813"
    OperandSpec fprop_x, fprop_w, dgrad_dy, dgrad_w, wgrad_dy, wgrad_x;
    // What the results of two products are quantised to before others see them; bf16: they are not.
    QuantSpec fprop_y, dgrad_dx;
    std::optional<Outliers> outliers;  // [outliers]
    std::optional<Dge> wgrad_factor;   // wgrad.factor
    // Transformer blocks kept in bf16: a number of blocks, or a share of them in (0, 1).
    double keep_first = 0, keep_last = 0;
    std::string lm_head = "bf16";     // or "fp8": nn/cross_entropy.h
    std::vector<Modifier> modifiers;  // each at most once

    friend bool operator==(const Recipe&, const Recipe&) = default;

    // How many of `blocks` transformer blocks stay high at the start / at the end. A share is rounded to the
    // nearest number of blocks, halves up (15% of 4 is 1, of 3 is 0, of 62 is 9). Both together are at most
    // `blocks`.
    int kept_first(int blocks) const;
    int kept_last(int blocks) const;
    bool keeps(int block, int blocks) const {
        return block < kept_first(blocks) || block >= blocks - kept_last(blocks);
    }
};

// The operand names in the order of the table, and access to each by name: "fprop.x", "fprop.w", "dgrad.dy",
// ...
inline constexpr std::array<std::string_view, 6> kOperandNames = {"fprop.x", "fprop.w",  "dgrad.dy",
                                                                  "dgrad.w", "wgrad.dy", "wgrad.x"};
OperandSpec& operand(Recipe& recipe, std::string_view name);
const OperandSpec& operand(const Recipe& recipe, std::string_view name);

// The results that can be quantised, and access to each by name; without rotations or coins, which the keys
// of docs/numerics.md do not count for them.
inline constexpr std::array<std::string_view, 2> kOutputNames = {"fprop.y", "dgrad.dx"};
QuantSpec& output(Recipe& recipe, std::string_view name);
const QuantSpec& output(const Recipe& recipe, std::string_view name);

// The options of a modifier of the recipe; null if it has none of that kind.
template <typename Kind>
const Kind* find_modifier(const Recipe& recipe) {
    for (const Modifier& modifier : recipe.modifiers) {
        if (const Kind* found = std::get_if<Kind>(&modifier)) return found;
    }
    return nullptr;
}

// What happens to a gradient after its product. dX and dW are gradients of what the forward multiplied where
// the backward operand is made from it, so they are masked and turned back as the forward's operand was. Rows
// that the gradient's own operand rotated are turned back too.
struct Finish {
    bool mask = false;           // zero where the forward clipped (mask=clip)
    bool unrotate = false;       // the inverse of the forward's rotation
    bool unrotate_rows = false;  // the inverse of dgrad.dy's or wgrad.dy's rotate=...@rows
    friend bool operator==(const Finish&, const Finish&) = default;
};
Finish finish_dx(const Recipe& recipe);
Finish finish_dw(const Recipe& recipe);

const std::vector<Recipe>& builtin_recipes();
// A built-in recipe by name, or one read from a path that ends in .toml. Throws UsageError naming the
// nearest.
Recipe find_recipe(std::string_view name_or_path);

// The recipe with another spec for one operand: "nvfp4 1x16 round=stochastic", or "forward nvfp4 1x16" to
// change what it is made from too. The name says so: "quartet2+wgrad.x". Throws UsageError for a wrong spec.
Recipe with_operand(Recipe recipe, std::string_view operand, std::string_view text);
// The recipe with both operands of a product ("fprop", "dgrad", "wgrad") in bf16, made from the originals;
// where the forward's mask has to apply in its rotated space, the second from what the forward used. The name
// says so: "quartet2+dgrad=bf16".
Recipe with_bf16_product(Recipe recipe, std::string_view product);
// The recipe with its LM head in "bf16" or "fp8"; "recipe", or nothing, leaves it. The name says so where it
// is not the recipe's own: "quartet2+lm_head=fp8".
Recipe with_lm_head(Recipe recipe, std::string_view precision);
// The recipe with these modifiers, {"recipe", "cage lambda=5"}: "recipe" stands for those that it has. The
// name says so: "quartet2+cage". Throws UsageError as parse_modifier() does.
Recipe with_modifiers(Recipe recipe, const std::vector<std::string>& texts);

Recipe parse_recipe(std::string_view toml, std::string_view where);  // throws UsageError with line and column
std::string to_toml(const Recipe& recipe);                           // parse_recipe(to_toml(r)) == r
std::string to_table(const Recipe& recipe);                          // the table that users see
// Throws UsageError when the table cannot be executed (same-bits without square blocks, rotations that do not
// cancel, ...). parse_recipe and find_recipe call it.
void validate(const Recipe& recipe);
// What a user should know about a table that can be executed (biased gradients), one line each; part of
// to_table().
std::vector<std::string> recipe_notes(const Recipe& recipe);

}  // namespace nibble
