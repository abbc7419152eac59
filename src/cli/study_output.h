// What the studies share: where figures go beside the terminal, and the recipes that are studied.
#pragma once

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/core.h"
#include "io/plot.h"
#include "recipe/recipe.h"

namespace nibble {

struct StudyOutput {
    fs::path json, plot;

    void add_to(CLI::App& command);  // --json, --plot
    // Before the work: throws Error when there is to be a picture and no gnuplot.
    void check() const;
    // After it. `columns` charts beside each other. Returns without a picture when `charts` is empty.
    void write(const nlohmann::ordered_json& figures, const std::vector<Chart>& charts, int columns) const;
};

// --seed
void add_seed(CLI::App& command, uint64_t& seed);

// Of these texts; none: the quantisers of the built-in recipes, each once. Throws UsageError for a spec that
// quantises nothing.
std::vector<QuantSpec> specs_of(const std::vector<std::string>& texts);

// Built-in names or files; none: all built-in ones.
std::vector<Recipe> recipes_of(const std::vector<std::string>& names);
void add_recipes(CLI::App& command, std::vector<std::string>& names);

// The width of a column of names.
size_t widest_name(const std::vector<Recipe>& recipes);

// nibble study align, in a file of its own.
void add_align_study(CLI::App& study);

}  // namespace nibble
