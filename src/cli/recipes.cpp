// nibble recipes: the methods, as tables.
#include <algorithm>
#include <memory>

#include "cli/commands.h"
#include "recipe/recipe.h"

namespace nibble {

namespace {

void list_recipes() {
    size_t name_width = 0, title_width = 0;
    for (const Recipe& recipe : builtin_recipes()) {
        name_width = std::max(name_width, recipe.name.size());
        title_width = std::max(title_width, recipe.title.size());
    }
    for (const Recipe& recipe : builtin_recipes()) {
        std::string line = fmt::format("{:<{}}  {:<{}}  {}", recipe.name, name_width, recipe.title,
                                       title_width, recipe.source);
        line.erase(line.find_last_not_of(' ') + 1);
        fmt::print("{}\n", line);
    }
}

}  // namespace

void add_recipes_command(CLI::App& app) {
    CLI::App* recipes = app.add_subcommand("recipes", "List the built-in methods, or show one as a table");
    recipes->require_subcommand(0, 1);
    recipes->footer(
        "A recipe is a table: for each operand of the three products of a linear layer, how it is\n"
        "quantised and which tensor it is made from. 'recipes show FILE.toml' checks your own.");

    struct Options {
        std::string name;
        bool toml = false;
    };
    auto options = std::make_shared<Options>();
    CLI::App* show =
        recipes->add_subcommand("show", "Print the table of one recipe; refuse it if it cannot be executed");
    show->add_option("recipe", options->name, "Name of a built-in recipe, or a file that ends in .toml")
        ->required();
    show->add_flag("--toml", options->toml, "Print it as TOML, to start your own from");
    show->callback([options] {
        const Recipe recipe = find_recipe(options->name);
        const std::string text = options->toml ? to_toml(recipe) : to_table(recipe);
        fmt::print("{}{}", text, text.ends_with('\n') ? "" : "\n");
    });
    recipes->callback([recipes] {
        if (recipes->get_subcommands().empty()) list_recipes();
    });
}

}  // namespace nibble
