#include "data/tokenizer.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "data/hash.h"
#include "data/json_line.h"
#include "data/quoted.h"
#include "data/utf8.h"

namespace nibble {

namespace {

using OrderedJson = nlohmann::ordered_json;

// Names of the end-of-text token, where no configuration gives it: GPT-2, Llama 3, Llama 2.
constexpr const char* kEndOfTextNames[] = {"<|endoftext|>", "<|end_of_text|>", "</s>"};

constexpr const char* kTokenizerFile = "tokenizer.json";
constexpr const char* kConfigFile = "tokenizer_config.json";

// The eos_token of a tokenizer_config.json, or nothing.
std::optional<std::string> configured_end_of_text(const std::string& config, std::string_view name) {
    try {
        const auto root = nlohmann::json::parse(config);
        if (!root.is_object() || !root.contains("eos_token") || root["eos_token"].is_null())
            return std::nullopt;
        const auto& token = root["eos_token"];
        return (token.is_object() ? token.at("content") : token).get<std::string>();
    } catch (const nlohmann::json::exception& error) {
        fail("the {} beside {} cannot be read: {}", kConfigFile, name, json_error_line(error));
    }
}

uint64_t hash_vocabulary(const TokenizerDescription& description) {
    enum : uint8_t { kNone, kOrdinary, kAdded, kSpecial };
    std::vector<uint8_t> kinds(description.vocabulary.size());
    for (size_t id = 0; id < kinds.size(); ++id)
        kinds[id] = description.vocabulary[id].empty() ? kNone : kOrdinary;
    for (const AddedToken& token : description.added_tokens)
        kinds[token.id] = token.special ? kSpecial : kAdded;
    std::string canonical;
    for (size_t id = 0; id < kinds.size(); ++id) {
        const std::string& bytes = description.vocabulary[id];
        canonical.push_back(static_cast<char>(kinds[id]));
        for (int shift = 0; shift < 32; shift += 8)
            canonical.push_back(static_cast<char>(bytes.size() >> shift & 0xff));
        canonical += bytes;
    }
    return xxh64(canonical.data(), canonical.size());
}

}  // namespace

void Tokenizer::AddedTokenFinder::add(const AddedToken& token) {
    const auto longer = [](const AddedToken& a, const AddedToken& b) {
        return a.content.size() > b.content.size();
    };
    tokens_.insert(std::upper_bound(tokens_.begin(), tokens_.end(), token, longer), token);
    starts_[static_cast<uint8_t>(token.content[0])] = true;
}

std::optional<Tokenizer::AddedTokenFinder::Match> Tokenizer::AddedTokenFinder::find(
    std::string_view text, size_t from, SpecialTokens special) const {
    for (size_t at = from; at < text.size(); ++at) {
        if (!starts_[static_cast<uint8_t>(text[at])]) continue;
        for (const AddedToken& token : tokens_) {
            if (text.compare(at, token.content.size(), token.content) != 0) continue;
            if (token.special && special == SpecialTokens::as_text) continue;
            return Match{at, at + token.content.size(), &token};
        }
    }
    return std::nullopt;
}

Tokenizer::Tokenizer(TokenizerDescription description)
    : description_(std::move(description)),
      pre_tokenizer_(description_.patterns),
      merges_(description_.merges) {
    std::fill(std::begin(byte_tokens_), std::end(byte_tokens_), -1);
    std::vector<bool> is_added(description_.vocabulary.size());
    for (const AddedToken& token : description_.added_tokens) {
        is_added[token.id] = true;
        (token.normalized ? normalized_ : exact_).add(token);
    }
    for (size_t id = 0; id < description_.vocabulary.size(); ++id) {
        const std::string& bytes = description_.vocabulary[id];
        if (bytes.empty() || is_added[id]) continue;
        if (bytes.size() == 1) byte_tokens_[static_cast<uint8_t>(bytes[0])] = static_cast<int32_t>(id);
        if (description_.ignore_merges) whole_pieces_.emplace(bytes, static_cast<int32_t>(id));
    }
    require(std::find(std::begin(byte_tokens_), std::end(byte_tokens_), -1) == std::end(byte_tokens_),
            "a byte-level tokenizer needs an ordinary token for each of the 256 bytes");
    for (const char* name : kEndOfTextNames) {
        if (!end_of_text_) end_of_text_ = find_added_token(name);
    }
    vocabulary_hash_ = hash_vocabulary(description_);
}

Tokenizer Tokenizer::load(const fs::path& path) {
    const fs::path file = fs::is_directory(path) ? path / kTokenizerFile : path;
    require(fs::exists(file), "{} does not exist; make one with: nibble tokenizer train", file.string());
    const fs::path config = file.parent_path() / kConfigFile;
    return from_json(read_text(file), file.string(), fs::exists(config) ? read_text(config) : std::string());
}

Tokenizer Tokenizer::from_json(std::string json, std::string_view name, std::string config) {
    Tokenizer tokenizer = [&] {
        TokenizerDescription description = parse_tokenizer_json(json, name);
        try {
            return Tokenizer(std::move(description));
        } catch (const Error& error) {
            fail("{}: {}", name, error.what());
        }
    }();
    if (!config.empty()) {
        if (const auto end = configured_end_of_text(config, name)) {
            tokenizer.end_of_text_ = tokenizer.find_added_token(*end);
            require(tokenizer.end_of_text_.has_value(),
                    "{} has no token {}, the eos_token of the {} beside it", name, Quoted{*end}, kConfigFile);
        }
    }
    tokenizer.json_ = std::move(json);
    tokenizer.config_ = std::move(config);
    return tokenizer;
}

void Tokenizer::save(const fs::path& directory) const {
    std::string config = config_;
    if (config.empty()) {
        OrderedJson made = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                            {"clean_up_tokenization_spaces", false}};
        if (end_of_text_) {
            // One token begins, ends and pads: a model that reads documents one after the other meets it
            // before each.
            for (const char* key : {"bos_token", "eos_token", "pad_token"})
                made[key] = bytes_of(*end_of_text_);
        }
        config = made.dump(2) + "\n";
    }
    write_text(directory / kTokenizerFile, json_.empty() ? tokenizer_json(description_) : json_);
    write_text(directory / kConfigFile, config);
}

