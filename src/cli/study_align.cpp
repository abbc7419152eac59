// nibble study align: gradients of a whole model under a recipe, against those under bf16.
#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/study_output.h"
#include "data/data.h"
#include "study/study_charts.h"
#include "train/checkpoint.h"
#include "train/model_directory.h"

namespace nibble {

namespace {

using Json = nlohmann::ordered_json;

struct Options {
    std::vector<std::string> names;
    fs::path model;
    std::string data;
    int64_t sequence_length = 0;  // 0: the model's positions, at most kLongestWindow
    int64_t batch_size = 8;
    int draws = 16;
    bool bf16_forward = false;
    uint64_t seed = 1;
    StudyOutput output;
};

constexpr int64_t kLongestWindow = 2048;

// A model directory, or a checkpoint of a run: its shape, its weights and the vocabulary of its tokens.
class StoredModel {
  public:
    explicit StoredModel(const fs::path& path) : path_(path) {
        if (fs::exists(path / "state.json")) {
            checkpoint_ = open_checkpoint(path);
            config_ = parse_model_config(checkpoint_->state.at("model").dump(), path.string());
        } else {
            config_ = read_model_config(path);
        }
    }
    const ModelConfig& config() const { return config_; }

    void require_vocabulary_of(const TokenShards& data) const {
        if (!checkpoint_) {
            data.require_tokenizer(Tokenizer::load(path_), path_.string());
            return;
        }
        const std::string vocabulary = fmt::format("{:016x}", data.vocabulary_hash());
        require(checkpoint_->state.at("vocabulary") == vocabulary,
                "{}: the tokens are not of the vocabulary that {} was trained on", data.path().string(),
                path_.string());
    }

    void read(Transformer& model) const {
        if (!checkpoint_) return read_parameters(path_, config_, model.parameters());
        std::vector<NamedTensor> masters;
        for (const Parameter& parameter : model.parameters())
            masters.push_back({parameter.name, parameter.master});
        read_checkpoint_tensors(*checkpoint_, kCheckpointModel, masters);
    }

