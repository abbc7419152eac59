// nibble study: what quantisers and recipes do to numbers, without training.
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "io/safetensors.h"
#include "study/bias_study.h"
#include "study/linear_study.h"
#include "study/quantizer_study.h"

namespace nibble {

namespace {

using Json = nlohmann::ordered_json;

// The data of a study by name. One table serves reading, help, errors and defaults.
template <typename T>
struct Named {
    std::string_view name;
    T value;
};
constexpr Named<Distribution> kDistributions[] = {{"normal", Distribution::normal},
                                                  {"laplace", Distribution::laplace},
                                                  {"student-t5", Distribution::student_t5},
                                                  {"student-t2", Distribution::student_t2}};
constexpr Named<BiasData> kBiasData[] = {{"normal", BiasData::normal},
                                         {"student-t2", BiasData::student_t2},
                                         {"few-tokens", BiasData::few_tokens},
                                         {"massive-token", BiasData::massive_token}};

template <typename T, size_t kCount>
std::vector<std::string> names_in(const Named<T> (&table)[kCount]) {
    std::vector<std::string> names;
    for (const Named<T>& entry : table) names.emplace_back(entry.name);
    return names;
}

template <typename T, size_t kCount>
std::vector<Named<T>> chosen_from(const Named<T> (&table)[kCount], const std::vector<std::string>& names) {
    std::vector<Named<T>> chosen;
    for (const std::string& name : names) {
        const auto* found = std::find_if(std::begin(table), std::end(table),
                                         [&](const Named<T>& entry) { return entry.name == name; });
        if (found == std::end(table))
            fail_usage("there is no data '{}'; choose from {}", name, fmt::join(names_in(table), ", "));
        chosen.push_back(*found);
    }
    return chosen;
}

struct Options {
    std::vector<std::string> names;  // specs or recipes
    std::vector<std::string> data;
    fs::path tensors, json;
    int64_t rows = 1024, cols = 2048;
    int64_t tokens = 1024, in = 512, out = 768;
    int draws = 16;
    uint64_t seed = 1;
};

void write_json(const fs::path& path, const Json& json) {
    if (!path.empty()) write_text(path, json.dump(2) + "\n");
}

std::vector<Recipe> recipes_of(const std::vector<std::string>& names) {
    if (names.empty()) return builtin_recipes();
    std::vector<Recipe> recipes;
    for (const std::string& name : names) {
        recipes.push_back(find_recipe(name));
        if (!recipes.back().modifiers.empty())
            log()->warn("{}: one layer is studied under its table alone, without its modifiers", name);
    }
    return recipes;
}

size_t widest_name(const std::vector<Recipe>& recipes) {
    size_t width = std::string_view("recipe").size();
    for (const Recipe& recipe : recipes) width = std::max(width, recipe.name.size());
    return width;
}

// The quantisers of the built-in recipes, each once.
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

struct StudiedTensor {
    std::string name;
    Tensor tensor;
};

void study_quantizers(const Options& options) {
    const std::vector<QuantSpec> specs = specs_of(options.names);
    std::vector<std::vector<float>> samples;
    std::unique_ptr<SafetensorsFile> file;
    std::vector<StudiedTensor> tensors;
    if (!options.tensors.empty()) {
        file = std::make_unique<SafetensorsFile>(options.tensors);
        for (const NamedTensor& t : file->tensors()) {
            const bool is_matrix =
                t.tensor.shape.rank() == 2 && (t.tensor.dtype == DType::f32 || t.tensor.dtype == DType::bf16);
            if (is_matrix) tensors.push_back({t.name, t.tensor});
        }
        require(!tensors.empty(), "{}: holds no matrix in F32 or BF16", options.tensors.string());
    } else {
        samples.reserve(options.data.size());
        for (const auto& [name, distribution] : chosen_from(kDistributions, options.data)) {
            samples.push_back(random_samples(distribution, options.rows * options.cols, options.seed));
            tensors.push_back({std::string(name), view_of(samples.back(), {options.rows, options.cols})});
        }
    }

    size_t width = 4;
    for (const StudiedTensor& t : tensors) width = std::max(width, t.name.size());
    Json json = Json::array();
    fmt::print("{:<{}}  {:>9}  {:>9}  {:>12}  {:>8}  {:>8}  {:>5}  {}\n", "data", width, "rel. MSE",
               "eff. bits", "misalignment", "clipped", "flushed", "bits", "spec");
    for (const StudiedTensor& t : tensors) {
        for (const QuantSpec& spec : specs) {
            const QuantizerFigures f = study_quantizer(spec, t.tensor, {.seed = options.seed});
            fmt::print("{:<{}}  {:>9.6f}  {:>9.3f}  {:>12.2e}  {:>7.3f}%  {:>7.3f}%  {:>5.2f}  {}\n", t.name,
                       width, f.relative_mse, f.effective_bits, f.misalignment, 100 * f.clipped,
                       100 * f.flushed, f.bits, to_string(spec));
            json.push_back({{"data", t.name},
                            {"spec", to_string(spec)},
                            {"relative_mse", f.relative_mse},
                            {"effective_bits", f.effective_bits},
                            {"misalignment", f.misalignment},
                            {"clipped", f.clipped},
                            {"flushed", f.flushed},
                            {"bits", f.bits}});
        }
    }
    write_json(options.json, json);
}

void study_linear(const Options& options) {
    const std::vector<Recipe> recipes = recipes_of(options.names);
    const std::vector<Named<Distribution>> distributions = chosen_from(kDistributions, options.data);
    const size_t width = widest_name(recipes);
    Json json = Json::array();
    fmt::print("{:<10}  {:<{}}  {:>7}  {:>7}  {:>7}  {:>8}  {:>8}  {:>8}  {:>8}\n", "data", "recipe", width,
               "Y", "dX", "dW", "mean dX", "mean dW", "slope dX", "slope dW");
    for (const auto& [name, distribution] : distributions) {
        const LayerData data =
            random_layer(options.tokens, options.in, options.out, distribution, options.seed);
        const LayerProducts exact = exact_products(data);
        for (const Recipe& recipe : recipes) {
            const LayerErrors e = layer_errors(recipe, data, exact, options.draws, options.seed);
            fmt::print(
                "{:<10}  {:<{}}  {:>7.4f}  {:>7.4f}  {:>7.4f}  {:>8.4f}  {:>8.4f}  {:>8.4f}  {:>8.4f}\n",
                name, recipe.name, width, e.y, e.dx, e.dw, e.mean_dx, e.mean_dw, e.slope_dx, e.slope_dw);
            json.push_back({{"data", name},
                            {"recipe", recipe.name},
                            {"draws", is_random(recipe) ? options.draws : 1},
                            {"y", e.y},
                            {"dx", e.dx},
                            {"dw", e.dw},
                            {"mean_dx", e.mean_dx},
                            {"mean_dw", e.mean_dw},
                            {"slope_dx", e.slope_dx},
                            {"slope_dw", e.slope_dw}});
        }
    }
    write_json(options.json, json);
}

void study_unbiased(const Options& options) {
    const std::vector<Recipe> recipes = recipes_of(options.names);
    const std::vector<Named<BiasData>> kinds = chosen_from(kBiasData, options.data);
    const size_t width = widest_name(recipes);
    Json json = Json::array();
    fmt::print("{:<13}  {:<{}}  {:>10}  {:>10}  {:>9}  {:>10}  {}\n", "data", "recipe", width, "one draw",
               fmt::format("{} draws", options.draws), "x 1/B", "bias", "");
    for (const auto& [name, kind] : kinds) {
        const LayerData data = bias_data(kind, options.tokens, options.in, options.out, options.seed);
        for (const Recipe& recipe : recipes) {
            if (!has_random_gradient(recipe)) {
                log()->info("every draw of {} has the same weight gradient: there is nothing to average",
                            recipe.name);
                continue;
            }
            const BiasCurve curve = averaged_gradient(recipe, data, options.draws, options.seed);
            fmt::print("{:<13}  {:<{}}  {:>10.2e}  {:>10.2e}  {:>9.2f}  {:>10.1e}  {}\n", name, recipe.name,
                       width, curve.error.front(), curve.error.back(), curve.excess(), curve.bias(),
                       curve.excess() > 2 ? "biased" : "");
            json.push_back({{"data", name},
                            {"recipe", recipe.name},
                            {"draws", curve.draws},
                            {"error", curve.error},
                            {"excess", curve.excess()},
                            {"bias", curve.bias()}});
        }
    }
    write_json(options.json, json);
}

void add_common(CLI::App* command, const std::shared_ptr<Options>& options,
                const std::vector<std::string>& data) {
    command->add_option("--data", options->data, fmt::format("Of {}", fmt::join(data, ", ")))
        ->delimiter(',')
        ->allow_extra_args(false);
    command->add_option("--seed", options->seed, "Of the data, the coins and the signs")
        ->check(kWholeNumber)
        ->capture_default_str();
    command->add_option("--json", options->json, "Also write the figures, with all digits")
        ->type_name("FILE.json");
}

void add_shape(CLI::App* command, const std::shared_ptr<Options>& options) {
    command->add_option("--tokens", options->tokens, "Rows of x and dy")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
    command->add_option("--in", options->in, "Input features of the layer")
        ->check(CLI::Range(1, 1 << 16))
        ->capture_default_str();
    command->add_option("--out", options->out, "Output features of the layer")
        ->check(CLI::Range(1, 1 << 16))
        ->capture_default_str();
}

}  // namespace

void add_study_command(CLI::App& app) {
    CLI::App* study = app.add_subcommand("study", "Measure quantisers and recipes on data, without training");
    study->require_subcommand(1);

    {
        auto options = std::make_shared<Options>();
        options->data = {"normal", "laplace", "student-t5"};
        CLI::App* command = study->add_subcommand(
            "quantizers", "Relative MSE, misalignment, clipped and flushed shares of quantisers");
        command
            ->add_option("specs", options->names,
                         "Quantisers, \"nvfp4 1x16 scale=four-six:mse\"; none: those of the built-in recipes")
            ->type_name("SPEC");
        add_common(command, options, names_in(kDistributions));
        command->add_option("--tensors", options->tensors, "Study the matrices of this file instead")
            ->type_name("FILE.safetensors")
            ->excludes("--data");
        command->add_option("--rows", options->rows, "Of random data")
            ->check(CLI::Range(1, 1 << 20))
            ->capture_default_str();
        command->add_option("--cols", options->cols, "Of random data")
            ->check(CLI::Range(1, 1 << 16))
            ->capture_default_str();
        command->callback([options] { study_quantizers(*options); });
    }
    {
        auto options = std::make_shared<Options>();
        options->data = {"normal"};
        CLI::App* command = study->add_subcommand(
            "linear",
            "Errors of Y, dX and dW of one layer; of the mean of draws; slopes on the exact gradient");
        command->add_option("recipes", options->names, "Names or files; none: all built-in ones")
            ->type_name("RECIPE");
        add_common(command, options, names_in(kDistributions));
        add_shape(command, options);
        command->add_option("--draws", options->draws, "Draws that are averaged")
            ->check(CLI::Range(1, 1 << 20))
            ->capture_default_str();
        command->callback([options] { study_linear(*options); });
    }
    {
        auto options = std::make_shared<Options>();
        options->data = names_in(kBiasData);
        options->in = options->out = 128;
        options->draws = 4096;
        CLI::App* command =
            study->add_subcommand("unbiased", "Does the error of the averaged weight gradient fall as 1/B?");
        command->add_option("recipes", options->names, "Names or files; none: all built-in ones")
            ->type_name("RECIPE");
        add_common(command, options, options->data);
        add_shape(command, options);
        command->add_option("--draws", options->draws, "Draws that are averaged, B")
            ->check(CLI::Range(2, 1 << 20))
            ->capture_default_str();
        command->callback([options] { study_unbiased(*options); });
    }
}

}  // namespace nibble
