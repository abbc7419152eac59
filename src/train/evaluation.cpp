#include "train/evaluation.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <numeric>

#include "core/cuda.h"
#include "core/interrupt.h"

namespace nibble {

int32_t start_token(const ModelConfig& config, const Tokenizer& tokenizer) {
    return config.bos_token_id >= 0 ? config.bos_token_id : tokenizer.end_of_text();
}

double TextLoss::loss() const { return loss_sum / static_cast<double>(tokens); }
double TextLoss::perplexity() const { return std::exp(loss()); }
double TextLoss::bits_per_byte() const {
    return loss_sum / std::numbers::ln2 / static_cast<double>(text_bytes);
}

TextLoss evaluate_text(Context& context, Transformer& model, const TokenShards& data,
                       std::span<const int32_t> token_bytes, int64_t sequence_length, int64_t batch_size,
                       Transformer::Execution execution, int64_t most_batches) {
    const EvaluationLoader loader(data, sequence_length);
    batch_size = std::min(batch_size, loader.windows());
    const ArenaScope scope(context.arena);
    const Buffer token_memory(DType::i32, {batch_size, sequence_length}),
        target_memory(DType::i32, {batch_size, sequence_length});
    const Tensor tokens = token_memory.tensor(), targets = target_memory.tensor();
    model.begin_step(context, execution);
    const auto forward = [&] {
        const ArenaScope batch_scope(context.arena);
        return model.forward(context, on_device(context, tokens), on_device(context, targets));
    };
    if (context.planning()) {
        forward();
        return {};
    }
    int64_t end = loader.windows();
    if (most_batches > 0) end = std::min(end, most_batches * batch_size);
    TextLoss result;
    for (int64_t first = 0; first < end && !stop_requested(); first += batch_size) {
        context.micro_step = static_cast<uint32_t>(first / batch_size % 256);  // fresh coins, as in training
        loader.load(first, tokens, targets);
        const HeadLoss loss = forward();
        result.loss_sum += loss.loss_sum;
        result.tokens += loss.count;
        for (const int32_t target : targets.span<const int32_t>()) {
            if (target >= 0) result.text_bytes += token_bytes[static_cast<size_t>(target)];
        }
    }
    return result;
}

// --- multiple choice

std::vector<MultipleChoice> read_multiple_choice(const fs::path& path) {
    const std::string text = read_text(path);
    std::vector<MultipleChoice> questions;
    int line_number = 0;
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = std::min(text.find('\n', begin), text.size());
        const std::string_view line = std::string_view(text).substr(begin, end - begin);
        begin = end + 1;
        ++line_number;
        if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;

        const std::string where = fmt::format("{}, line {}", path.string(), line_number);
        const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
        require(json.is_object(), "{}: this is not a JSON object", where);
        const char* key = json.contains("context") ? "context" : "question";
        require(json.contains(key) && json[key].is_string(),
                "{}: it has no text \"context\" (or \"question\")", where);
        require(json.contains("choices") && json["choices"].is_array() && json["choices"].size() >= 2,
                "{}: it has no list \"choices\" of at least two texts", where);
        MultipleChoice question{.context = json[key].get<std::string>(), .choices = {}, .answer = 0};
        const auto is_blank = [](char c) { return c == ' ' || c == '\n' || c == '\t'; };
        for (const auto& choice : json["choices"]) {
            require(choice.is_string() && !choice.get_ref<const std::string&>().empty(),
                    "{}: a choice is not text, or is empty", where);
            const std::string& words = choice.get_ref<const std::string&>();
            const bool apart =
                question.context.empty() || is_blank(question.context.back()) || is_blank(words.front());
            question.choices.push_back(apart ? words : " " + words);
        }
        const auto count = static_cast<int64_t>(question.choices.size());
        require(json.contains("answer") && json["answer"].is_number_unsigned() &&
                    json["answer"].get<int64_t>() < count,
                "{}: \"answer\" is not the index of a choice, 0 to {}", where, count - 1);
        question.answer = json["answer"].get<int>();
        questions.push_back(std::move(question));
    }
    require(!questions.empty(), "{}: there is no question in it", path.string());
    return questions;
}

