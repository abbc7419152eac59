// nibble eval: loss on token shards, and multiple-choice tasks.
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "cli/forward_options.h"
#include "core/cuda.h"
#include "io/io.h"
#include "train/evaluation.h"
#include "train/model_directory.h"

namespace nibble {

namespace {

struct EvalOptions {
    fs::path model, logits;
    std::string data;
    ForwardOptions forward;
    std::vector<std::string> tasks;
    int64_t sequence_length = 0;  // 0: the model's positions, at most kLongestWindow
    int64_t batch_size = 8;
    bool json = false;
};

constexpr int64_t kLongestWindow = 2048;

using Json = nlohmann::ordered_json;

// Plans the memory of `work` over the model, and runs it.
template <typename Work>
auto run_planned(const Transformer& model, Work&& work) {
    Arena arena(model.options().device);
    Context context{.arena = arena};
    work(context);
    arena.commit();
    return work(context);
}

// The first windows of `data` and what the model says of them, for other programs to compare with.
void write_logits(Transformer& model, const TokenShards& data, int64_t sequence_length, int64_t batch_size,
                  const fs::path& path) {
    const EvaluationLoader loader(data, sequence_length);
    const int64_t windows = std::min(batch_size, loader.windows());
    const Buffer tokens(DType::i32, {windows, sequence_length}),
        targets(DType::i32, {windows, sequence_length});
    const Buffer logits(DType::f32, {windows, sequence_length, model.config().vocab_size});
    loader.load(0, tokens.tensor(), targets.tensor());
    run_planned(model, [&](Context& context) {
        const ArenaScope scope(context.arena);
        model.begin_step(context, Transformer::Execution::recipe);
        const Tensor made = context.arena.allocate(DType::f32, logits.tensor().shape);
        model.logits(context, on_device(context, tokens.tensor()), made);
        if (!context.planning()) copy(context, made, logits.tensor());
    });
    write_safetensors(path, {{"tokens", tokens.tensor()}, {"logits", logits.tensor()}});
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
    if (!options.logits.empty() && options.data.empty()) {
        fail_usage("nibble eval --logits writes the logits of --data SHARDS, which is missing");
    }
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

    Transformer model = options.forward.make_model(config);
    read_parameters(options.model, config, model.parameters());

    Json result = {{"model", options.model.string()},
                   {"recipe", model.recipe().name},
                   {"activations", options.forward.precision},
                   {"device", options.forward.device},
                   {"results", Json::array()}};
    constexpr auto kExecution = Transformer::Execution::recipe;
    if (data) {
        const std::vector<int32_t> token_bytes = tokenizer.text_bytes();
        const TextLoss loss = run_planned(model, [&](Context& context) {
            return evaluate_text(context, model, *data, token_bytes, sequence_length, options.batch_size,
                                 kExecution);
        });
        result["results"].push_back(text_record(options, sequence_length, loss));
        if (!options.logits.empty()) {
            write_logits(model, *data, sequence_length, options.batch_size, options.logits);
        }
    }
    for (size_t i = 0; i < tasks.size(); ++i) {
        const MultipleChoiceScore score = run_planned(model, [&](Context& context) {
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
    options->forward.add_to(*command);
    command
        ->add_option("--sequence-length", options->sequence_length,
                     "Window in tokens (default: the model's positions, at most 2048)")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
        ->type_name("N");
    command->add_option("--batch-size", options->batch_size, "Windows at a time (default: 8)")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
        ->type_name("N");
    command
        ->add_option(
            "--logits", options->logits,
            "Also write `tokens` I32 [batch, length] and `logits` F32 [batch, length, vocabulary] of the "
            "first --batch-size windows of --data")
        ->type_name("OUT.safetensors");
    command->add_flag("--json", options->json, "Print one JSON object");
    command->callback([options] { evaluate(*options); });
}

}  // namespace nibble
