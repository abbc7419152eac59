#include "data/tokenizer_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "core/error.h"
#include "data/byte_level.h"
#include "data/json_line.h"
#include "data/pre_tokenizer.h"
#include "data/quoted.h"
#include "data/utf8.h"

namespace nibble {

namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// Ids above this are no vocabulary but a damaged file; each costs memory.
constexpr int64_t kMaxTokens = int64_t{1} << 22;

class Parser {
  public:
    Parser(std::string_view text, std::string_view name) : name_(name) {
        try {
            root_ = Json::parse(text);
        } catch (const Json::exception& error) {
            refuse("is not JSON: {}", json_error_line(error));
        }
        if (!root_.is_object()) refuse("is not a JSON object");
    }

    TokenizerDescription parse() {
        const Json& model = object(root_, "model");
        if (model.contains("type") && model["type"] != "BPE")
            refuse("has a model of type {}, not BPE", shown(model["type"]));
        if (!is_nothing(root_, "normalizer")) {
            refuse("normalises text before it cuts it (normalizer), which nibble does not do");
        }
        for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
            if (!is_nothing(model, key) && model[key] != "")
                refuse("has {} {}, which nibble does not read", key, shown(model[key]));
        }
        if (!is_nothing(model, "dropout") && model["dropout"] != 0.0)
            refuse("drops merges at random (dropout)");
        if (flag(model, "byte_fallback", false)) refuse("is not byte-level (byte_fallback is true)");
        result_.ignore_merges = flag(model, "ignore_merges", false);
        parse_pre_tokenizer();
        parse_vocabulary(model);
        parse_merges(model);
        return std::move(result_);
    }

  private:
    template <typename... Args>
    [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
        fail("{} {}", name_, fmt::format(format, std::forward<Args>(args)...));
    }

    // A value as one short line.
    static std::string shown(const Json& value) {
        std::string text = value.is_structured() ? value.type_name() : value.dump(-1, ' ', true);
        if (text.size() > 60) text = text.substr(0, 57) + "...";
        return text;
    }
    static bool is_nothing(const Json& at, const char* key) { return !at.contains(key) || at[key].is_null(); }

    const Json& object(const Json& at, const char* key) const {
        if (!at.contains(key) || !at[key].is_object()) refuse("has no object {}", Quoted{key});
        return at[key];
    }
    bool flag(const Json& at, const char* key, bool otherwise) const {
        if (is_nothing(at, key)) return otherwise;
        if (!at[key].is_boolean()) refuse("has {} = {}, which should be true or false", key, shown(at[key]));
        return at[key].get<bool>();
    }
    const std::string& text(const Json& at, const char* key) const {
        if (!at.contains(key) || !at[key].is_string())
            refuse("has no text {} where it needs one", Quoted{key});
        return at[key].get_ref<const std::string&>();
    }
    int32_t id(const Json& value, std::string_view token) const {
        if (!value.is_number_integer() || value < 0 || value >= kMaxTokens) {
            refuse("gives the token {} the id {}, which is not a whole number from 0 to {}", Quoted{token},
                   shown(value), kMaxTokens - 1);
        }
        return value.get<int32_t>();
    }

    void parse_pre_tokenizer() {
        const Json& top = object(root_, "pre_tokenizer");
        std::vector<const Json*> parts{&top};
        if (text(top, "type") == "Sequence") {
            if (!top.contains("pretokenizers") || !top["pretokenizers"].is_array())
                refuse("has a Sequence without pretokenizers");
            parts.clear();
            for (const Json& part : top["pretokenizers"]) parts.push_back(&part);
        }
        for (size_t i = 0; i < parts.size(); ++i) {
            if (!parts[i]->is_object()) refuse("has a pre-tokeniser that is no object");
            const std::string& type = text(*parts[i], "type");
            const bool last = i + 1 == parts.size();
            if (last != (type == "ByteLevel")) {
                refuse(
                    "pre-tokenises with {}{}; nibble reads byte-level BPE, whose last pre-tokeniser is "
                    "ByteLevel",
                    type, last ? " at the end" : "");
            }
            parse_pre_tokenizer_part(*parts[i], type);
        }
        if (parts.empty()) refuse("has no pre-tokeniser; nibble reads byte-level BPE");
    }