namespace {

// One choice after its context, as the model sees it: inputs tokens[0 .. n-1), targets tokens[1 .. n), of
// which those from `first_target` on belong to the choice.
struct Continuation {
    std::vector<int32_t> tokens;
    size_t first_target = 1;
    size_t question = 0, choice = 0;
};

// The choice's tokens are what encoding context and choice together adds to the context alone: so a token
// that spans both counts as the choice's.
Continuation continuation_of(const Tokenizer& tokenizer, int32_t start, const std::string& context,
                             const std::string& choice, int64_t most_inputs) {
    const std::vector<int32_t> alone = tokenizer.encode(context, SpecialTokens::as_text);
    const std::vector<int32_t> both = tokenizer.encode(context + choice, SpecialTokens::as_text);
    const auto common = static_cast<size_t>(
        std::mismatch(alone.begin(), alone.end(), both.begin(), both.end()).second - both.begin());
    Continuation result;
    result.tokens.push_back(start);
    result.tokens.insert(result.tokens.end(), both.begin(), both.end());
    result.first_target = 1 + std::min(common, both.size() - 1);
    const size_t most = static_cast<size_t>(most_inputs) + 1;
    if (result.tokens.size() > most) {
        const size_t excess = result.tokens.size() - most;
        result.tokens.erase(result.tokens.begin(),
                            result.tokens.begin() + static_cast<std::ptrdiff_t>(excess));
        result.first_target -= std::min(excess, result.first_target - 1);
    }
    return result;
}

// The log-likelihood of each continuation of a batch.
void score_batch(Context& context, Transformer& model, std::span<const Continuation* const> batch,
                 int64_t length, std::vector<std::vector<double>>& scores) {
    const ArenaScope scope(context.arena);
    const auto rows = static_cast<int64_t>(batch.size());
    const Buffer token_memory(DType::i32, {rows, length}), target_memory(DType::i32, {rows, length});
    const Tensor tokens = token_memory.tensor(), targets = target_memory.tensor();
    const Tensor losses = context.arena.allocate(DType::f32, {rows, length});
    if (!context.planning()) {
        // Behind a continuation stands anything: attention is causal, and its losses do not count.
        std::fill_n(tokens.as<int32_t>(), tokens.count(), batch[0]->tokens[0]);
        std::fill_n(targets.as<int32_t>(), targets.count(), kIgnoredTarget);
        for (int64_t row = 0; row < rows; ++row) {
            const Continuation& item = *batch[static_cast<size_t>(row)];
            const size_t inputs = item.tokens.size() - 1;
            std::copy_n(item.tokens.begin(), inputs, tokens.as<int32_t>() + row * length);
            for (size_t t = item.first_target; t <= inputs; ++t) {
                targets.as<int32_t>()[row * length + static_cast<int64_t>(t) - 1] = item.tokens[t];
            }
        }
    }
    model.forward(context, on_device(context, tokens), on_device(context, targets), losses);
    if (context.planning()) return;
    const OnCpu read(losses);
    for (int64_t row = 0; row < rows; ++row) {
        const Continuation& item = *batch[static_cast<size_t>(row)];
        double sum = 0;
        for (size_t t = item.first_target; t < item.tokens.size(); ++t) {
            sum -= read.tensor().as<float>()[row * length + static_cast<int64_t>(t) - 1];
        }
        scores[item.question][item.choice] = sum;
    }
}

size_t best_of(std::span<const double> scores) {
    return static_cast<size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

}  // namespace

MultipleChoiceScore evaluate_multiple_choice(Context& context, Transformer& model, const Tokenizer& tokenizer,
                                             int32_t start, std::span<const MultipleChoice> questions,
                                             int64_t tokens_per_batch, Transformer::Execution execution) {
    std::vector<Continuation> items;
    std::vector<std::vector<double>> scores(questions.size());
    for (size_t q = 0; q < questions.size(); ++q) {
        scores[q].resize(questions[q].choices.size());
        for (size_t c = 0; c < questions[q].choices.size(); ++c) {
            items.push_back(continuation_of(tokenizer, start, questions[q].context, questions[q].choices[c],
                                            model.config().max_position_embeddings));
            items.back().question = q;
            items.back().choice = c;
        }
    }
    // Longest first: rows of a batch have nearly one length, and the first batch is the largest.
    std::vector<const Continuation*> order;
    for (const Continuation& item : items) order.push_back(&item);
    std::stable_sort(order.begin(), order.end(),
                     [](const auto* a, const auto* b) { return a->tokens.size() > b->tokens.size(); });

    const ArenaScope scope(context.arena);
    model.begin_step(context, execution);
    const auto length_of = [](const Continuation* item) {
        return static_cast<int64_t>(item->tokens.size()) - 1;
    };
    const int64_t rows = order.empty() ? 0 : std::max<int64_t>(1, tokens_per_batch / length_of(order[0]));
    for (size_t first = 0; first < order.size(); first += static_cast<size_t>(rows)) {
        const auto batch =
            std::span(order).subspan(first, std::min(static_cast<size_t>(rows), order.size() - first));
        score_batch(context, model, batch, length_of(batch[0]), scores);
        if (context.planning()) return {};
    }

    MultipleChoiceScore result;
    result.questions = static_cast<int64_t>(questions.size());
    for (size_t q = 0; q < questions.size(); ++q) {
        const auto answer = static_cast<size_t>(questions[q].answer);
        std::vector<double> per_byte = scores[q];
        for (size_t c = 0; c < per_byte.size(); ++c)
            per_byte[c] /= static_cast<double>(questions[q].choices[c].size());
        result.right += best_of(scores[q]) == answer;
        result.right_per_byte += best_of(per_byte) == answer;
        result.log_likelihood_sum += scores[q][answer];
    }
    return result;
}

}  // namespace nibble
