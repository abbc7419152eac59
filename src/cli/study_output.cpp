#include "cli/study_output.h"

#include <algorithm>

#include "cli/commands.h"

namespace nibble {

void StudyOutput::add_to(CLI::App& command) {
    command.add_option("--json", json, "Also write the figures, with all digits")->type_name("FILE.json");
    command.add_option("--plot", plot, "Also draw them (gnuplot)")->type_name("FILE.svg");
}

void StudyOutput::check() const {
    if (!plot.empty()) require_gnuplot();
}

void StudyOutput::write(const nlohmann::ordered_json& figures, const std::vector<Chart>& charts,
                        int columns) const {
    if (!json.empty()) write_text(json, figures.dump(2) + "\n");
    if (plot.empty()) return;
    if (charts.empty()) {
        log()->warn("{} was not written: there is nothing to draw", plot.string());
        return;
    }
    write_text(plot, draw_svg_file(charts, std::min(columns, static_cast<int>(charts.size()))));
}

void add_seed(CLI::App& command, uint64_t& seed) {
    command.add_option("--seed", seed, "Of the data, the coins and the signs")
        ->check(kWholeNumber)
        ->capture_default_str();
}

std::vector<QuantSpec> specs_of(const std::vector<std::string>& texts) {
    std::vector<QuantSpec> specs;
    for (const std::string& text : texts) {
        specs.push_back(parse_spec(text));
        if (!specs.back().is_quantized()) fail_usage("'{}' quantises nothing", text);
    }
    if (!texts.empty()) return specs;
    for (const Recipe& recipe : builtin_recipes()) {
        for (const std::string_view name : kOperandNames) {
            const QuantSpec& spec = operand(recipe, name).spec;
            if (spec.is_quantized() && std::find(specs.begin(), specs.end(), spec) == specs.end())
                specs.push_back(spec);
        }
    }
    return specs;
}

std::vector<Recipe> recipes_of(const std::vector<std::string>& names) {
    if (names.empty()) return builtin_recipes();
    std::vector<Recipe> recipes;
    for (const std::string& name : names) {
        Recipe& recipe = recipes.emplace_back(find_recipe(name));
        if (recipe.modifiers.empty()) continue;
        log()->warn("{}: a study takes the table alone, without its modifiers", name);
        recipe.modifiers.clear();
    }
    return recipes;
}

void add_recipes(CLI::App& command, std::vector<std::string>& names) {
    command.add_option("recipes", names, "Names or files; none: all built-in ones")->type_name("RECIPE");
}

size_t widest_name(const std::vector<Recipe>& recipes) {
    size_t width = std::string_view("recipe").size();
    for (const Recipe& recipe : recipes) width = std::max(width, recipe.name.size());
    return width;
}

}  // namespace nibble