int32_t Tokenizer::end_of_text() const {
    require(end_of_text_.has_value(), "the tokenizer has no end-of-text token; name it as eos_token in {}",
            kConfigFile);
    return *end_of_text_;
}

std::optional<int32_t> Tokenizer::find_added_token(std::string_view content) const {
    for (const AddedToken& token : description_.added_tokens) {
        if (token.content == content) return token.id;
    }
    return std::nullopt;
}

std::string_view Tokenizer::bytes_of(int32_t token) const {
    require(token >= 0 && token < vocabulary_size(), "the token {} is outside the vocabulary of {}", token,
            vocabulary_size());
    return description_.vocabulary[token];
}

std::vector<int32_t> Tokenizer::text_bytes() const {
    std::vector<int32_t> bytes(description_.vocabulary.size());
    for (size_t id = 0; id < bytes.size(); ++id)
        bytes[id] = static_cast<int32_t>(description_.vocabulary[id].size());
    for (const AddedToken& token : description_.added_tokens) {
        if (token.special) bytes[token.id] = 0;
    }
    return bytes;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, SpecialTokens special) const {
    std::vector<int32_t> tokens;
    Encoder(*this).encode(text, special, tokens);
    return tokens;
}

std::string Tokenizer::decode(std::span<const int32_t> tokens, bool skip_special) const {
    std::string text;
    for (int32_t token : tokens) {
        const std::string_view bytes = bytes_of(token);
        const auto is_this = [token](const AddedToken& added) { return added.id == token && added.special; };
        if (skip_special &&
            std::any_of(description_.added_tokens.begin(), description_.added_tokens.end(), is_this))
            continue;
        text += bytes;
    }
    return text;
}

size_t Encoder::Hash::operator()(std::string_view text) const { return xxh64(text.data(), text.size()); }

void Encoder::encode(std::string_view text, SpecialTokens special, std::vector<int32_t>& tokens) {
    std::string repaired;
    if (!is_utf8(text)) text = repaired = repair_utf8(text);
    encode_between(tokenizer_.exact_, text, special, tokens);
}

// Cuts `text` at the added tokens of one finder, then what lies between them at those of the next.
void Encoder::encode_between(const Tokenizer::AddedTokenFinder& finder, std::string_view text,
                             SpecialTokens special, std::vector<int32_t>& tokens) {
    const bool is_last = &finder == &tokenizer_.normalized_;
    const auto encode_rest = [&](std::string_view part) {
        if (is_last) {
            tokenizer_.pre_tokenizer_.split(part, scratch_,
                                            [&](std::string_view piece) { encode_piece(piece, tokens); });
        } else {
            encode_between(tokenizer_.normalized_, part, special, tokens);
        }
    };
    size_t done = 0;
    while (!finder.empty()) {
        const auto match = finder.find(text, done, special);
        if (!match) break;
        encode_rest(text.substr(done, match->begin - done));
        tokens.push_back(match->token->id);
        done = match->end;
    }
    encode_rest(text.substr(done));
}

void Encoder::encode_piece(std::string_view piece, std::vector<int32_t>& tokens) {
    // Long pieces seldom come again; the cache is emptied when it has grown past what it is good for.
    constexpr size_t kLongestCached = 48, kMostCached = size_t{1} << 17;
    const bool cached = piece.size() <= kLongestCached;
    if (cached) {
        if (const auto found = cache_.find(piece); found != cache_.end()) {
            tokens.insert(tokens.end(), found->second.begin(), found->second.end());
            return;
        }
    }
    piece_tokens_.clear();
    const auto whole = tokenizer_.whole_pieces_.find(piece);
    if (whole != tokenizer_.whole_pieces_.end()) {
        piece_tokens_.push_back(whole->second);
    } else {
        for (char c : piece) piece_tokens_.push_back(tokenizer_.byte_tokens_[static_cast<uint8_t>(c)]);
        merger_.merge(tokenizer_.merges_, piece_tokens_);
    }
    tokens.insert(tokens.end(), piece_tokens_.begin(), piece_tokens_.end());
    if (cached) {
        if (cache_.size() >= kMostCached) cache_.clear();
        cache_.emplace(piece, piece_tokens_);
    }
}

}  // namespace nibble
