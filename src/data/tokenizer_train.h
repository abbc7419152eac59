// Training of a byte-level BPE vocabulary.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>

#include "data/tokenizer.h"

namespace nibble {

struct TokenizerTrainOptions {
    int64_t vocabulary_size = 0;  // with end-of-text and the 256 bytes
    std::string pattern;          // empty: kLlama3Pattern
    std::string end_of_text = "<|endoftext|>";
    int64_t min_frequency = 2;  // a pair that occurs less often is not merged
};

// Ids: 0 is end-of-text, 1 to 256 are the bytes in the order of their byte-level characters, then the merges.
// Each merge takes the most frequent pair; among equals the pair of the smaller left id, then of the smaller
// right id. The result depends on nothing but the multiset of pieces: not on the order of documents, nor on
// threads. It is that of the trainer in Hugging Face's tokenizers with the same alphabet and special token.
class TokenizerTrainer {
  public:
    explicit TokenizerTrainer(TokenizerTrainOptions options);

    // Counts the pieces of texts (in parallel). Bytes that are not UTF-8 count as U+FFFD.
    void add(std::span<const std::string> texts);

    // Throws Error when no text was added, or when the text has too few pairs for the vocabulary: the message
    // says the largest possible.
    Tokenizer train() const;

  private:
    using Counts = std::unordered_map<std::string, int64_t>;

    TokenizerTrainOptions options_;
    PreTokenizer pre_tokenizer_;
    Counts counts_;
};

}  // namespace nibble
