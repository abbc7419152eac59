// A model whose answers are known: after each letter it is all but certain of one next letter.
//
// The blocks add nothing (their weights are zero); the embedding is the identity, and the head has a row for
// each letter that looks for the letter before it. So the logit of the expected token is sqrt(hidden size),
// of all others 0.
#pragma once

#include <cmath>
#include <string>

#include "cli/support.h"
#include "data/data.h"
#include "train/model_directory.h"

namespace nibble {

// Makes tokenizer/ in `work`: one token for each byte, and the end of text.
inline Tokenizer make_byte_tokenizer(const Workspace& work) {
    write_text(work / "letters.txt", "a b c\n");
    const RunResult made =
        work.nibble({"tokenizer", "train", "--vocab-size", "257", "--out", "tokenizer", "letters.txt"});
    require(made.exit_code == 0, "{}", made.err);
    return Tokenizer::load(work / "tokenizer");
}

// Writes a model of the chain first -> second -> ... -> last -> end of text to `directory`. With ends = false
// nothing is expected after the last letter; if that occurs before, the text goes round. An empty chain is a
// model that finds every token equally likely.
inline ModelConfig make_chain_model(const Workspace& work, const std::string& directory,
                                    const std::string& chain, bool ends = true) {
    const Tokenizer tokenizer = make_byte_tokenizer(work);
    ModelConfig config;
    config.hidden_size = 288;
    config.intermediate_size = 16;
    config.vocab_size = tokenizer.vocabulary_size();
    config.num_hidden_layers = 1;
    config.num_attention_heads = config.num_key_value_heads = 2;
    config.head_dim = 144;
    config.max_position_embeddings = 32;
    config.bos_token_id = config.eos_token_id = tokenizer.end_of_text();

    Transformer model(config, find_recipe("bf16"), {});
    for (Parameter& parameter : model.parameters()) {
        for (float& value : parameter.master.span<float>())
            value = parameter.kind == ParameterKind::norm ? 1.0f : 0.0f;
    }
    float* embedding = model.parameter("embedding").master.as<float>();
    float* head = model.parameter("head").master.as<float>();
    for (int64_t i = 0; i < config.vocab_size; ++i) embedding[i * config.hidden_size + i] = 1.0f;
    int32_t before = tokenizer.end_of_text();
    for (const char letter : chain) {
        const int32_t token = tokenizer.encode(std::string(1, letter)).at(0);
        head[token * config.hidden_size + before] = 1.0f;
        before = token;
    }
    if (ends && !chain.empty()) head[tokenizer.end_of_text() * config.hidden_size + before] = 1.0f;
    write_model_directory(work / directory, config, model.parameters(),
                          {.dtype = DType::f32, .tokenizer = work / "tokenizer"});
    return config;
}

}  // namespace nibble
