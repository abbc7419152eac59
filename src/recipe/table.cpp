// Recipes as people read them.
#include <fmt/ranges.h>

#include <charconv>
#include <cmath>

#include "recipe/recipe.h"
#include "recipe/text.h"

namespace nibble {

namespace detail {

namespace {

std::optional<double> parse_double(std::string_view text) {
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return value;
}

}  // namespace

bool is_valid_kept(double amount) {
    if (!(amount >= 0) || amount > 1e6) return false;
    return amount < 1 || amount == std::floor(amount);
}

std::string kept_text(double amount) {
    if (amount == 0 || amount >= 1) return fmt::format("{}", amount);
    // The shortest percentage that reads back as the same number.
    for (int digits = 1; digits < 17; ++digits) {
        const std::string percent = fmt::format("{:.{}g}", 100 * amount, digits);
        if (parse_double(percent).value_or(0) / 100 == amount) return percent + "%";
    }
    return fmt::format("{}", amount);
}

std::optional<double> parse_kept(std::string_view text) {
    const bool is_percentage = text.ends_with('%');
    if (is_percentage) text.remove_suffix(1);
    const std::optional<double> number = parse_double(text);
    if (!number || (is_percentage && !(*number < 100))) return std::nullopt;
    const double amount = is_percentage ? *number / 100 : *number;
    return is_valid_kept(amount) ? std::optional(amount) : std::nullopt;
}

}  // namespace detail

namespace {

std::string finish_text(const Finish& finish, const std::optional<Dge>& factor = {}) {
    std::vector<std::string> steps;
    if (finish.unrotate_rows) steps.push_back("unrotate rows");
    if (finish.mask) steps.push_back("mask");
    if (finish.unrotate) steps.push_back("unrotate");
    if (factor) steps.push_back(fmt::format("times dge k={} cap={}", factor->k, factor->cap));
    return steps.empty() ? "as computed" : fmt::format("{}", fmt::join(steps, ", "));
}

}  // namespace

std::string to_table(const Recipe& recipe) {
    std::string table = fmt::format("{:<10}{:<12}{}\n", "operand", "made from", "spec");
    for (const std::string_view name : kOperandNames) {
        const OperandSpec& o = operand(recipe, name);
        table += fmt::format("{:<10}{:<12}{}\n", name, name_of(o.source), to_string(o.spec));
    }
    for (const std::string_view name : kOutputNames) {
        const QuantSpec& spec = output(recipe, name);
        if (spec.is_quantized()) table += fmt::format("{:<10}{:<12}{}\n", name, "result", to_string(spec));
    }
    const std::string dx = finish_text(finish_dx(recipe)),
                      dw = finish_text(finish_dw(recipe), recipe.wgrad_factor);
    if (dx == dw) {
        table += fmt::format("{:<10}{}\n", "dx, dw", dx);
    } else {
        table += fmt::format("{:<10}{}\n{:<10}{}\n", "dx", dx, "dw", dw);
    }
    if (const auto& outliers = recipe.outliers) {
        table +=
            fmt::format("{:<10}fprop.x clamped to its quantiles {:g} and {:g}; the rest in a {} product\n",
                        "outliers", 1 - outliers->quantile, outliers->quantile, to_string(outliers->product));
    }
    const bool has_fp8_head = recipe.lm_head == "fp8";
    if (has_fp8_head) {
        table += fmt::format("{:<10}x and w fp8:e4m3 tensor, gradient of the logits fp8:e5m2\n", "lm_head");
    }
    for (const Modifier& modifier : recipe.modifiers) {
        table += fmt::format("{:<10}{}\n", "modifier", to_string(modifier));
    }
    std::string kept;
    if (recipe.keep_first > 0) kept += "first " + detail::kept_text(recipe.keep_first);
    if (recipe.keep_first > 0 && recipe.keep_last > 0) kept += ", ";
    if (recipe.keep_last > 0) kept += "last " + detail::kept_text(recipe.keep_last);
    table += fmt::format("high precision: embedding, {}norms, attention; blocks kept: {}\n",
                         has_fp8_head ? "" : "lm_head, ", kept.empty() ? "none" : kept);
    for (const std::string& note : recipe_notes(recipe)) table += "note: " + note + "\n";
    if (!recipe.source.empty()) table += recipe.source + "\n";
    return table;
}

}  // namespace nibble
