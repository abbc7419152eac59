// What a model is worth on held-out text: its loss over token shards, and how it ranks given answers.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/core.h"
#include "data/data.h"
#include "nn/transformer.h"

namespace nibble {

// The token before every text: the configuration's bos_token_id, or else the tokenizer's end of text, which
// stood before each document in training.
int32_t start_token(const ModelConfig& config, const Tokenizer& tokenizer);

struct TextLoss {
    double loss_sum = 0;     // nats
    int64_t tokens = 0;      // that were predicted
    int64_t text_bytes = 0;  // that they stand for

    double loss() const;  // nats a token
    double perplexity() const;
    // All nats, those of the end-of-text tokens too, over the bytes of text: what it costs to store the
    // documents. Compares models of different tokenizers.
    double bits_per_byte() const;
};

// The loss over `data` in windows of `sequence_length`, each token but the first predicted once
// (EvaluationLoader), `batch_size` windows at a time. token_bytes: Tokenizer::text_bytes(). Quantises the
// weights first (begin_step); context.seed and step key what is stochastic. In a planning pass it sizes one
// batch. most_batches: only that many, if not 0. Returns early, with less, when stop_requested().
TextLoss evaluate_text(Context& context, Transformer& model, const TokenShards& data,
                       std::span<const int32_t> token_bytes, int64_t sequence_length, int64_t batch_size,
                       Transformer::Execution execution, int64_t most_batches = 0);

// A question with several continuations, one of which is right.
struct MultipleChoice {
    std::string context;
    std::vector<std::string> choices;  // as they follow the context, with the blank between
    int answer = 0;                    // which one is right, from 0
};

// Reads JSON lines: {"context" or "question": text, "choices": [text, ...], "answer": index}. A blank is put
// between context and choice unless one is there. Throws Error naming file and line.
std::vector<MultipleChoice> read_multiple_choice(const fs::path& path);

struct MultipleChoiceScore {
    int64_t questions = 0;
    int64_t right = 0;              // the most likely choice is the answer
    int64_t right_per_byte = 0;     // the same with the log-likelihood divided by the choice's bytes
    double log_likelihood_sum = 0;  // nats, of the right answers
};

// Ranks the choices by log P(choice | start, context), summed over the choice's tokens. `start` is the token
// before every context (the end of the document before). Contexts that do not fit in the model's positions
// lose their beginning. `tokens_per_batch` bounds the memory; in a planning pass one batch of the longest is
// sized.
MultipleChoiceScore evaluate_multiple_choice(Context& context, Transformer& model, const Tokenizer& tokenizer,
                                             int32_t start, std::span<const MultipleChoice> questions,
                                             int64_t tokens_per_batch, Transformer::Execution execution);

}  // namespace nibble