    void parse_pre_tokenizer_part(const Json& part, const std::string& type) {
        if (type == "ByteLevel") {
            if (flag(part, "add_prefix_space", true))
                refuse("adds a space before texts (add_prefix_space), which nibble does not do");
            if (flag(part, "use_regex", true)) result_.patterns.emplace_back(kGpt2Pattern);
        } else if (type == "Digits") {
            result_.patterns.emplace_back(flag(part, "individual_digits", false) ? "\\p{N}" : "\\p{N}+");
        } else if (type == "Split") {
            if (text(part, "behavior") != "Isolated")
                refuse("splits with behavior {}, nibble reads Isolated", shown(part["behavior"]));
            const Json& pattern = object(part, "pattern");
            if (!pattern.contains("Regex"))
                refuse("splits by a fixed text, nibble reads regular expressions");
            result_.patterns.push_back(text(pattern, "Regex"));
        } else {
            refuse("pre-tokenises with {}, which nibble does not read", type);
        }
    }

    void parse_vocabulary(const Json& model) {
        // Added tokens first: they alone may have characters outside the byte-level alphabet.
        std::unordered_map<std::string, int32_t> added;
        if (!is_nothing(root_, "added_tokens")) {
            if (!root_["added_tokens"].is_array()) refuse("has added_tokens that are no list");
            for (const Json& entry : root_["added_tokens"]) parse_added_token(entry, added);
        }
        const Json& vocabulary = object(model, "vocab");
        for (const auto& item : vocabulary.get_ref<const Json::object_t&>()) {
            const int32_t token_id = id(item.second, item.first);
            const auto found = added.find(item.first);
            if (found != added.end() && found->second != token_id) {
                refuse("gives the token {} the ids {} and {}", Quoted{item.first}, token_id, found->second);
            }
            place(token_id, item.first, found != added.end());
            ids_.emplace(item.first, token_id);
        }
        for (char32_t symbol : byte_level_alphabet()) {
            std::string single;
            append_utf8(single, symbol);
            if (!ids_.contains(single))
                refuse("has no token for one of the 256 bytes ({}); nibble reads byte-level BPE",
                       Quoted{single});
        }
        check_ids_of_added_tokens();
    }

    // Hugging Face's package gives added tokens that are not in the vocabulary the ids behind it, whatever
    // the file says. A file that says otherwise would mean different things to different readers.
    void check_ids_of_added_tokens() const {
        int64_t next = static_cast<int64_t>(ids_.size());
        for (const AddedToken& token : result_.added_tokens) {
            if (!ids_.contains(token.content) && token.id != next) {
                refuse("gives the added token {} the id {}, but the next behind the vocabulary is {}",
                       Quoted{token.content}, token.id, next);
            }
            next = std::max(next, int64_t{token.id} + 1);
        }
    }

    void parse_added_token(const Json& entry, std::unordered_map<std::string, int32_t>& added) {
        if (!entry.is_object()) refuse("has an added token that is no object");
        AddedToken token;
        token.content = text(entry, "content");
        if (!entry.contains("id")) refuse("has an added token without id: {}", Quoted{token.content});
        token.id = id(entry["id"], token.content);
        token.special = flag(entry, "special", false);
        token.normalized = flag(entry, "normalized", !token.special);
        for (const char* key : {"single_word", "lstrip", "rstrip"}) {
            if (flag(entry, key, false))
                refuse("has an added token {} with {}, which nibble does not read", Quoted{token.content},
                       key);
        }
        if (token.content.empty()) refuse("has an added token without text");
        if (!added.emplace(token.content, token.id).second)
            refuse("has the added token {} twice", Quoted{token.content});
        place(token.id, token.content, true);
        result_.added_tokens.push_back(std::move(token));
    }

    // Puts a token at its id. The bytes of an added token are its text; those of others are byte-level
    // characters.
    void place(int32_t token_id, const std::string& symbols, bool added) {
        std::optional<std::string> bytes = added ? symbols : from_byte_level(symbols);
        if (!bytes || bytes->empty()) refuse("has the token {}, which is not byte-level", Quoted{symbols});
        auto& vocabulary = result_.vocabulary;
        if (token_id >= static_cast<int64_t>(vocabulary.size())) vocabulary.resize(token_id + 1);
        std::string& slot = vocabulary[token_id];
        if (!slot.empty() && slot != *bytes)
            refuse("gives the id {} to two tokens, {} and {}", token_id, Quoted{slot}, Quoted{*bytes});
        slot = std::move(*bytes);
    }

