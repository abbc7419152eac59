// tokenizer.json, the format of Hugging Face's `tokenizers`, for byte-level BPE models.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// A token that is found in the text before anything else is cut.
struct AddedToken {
    int32_t id = 0;
    std::string content;
    bool special = true;      // left out when decoding, on request
    bool normalized = false;  // looked for after the tokens that are not
};

// Two tokens that become one. Earlier merges win.
struct Merge {
    int32_t left = 0, right = 0, merged = 0;
};

// All that decides how a byte-level BPE tokenizer encodes and decodes.
struct TokenizerDescription {
    std::vector<std::string> patterns;    // of the pre-tokeniser, applied one inside the other
    std::vector<std::string> vocabulary;  // the bytes of each token by id; empty where an id has none
    std::vector<AddedToken> added_tokens;
    std::vector<Merge> merges;
    bool ignore_merges = false;  // a piece that is a token as a whole is not merged
};

// Reads a tokenizer.json. `name` names it in errors. Read: model BPE; pre_tokenizer ByteLevel, or a Sequence
// of Split (Isolated) and Digits that ends in ByteLevel; added_tokens; merges as strings or as pairs.
// Whatever else changes an encoding (normalizers, unknown tokens, prefixes, stripping added tokens) is
// refused by name. Not read: post_processor, truncation, padding, for they add tokens around a text; decoder.
TokenizerDescription parse_tokenizer_json(std::string_view json, std::string_view name);

// Writes one. Needs a single pattern; tokens outside the byte-level alphabet must be added tokens.
std::string tokenizer_json(const TokenizerDescription& description);

}  // namespace nibble
