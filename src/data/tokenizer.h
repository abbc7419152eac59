// Tokenizer: byte-level BPE. Encodes and decodes as Hugging Face's `tokenizers` does with the same
// tokenizer.json.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/file.h"
#include "data/byte_pairs.h"
#include "data/pre_tokenizer.h"
#include "data/tokenizer_json.h"

namespace nibble {

// Whether the text of a special token, met in a text, is that token (as Hugging Face's encode has it) or
// plain text (so that no document can end itself: what token shards use).
enum class SpecialTokens : uint8_t { parse, as_text };

class Tokenizer {
  public:
    explicit Tokenizer(TokenizerDescription description);
    // From the folder of a model, or its tokenizer.json. A tokenizer_config.json beside it names the end of
    // text.
    static Tokenizer load(const fs::path& path);
    // From the texts of the two files; `name` names the first in errors. An empty config is none.
    static Tokenizer from_json(std::string json, std::string_view name, std::string config = {});

    // Writes tokenizer.json and tokenizer_config.json into a folder: the bytes they were loaded from, where
    // they were.
    void save(const fs::path& directory) const;

    // The largest id + 1.
    int64_t vocabulary_size() const { return static_cast<int64_t>(description_.vocabulary.size()); }
    // XXH64 of the canonical vocabulary (docs/data.md): equal for tokenizers whose ids mean the same.
    uint64_t vocabulary_hash() const { return vocabulary_hash_; }
    const TokenizerDescription& description() const { return description_; }

    // The token that ends documents: the eos_token of tokenizer_config.json, or one of the usual names.
    // Throws Error if there is none.
    int32_t end_of_text() const;
    // The id of an added token.
    std::optional<int32_t> find_added_token(std::string_view content) const;
    // The bytes of a token; empty where an id has no token. Throws Error if the id is outside the vocabulary.
    std::string_view bytes_of(int32_t token) const;
    // For each id, the bytes of text it stands for: 0 for special tokens. For bits per byte.
    std::vector<int32_t> text_bytes() const;

    std::vector<int32_t> encode(std::string_view text, SpecialTokens special = SpecialTokens::parse) const;
    // The bytes of the tokens; they are UTF-8 if the tokens came from encode() and are complete.
    std::string decode(std::span<const int32_t> tokens, bool skip_special = false) const;

  private:
    friend class Encoder;
    // Finds added tokens: at the leftmost place, the longest.
    class AddedTokenFinder {
      public:
        struct Match {
            size_t begin, end;
            const AddedToken* token;
        };
        void add(const AddedToken& token);
        bool empty() const { return tokens_.empty(); }
        std::optional<Match> find(std::string_view text, size_t from, SpecialTokens special) const;

      private:
        std::vector<AddedToken> tokens_;  // longest first
        std::vector<bool> starts_ = std::vector<bool>(256);
    };

    TokenizerDescription description_;
    PreTokenizer pre_tokenizer_;
    MergeTable merges_;
    AddedTokenFinder exact_, normalized_;  // looked for one after the other
    int32_t byte_tokens_[256];
    std::unordered_map<std::string_view, int32_t>
        whole_pieces_;  // views into description_; for ignore_merges
    std::optional<int32_t> end_of_text_;
    uint64_t vocabulary_hash_ = 0;
    std::string json_, config_;  // what was loaded
};

// Encodes many texts with one tokenizer (which must outlive it), remembering the pieces it has met. One
// object serves one thread.
class Encoder {
  public:
    explicit Encoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

    // Appends the tokens of `text`. Bytes that are not UTF-8 count as U+FFFD (repair_utf8).
    void encode(std::string_view text, SpecialTokens special, std::vector<int32_t>& tokens);

  private:
    struct Hash {
        using is_transparent = void;
        size_t operator()(std::string_view text) const;
    };
    void encode_between(const Tokenizer::AddedTokenFinder& finder, std::string_view text,
                        SpecialTokens special, std::vector<int32_t>& tokens);
    void encode_piece(std::string_view piece, std::vector<int32_t>& tokens);

    const Tokenizer& tokenizer_;
    PreTokenizer::Scratch scratch_;
    BytePairMerger merger_;
    std::vector<int32_t> piece_tokens_;
    std::unordered_map<std::string, std::vector<int32_t>, Hash, std::equal_to<>> cache_;
};

}  // namespace nibble