  private:
    fs::path path_;
    std::optional<Checkpoint> checkpoint_;
    ModelConfig config_;
};

TokenBatch read_batch(const Options& options, const StoredModel& model, int64_t sequence_length) {
    if (options.data.empty())
        return random_batch(options.batch_size, sequence_length, model.config().vocab_size, options.seed);
    const TokenShards data(options.data);
    model.require_vocabulary_of(data);
    const Loader loader(data, sequence_length, options.batch_size, options.seed);
    TokenBatch batch{Buffer(DType::i32, {options.batch_size, sequence_length}),
                     Buffer(DType::i32, {options.batch_size, sequence_length})};
    loader.load(0, 0, batch.tokens.tensor(), batch.targets.tensor());
    return batch;
}

std::vector<Recipe> studied_recipes(const Options& options) {
    std::vector<Recipe> recipes = recipes_of(options.names);
    if (options.names.empty()) std::erase_if(recipes, [](const Recipe& r) { return r.name == "bf16"; });
    if (options.bf16_forward)
        for (Recipe& recipe : recipes) recipe = with_bf16_product(std::move(recipe), "fprop");
    return recipes;
}

std::string cell(double value, std::string_view format) {
    return std::isfinite(value) ? fmt::format(fmt::runtime(format), value) : "-";
}

void print_rows(const Recipe& recipe, const RecipeAlignment& result, size_t width) {
    for (const auto& [block, name, a] : result.gradients)
        fmt::print("{:<{}}  {:>5}  {:<13}  {:>7}  {:>12}  {:>7}  {:>7}  {:>11}  {:>7}\n", recipe.name, width,
                   block, name, cell(a.cosine, "{:.4f}"), cell(a.misalignment, "{:.2e}"),
                   cell(a.norm, "{:.4f}"), cell(a.error, "{:.4f}"), cell(a.mean_cosine, "{:.4f}"),
                   cell(a.bias, "{:.4f}"));
}

Json to_json(const Recipe& recipe, const RecipeAlignment& result) {
    Json gradients = Json::array();
    for (const auto& [block, name, a] : result.gradients)
        gradients.push_back({{"block", block},
                             {"gradient", name},
                             {"cosine", a.cosine},
                             {"misalignment", a.misalignment},
                             {"norm", a.norm},
                             {"error", a.error},
                             {"mean_cosine", a.mean_cosine},
                             {"bias", a.bias}});
    return {
        {"recipe", recipe.name}, {"loss", result.loss}, {"draws", result.draws}, {"gradients", gradients}};
}

void study_align(const Options& options) {
    const std::vector<Recipe> recipes = studied_recipes(options);
    const StoredModel stored(options.model);
    const int64_t positions = stored.config().max_position_embeddings;
    const int64_t sequence_length =
        options.sequence_length > 0 ? options.sequence_length : std::min(positions, kLongestWindow);
    if (sequence_length > positions)
        fail_usage("--sequence-length {} is more than the {} positions of the model", sequence_length,
                   positions);
    const TokenBatch batch = read_batch(options, stored, sequence_length);
    options.output.check();
    Transformer model(stored.config(), find_recipe("bf16"), {});
    stored.read(model);

    AlignmentStudy study(model, batch.tokens.tensor(), batch.targets.tensor(), options.seed);
    const std::string source = options.data.empty() ? "random tokens (no --data)" : options.data;
    fmt::print("{}, {} sequences of {} from {}: loss of bf16 {:.4f}\n", options.model.string(),
               options.batch_size, sequence_length, source, study.loss());
    const size_t width = widest_name(recipes);
    fmt::print("{:<{}}  {:>5}  {:<13}  {:>7}  {:>12}  {:>7}  {:>7}  {:>11}  {:>7}\n", "recipe", width,
               "block", "gradient", "cosine", "misalignment", "norm", "error", "mean cosine", "bias");
    std::vector<AlignmentResult> results;
    Json json = Json::array();
    for (const Recipe& recipe : recipes) {
        const RecipeAlignment result = study.measure(recipe, options.draws);
        print_rows(recipe, result, width);
        json.push_back(to_json(recipe, result));
        results.push_back({recipe.name, result});
    }
    options.output.write({{"model", options.model.string()},
                          {"data", options.data.empty() ? Json() : Json(options.data)},
                          {"sequences", options.batch_size},
                          {"sequence_length", sequence_length},
                          {"loss", study.loss()},
                          {"recipes", json}},
                         alignment_charts(results), 2);
}

}  // namespace

void add_align_study(CLI::App& study) {
    auto options = std::make_shared<Options>();
    CLI::App* command =
        study.add_subcommand("align", "Gradients of a whole model against those of bf16, through its depth");
    add_recipes(*command, options->names);
    command
        ->add_option("--model", options->model,
                     "A model directory (config.json, model.safetensors), or a checkpoint of a run")
        ->required()
        ->type_name("DIR");
    command->add_option("--data", options->data, "Token shards; none: random tokens")->type_name("SHARDS");
    command
        ->add_option("--sequence-length", options->sequence_length,
                     "Window in tokens (default: the model's positions, at most 2048)")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
        ->type_name("N");
    command->add_option("--batch-size", options->batch_size, "Windows of the one batch")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
        ->capture_default_str();
    command->add_option("--draws", options->draws, "Draws of signs and coins that are averaged")
        ->check(CLI::Range(1, 1 << 20))
        ->capture_default_str();
    command->add_flag("--bf16-forward", options->bf16_forward,
                      "Study the backward alone: the forward of every recipe in bf16");
    add_seed(*command, options->seed);
    options->output.add_to(*command);
    command->callback([options] { study_align(*options); });
}

}  // namespace nibble
