// nibble generate: text from a model.
#include <algorithm>
#include <memory>

#include "cli/commands.h"
#include "cli/forward_options.h"
#include "core/cuda.h"
#include "train/evaluation.h"
#include "train/model_directory.h"
#include "train/sampling.h"

namespace nibble {

namespace {

struct GenerateOptions {
    fs::path model;
    std::string prompt;
    ForwardOptions forward;
    int64_t max_tokens = 128;
    SamplingOptions sampling;
    uint64_t seed = 0;
};

void write_out(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
}

void generate(const GenerateOptions& options) {
    const ModelConfig config = read_model_config(options.model);
    const Tokenizer tokenizer = Tokenizer::load(options.model);
    require(tokenizer.vocabulary_size() <= config.vocab_size,
            "{}: the tokenizer has {} tokens, the model only {}", options.model.string(),
            tokenizer.vocabulary_size(), config.vocab_size);
    const int32_t end = config.eos_token_id >= 0 ? config.eos_token_id : tokenizer.end_of_text();
    std::vector<int32_t> text = {start_token(config, tokenizer)};
    const std::vector<int32_t> prompt = tokenizer.encode(options.prompt);
    text.insert(text.end(), prompt.begin(), prompt.end());

    Transformer model = options.forward.make_model(config);
    read_parameters(options.model, config, model.parameters());

    // The window that the model sees: the whole text, or its end where that is longer than the model's
    // positions. Its length grows in steps, because each new shape costs the preparation of all products;
    // what stands behind the text is the last token again, which attention does not look at.
    constexpr int64_t kStep = 16;
    const auto window_of = [&](int64_t length) {
        return std::min(config.max_position_embeddings, (length + kStep - 1) / kStep * kStep);
    };
    Arena arena(options.forward.chosen_device());
    Context context{.arena = arena, .seed = options.seed};
    std::vector<int32_t> window_tokens;
    std::vector<float> last_logits(static_cast<size_t>(config.vocab_size));
    const auto next_token = [&](int64_t text_length) {
        const ArenaScope scope(arena);
        const int64_t window = window_of(text_length), used = std::min(window, text_length);
        const Tensor tokens = arena.allocate(DType::i32, {1, window});
        const Tensor logits = arena.allocate(DType::f32, {window, config.vocab_size});
        if (!context.planning()) {
            window_tokens.assign(text.end() - used, text.end());
            window_tokens.resize(static_cast<size_t>(window), text.back());
            copy(context, view_of(window_tokens, {1, window}), tokens);
        }
        model.logits(context, tokens, logits);
        if (context.planning()) return int32_t{0};
        copy(context, logits.slice(used - 1, used), view_of(last_logits, {config.vocab_size}));
        // Only ids that the tokenizer has a text for.
        const auto known = std::span(last_logits).first(static_cast<size_t>(tokenizer.vocabulary_size()));
        return sample_token(known, options.sampling, options.seed, text.size());
    };
    {
        const ArenaScope scope(arena);
        model.begin_step(context);
        next_token(static_cast<int64_t>(text.size()) + options.max_tokens);
    }
    arena.commit();

    const ArenaScope scope(arena);
    model.begin_step(context);
    write_out(options.prompt);
    for (int64_t i = 0; i < options.max_tokens; ++i) {
        const int32_t token = next_token(static_cast<int64_t>(text.size()));
        if (token == end) break;
        text.push_back(token);
        write_out(tokenizer.decode(std::span(&token, 1), /*skip_special=*/true));
    }
    write_out("\n");
}

}  // namespace

void add_generate_command(CLI::App& app) {
    auto options = std::make_shared<GenerateOptions>();
    CLI::App* command = app.add_subcommand("generate", "Let a model continue a text");
    command
        ->add_option("--model", options->model,
                     "A model directory (config.json, model.safetensors, tokenizer.json)")
        ->required()
        ->type_name("DIR");
    command->add_option("--prompt", options->prompt, "The text to continue (may be empty)")
        ->required()
        ->type_name("TEXT");
    command
        ->add_option("--max-tokens", options->max_tokens,
                     "Stop after so many tokens, if the text has not ended (default: 128)")
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
        ->type_name("N");
    command
        ->add_option("--temperature", options->sampling.temperature,
                     "0: always the most likely token (default: 1)")
        ->check(CLI::Range(0.0, 100.0))
        ->type_name("T");
    command
        ->add_option("--top-k", options->sampling.top_k, "Draw among the K most likely; 0: all (default: 0)")
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
        ->type_name("K");
    command
        ->add_option("--top-p", options->sampling.top_p,
                     "Draw among the most likely that together have this probability (default: 1)")
        ->check(CLI::Range(0.0, 1.0))
        ->type_name("P");
    command->add_option("--seed", options->seed, "The same seed gives the same text (default: 0)")
        ->check(kWholeNumber)
        ->type_name("S");
    options->forward.add_to(*command);
    command->footer(
        "Prints the prompt and its continuation. The model sees at most as many tokens as it has positions.");
    command->callback([options] { generate(*options); });
}

}  // namespace nibble
