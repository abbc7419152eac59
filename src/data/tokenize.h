// Text to token shards.
#pragma once

#include <functional>
#include <vector>

#include "data/documents.h"
#include "data/shard.h"
#include "data/tokenizer.h"

namespace nibble {

struct TokenizeOptions {
    DocumentOptions documents;
    double validation_fraction = 0;  // 0: all in one
    int64_t tokens_per_shard = int64_t{1} << 27;
    SpecialTokens special = SpecialTokens::as_text;
};

struct TokenizeTotals {
    int64_t documents = 0, tokens = 0, text_bytes = 0;
};

struct TokenizeResult {
    TokenizeTotals train, validation;
    int64_t replaced = 0;  // parts of the input that were not UTF-8
};

struct TokenizeProgress {
    int64_t consumed_bytes, total_bytes;  // of the files, as they lie on disk
    int64_t tokens;
};

// Writes the shards of the documents of `files`, in their order, and a copy of the tokenizer: into OUT/, or
// with a validation fraction into OUT/train/ and OUT/validation/. Those folders must not exist yet (OUT must
// not, without a fraction); they appear when they are whole. Documents are encoded in parallel; the bytes
// written do not depend on the number of threads.
TokenizeResult tokenize_files(const Tokenizer& tokenizer, const std::vector<fs::path>& files,
                              const fs::path& out, const TokenizeOptions& options,
                              const std::function<void(const TokenizeProgress&)>& progress = {});

// Where a document is cut: its first `return` bytes are for training, the rest for validation. A document of
// less than 16 KiB goes whole to one side, by the XXH64 of its text (so equal documents stay together); a
// longer one gives its end, from the start of a line on.
size_t training_prefix(std::string_view document, double validation_fraction);

}  // namespace nibble
