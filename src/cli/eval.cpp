// nibble eval: loss on token shards, and multiple-choice tasks.
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "train/evaluation.h"
#include "train/model_directory.h"

namespace nibble {

namespace {

struct EvalOptions {
    fs::path model;
    std::string data, recipe = "bf16", precision = "bf16";
    std::vector<std::string> tasks;
    int64_t sequence_length = 0;  // 0: the model's positions, at most kLongestWindow
    int64_t batch_size = 8;
    bool json = false;
};

constexpr int64_t kLongestWindow = 2048;

using Json = nlohmann::ordered_json;

// Plans the memory of `work` over the model, and runs it.
template <typename Work>
auto run_planned(Work&& work) {
    Arena arena;
    Context context{.arena = arena};
    work(context);
    arena.commit();
    return work(context);
}

Json text_record(const EvalOptions& options, int64_t sequence_length, const TextLoss& loss) {
    return {{"type", "text"},
            {"data", options.data},
            {"loss", loss.loss()},
            {"perplexity", loss.perplexity()},
            {"bits_per_byte", loss.bits_per_byte()},
            {"tokens", loss.tokens},
            {"text_bytes", loss.text_bytes},
            {"sequence_length", sequence_length}};
}

Json task_record(const std::string& path, const MultipleChoiceScore& score) {
    const auto count = static_cast<double>(score.questions);
    return {{"type", "multiple_choice"},
            {"file", path},
            {"questions", score.questions},
            {"accuracy", static_cast<double>(score.right) / count},
            {"accuracy_per_byte", static_cast<double>(score.right_per_byte) / count},
            {"answer_log_likelihood", score.log_likelihood_sum / count}};
}

void print_plain(const Json& result) {
    fmt::print("model {}, recipe {}\n", result["model"].get<std::string>(),
               result["recipe"].get<std::string>());
    for (const Json& record : result["results"]) {
        if (record["type"] == "text") {
            fmt::print(
                "{}: loss {:.4f}, perplexity {:.3f}, {:.4f} bits per byte, over {} tokens in windows of {}\n",
                record["data"].get<std::string>(), record["loss"].get<double>(),
                record["perplexity"].get<double>(), record["bits_per_byte"].get<double>(),
                record["tokens"].get<int64_t>(), record["sequence_length"].get<int64_t>());
        } else {
            fmt::print("{}: accuracy {:.4f}, per byte {:.4f}, over {} questions\n",
                       record["file"].get<std::string>(), record["accuracy"].get<double>(),
                       record["accuracy_per_byte"].get<double>(), record["questions"].get<int64_t>());
        }
    }
}

void evaluate(const EvalOptions& options) {
    if (options.data.empty() && options.tasks.empty()) {
        fail_usage("nibble eval needs --data SHARDS or --task FILE, or both");
    }
    const Recipe recipe = find_recipe(options.recipe);
    const ModelConfig config = read_model_config(options.model);
    const int64_t sequence_length = options.sequence_length > 0
                                        ? options.sequence_length
                                        : std::min(config.max_position_embeddings, kLongestWindow);
    if (sequence_length > config.max_position_embeddings) {
        fail_usage("--sequence-length {} is more than the {} positions of the model", sequence_length,
                   config.max_position_embeddings);
    }
    // Everything that can be wrong with the inputs is found before the model is read.
    const Tokenizer tokenizer = Tokenizer::load(options.model);
    require(tokenizer.vocabulary_size() <= config.vocab_size,
            "{}: the tokenizer has {} tokens, the model only {}", options.model.string(),
            tokenizer.vocabulary_size(), config.vocab_size);
    std::optional<TokenShards> data;
    if (!options.data.empty()) {
        data.emplace(options.data);
        data->require_tokenizer(tokenizer, options.model.string());
    }
    std::vector<std::vector<MultipleChoice>> tasks;
    for (const std::string& path : options.tasks) tasks.push_back(read_multiple_choice(path));

    Transformer model(config, recipe,
                      {.activations = options.precision == "fp32" ? DType::f32 : DType::bf16});
    read_parameters(options.model, config, model.parameters());

    Json result = {{"model", options.model.string()},
                   {"recipe", recipe.name},
                   {"activations", options.precision},
                   {"results", Json::array()}};
    constexpr auto kExecution = Transformer::Execution::recipe;
    if (data) {
        const std::vector<int32_t> token_bytes = tokenizer.text_bytes();
        const TextLoss loss = run_planned([&](Context& context) {
            return evaluate_text(context, model, *data, token_bytes, sequence_length, options.batch_size,
                                 kExecution);
        });
        result["results"].push_back(text_record(options, sequence_length, loss));
    }
    for (size_t i = 0; i < tasks.size(); ++i) {
        const MultipleChoiceScore score = run_planned([&](Context& context) {
            return evaluate_multiple_choice(context, model, tokenizer, start_token(config, tokenizer),
                                            tasks[i], options.batch_size * sequence_length, kExecution);
        });
        result["results"].push_back(task_record(options.tasks[i], score));
    }
    if (options.json) {
        fmt::print("{}\n", result.dump());
    } else {
        print_plain(result);
    }
}

}  // namespace

void add_eval_command(CLI::App& app) {
    auto options = std::make_shared<EvalOptions>();
    CLI::App* command = app.add_subcommand("eval", "Measure a model: loss on text, multiple-choice tasks");
    command
        ->add_option("--model", options->model,
                     "A model directory (config.json, model.safetensors, tokenizer.json)")
        ->required()
        ->type_name("DIR");
    command->add_option("--data", options->data, "Token shards: prints loss, perplexity and bits per byte")
        ->type_name("SHARDS");
    command
        ->add_option(
            "--task", options->tasks,
            "JSON lines of {\"context\", \"choices\", \"answer\"}: prints accuracy; may be given again")
        ->type_name("FILE");
    command->add_option("--recipe", options->recipe, "The recipe whose forward is used (default: bf16)")
        ->type_name("R");
    command->add_option("--precision", options->precision, "Of activations (default: bf16)")
        ->check(CLI::IsMember({"bf16", "fp32"}))
        ->type_name("bf16|fp32");
    command
        ->add_option("--sequence-length", options->sequence_length,
                     "Window in tokens (default: the model's positions, at most 2048)")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
        ->type_name("N");
    command->add_option("--batch-size", options->batch_size, "Windows at a time (default: 8)")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
        ->type_name("N");
    command->add_flag("--json", options->json, "Print one JSON object");
    command->callback([options] { evaluate(*options); });
}

}  // namespace nibble