    void parse_merges(const Json& model) {
        if (!model.contains("merges") || !model["merges"].is_array()) refuse("has no list of merges");
        for (const Json& entry : model["merges"]) {
            std::string left, right;
            if (entry.is_string()) {
                const auto& line = entry.get_ref<const std::string&>();
                if (line.starts_with("#version")) continue;
                const size_t space = line.find(' ');
                if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
                    refuse("has the merge {}, which is not two tokens", Quoted{line});
                }
                left = line.substr(0, space);
                right = line.substr(space + 1);
            } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
                       entry[1].is_string()) {
                left = entry[0].get<std::string>();
                right = entry[1].get<std::string>();
            } else {
                refuse("has the merge {}, which is not two tokens", shown(entry));
            }
            result_.merges.push_back({merge_part(left), merge_part(right), merge_part(left + right)});
        }
    }

    int32_t merge_part(const std::string& symbols) const {
        const auto found = ids_.find(symbols);
        if (found == ids_.end())
            refuse("merges to or from {}, which is not in its vocabulary", Quoted{symbols});
        return found->second;
    }

    std::string name_;
    Json root_;
    TokenizerDescription result_;
    std::unordered_map<std::string, int32_t> ids_;
};

}  // namespace

TokenizerDescription parse_tokenizer_json(std::string_view json, std::string_view name) {
    return Parser(json, name).parse();
}

std::string tokenizer_json(const TokenizerDescription& description) {
    require(description.patterns.size() == 1, "a tokenizer.json is written for one pattern, not {}",
            description.patterns.size());
    OrderedJson added = OrderedJson::array();
    std::vector<bool> is_added(description.vocabulary.size());
    for (const AddedToken& token : description.added_tokens) {
        added.push_back({{"id", token.id},
                         {"content", token.content},
                         {"single_word", false},
                         {"lstrip", false},
                         {"rstrip", false},
                         {"normalized", token.normalized},
                         {"special", token.special}});
        is_added[token.id] = true;
    }
    std::vector<std::string> symbols(description.vocabulary.size());
    OrderedJson::object_t vocabulary;
    for (size_t id = 0; id < symbols.size(); ++id) {
        const std::string& bytes = description.vocabulary[id];
        if (bytes.empty()) continue;
        symbols[id] = is_added[id] ? bytes : to_byte_level(bytes);
        // Not operator[], which would look at all earlier keys.
        static_cast<std::vector<OrderedJson::object_t::value_type>&>(vocabulary)
            .emplace_back(symbols[id], id);
    }
    OrderedJson merges = OrderedJson::array();
    // As texts, not pairs: all versions of the package read them.
    for (const Merge& merge : description.merges)
        merges.push_back(symbols[merge.left] + ' ' + symbols[merge.right]);

    // The decoder's flags decide nothing; they are those that the package itself writes.
    const auto byte_level = [](bool flags) {
        return OrderedJson{
            {"type", "ByteLevel"}, {"add_prefix_space", flags}, {"trim_offsets", true}, {"use_regex", flags}};
    };
    const OrderedJson split = {{"type", "Split"},
                               {"pattern", {{"Regex", description.patterns[0]}}},
                               {"behavior", "Isolated"},
                               {"invert", false}};
    const OrderedJson root = {
        {"version", "1.0"},
        {"truncation", nullptr},
        {"padding", nullptr},
        {"added_tokens", std::move(added)},
        {"normalizer", nullptr},
        {"pre_tokenizer",
         {{"type", "Sequence"}, {"pretokenizers", OrderedJson::array({split, byte_level(false)})}}},
        {"post_processor", nullptr},
        {"decoder", byte_level(true)},
        {"model",
         {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", description.ignore_merges},
          {"vocab", std::move(vocabulary)},
          {"merges", std::move(merges)}}},
    };
    return root.dump(2) + "\n";
}

}  // namespace nibble
