// nibble study: what quantisers and recipes do to numbers, without training.
#include <algorithm>
#include <memory>

#include "cli/commands.h"
#include "cli/study_output.h"
#include "io/safetensors.h"
#include "study/study_charts.h"

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
constexpr Named<BiasData> kBiasData[] = {
    {"normal", BiasData::normal},         {"laplace", BiasData::laplace},
    {"student-t5", BiasData::student_t5}, {"student-t2", BiasData::student_t2},
    {"few-tokens", BiasData::few_tokens}, {"massive-token", BiasData::massive_token}};

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
    fs::path tensors;
    int64_t rows = 1024, cols = 2048;
    int64_t tokens = 1024, in = 512, out = 768;
    std::vector<int64_t> active = {kActiveTokens.begin(), kActiveTokens.end()};
    int draws = 16;
    uint64_t seed = 1;
    StudyOutput output;
};

struct StudiedTensor {
    std::string name;
    Tensor tensor;
};

void study_quantizers(const Options& options) {
    const std::vector<QuantSpec> specs = specs_of(options.names);
    options.output.check();
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

    std::vector<QuantizerResult> results;
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
            results.push_back({t.name, to_string(spec), f});
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
    options.output.write(json, {quantizer_chart(results)}, 1);
}

void study_linear(const Options& options) {
    const std::vector<Recipe> recipes = recipes_of(options.names);
    const std::vector<Named<Distribution>> distributions = chosen_from(kDistributions, options.data);
    const size_t width = widest_name(recipes);
    options.output.check();
    std::vector<LayerResult> results;
    Json json = Json::array();
    fmt::print("{:<10}  {:<{}}  {:>7}  {:>7}  {:>7}  {:>7}  {:>7}  {:>8}  {:>8}  {:>8}  {:>8}\n", "data",
               "recipe", width, "Y", "dX", "dW", "own dX", "own dW", "mean dX", "mean dW", "slope dX",
               "slope dW");
    for (const auto& [name, distribution] : distributions) {
        const LayerData data =
            random_layer(options.tokens, options.in, options.out, distribution, options.seed);
        const LayerProducts exact = exact_products(data);
        for (const Recipe& recipe : recipes) {
            const LayerErrors e = layer_errors(recipe, data, exact, options.draws, options.seed);
            fmt::print(
                "{:<10}  {:<{}}  {:>7.4f}  {:>7.4f}  {:>7.4f}  {:>7.4f}  {:>7.4f}  {:>8.4f}  {:>8.4f}  "
                "{:>8.4f}  {:>8.4f}\n",
                name, recipe.name, width, e.y, e.dx, e.dw, e.own_dx, e.own_dw, e.mean_dx, e.mean_dw,
                e.slope_dx, e.slope_dw);
            results.push_back({std::string(name), recipe.name, e});
            json.push_back({{"data", name},
                            {"recipe", recipe.name},
                            {"draws", is_random(recipe) ? options.draws : 1},
                            {"y", e.y},
                            {"dx", e.dx},
                            {"dw", e.dw},
                            {"own_dx", e.own_dx},
                            {"own_dw", e.own_dw},
                            {"mean_dx", e.mean_dx},
                            {"mean_dw", e.mean_dw},
                            {"slope_dx", e.slope_dx},
                            {"slope_dw", e.slope_dw}});
        }
    }
    options.output.write(json, layer_charts(results), 1);
}

void study_unbiased(const Options& options) {
    const std::vector<Recipe> recipes = recipes_of(options.names);
    const std::vector<Named<BiasData>> kinds = chosen_from(kBiasData, options.data);
    const size_t width = widest_name(recipes);
    options.output.check();
    std::vector<BiasResult> results;
    Json json = Json::array();
    fmt::print("{:<13}  {:<{}}  {:>10}  {:>10}  {:>9}  {:>10}  {}\n", "data", "recipe", width, "one draw",
               fmt::format("{} draws", options.draws), "x 1/B", "bias", "");
    for (const auto& [name, kind] : kinds) {
        const LayerData data =
            bias_data(kind, options.tokens, options.in, options.out, options.seed, options.active);
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
            results.push_back({std::string(name), recipe.name, curve});
            json.push_back({{"data", name},
                            {"recipe", recipe.name},
                            {"draws", curve.draws},
                            {"error", curve.error},
                            {"excess", curve.excess()},
                            {"bias", curve.bias()}});
        }
    }
    options.output.write(json, bias_charts(results), 2);
}

void add_common(CLI::App* command, const std::shared_ptr<Options>& options,
                const std::vector<std::string>& data) {
    command->add_option("--data", options->data, fmt::format("Of {}", fmt::join(data, ", ")))
        ->delimiter(',')
        ->allow_extra_args(false);
    add_seed(*command, options->seed);
    options->output.add_to(*command);
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
        options->data = {"normal", "laplace"};
        CLI::App* command = study->add_subcommand(
            "linear",
            "Errors of Y, dX and dW of one layer; of the mean of draws; slopes on the exact gradient");
        add_recipes(*command, options->names);
        add_common(command, options, names_in(kDistributions));
        add_shape(command, options);
        command->add_option("--draws", options->draws, "Draws that are averaged")
            ->check(CLI::Range(1, 1 << 20))
            ->capture_default_str();
        command->callback([options] { study_linear(*options); });
    }
    {
        auto options = std::make_shared<Options>();
        options->data = {"normal", "student-t2", "few-tokens", "massive-token"};
        options->in = options->out = 128;
        options->draws = 4096;
        CLI::App* command =
            study->add_subcommand("unbiased", "Does the error of the averaged weight gradient fall as 1/B?");
        add_recipes(*command, options->names);
        add_common(command, options, names_in(kBiasData));
        add_shape(command, options);
        command
            ->add_option("--active", options->active,
                         "Tokens of each 128 that dY sees, from 0, for --data few-tokens")
            ->delimiter(',')
            ->allow_extra_args(false)
            ->check(CLI::Range(int64_t{0}, kTokensOfChunk - 1))
            ->type_name("T,T...");
        command->add_option("--draws", options->draws, "Draws that are averaged, B")
            ->check(CLI::Range(2, 1 << 20))
            ->capture_default_str();
        command->callback([options] { study_unbiased(*options); });
    }
    add_align_study(*study);
}

}  // namespace nibble
