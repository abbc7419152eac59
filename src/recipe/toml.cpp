// Recipes as TOML files.
//
//   name = "mine"
//   title = "..."               (optional, as are source, keep_first, keep_last and lm_head)
//   [fprop]
//   x = { from = "original", spec = "nvfp4 1x16" }      or, for the original, x = "nvfp4 1x16"
//   w = ...
//   [dgrad]  dy, w      [wgrad]  dy, x
//
// and optionally
//   y = "fp4 32x32"                               in [fprop], dx in [dgrad]: what results are quantised to
//   factor = { name = "dge", k = 5, cap = 3 }     in [wgrad]
//   [outliers]  quantile = 0.99, product = "bf16"
//   [[modifier]]  name = "cage" and its options
#include <toml++/toml.h>

#include <algorithm>
#include <cctype>
#include <initializer_list>

#include "recipe/recipe.h"
#include "recipe/text.h"

namespace nibble {

namespace {

class Reader {
  public:
    explicit Reader(std::string_view where) : where_(where) {}

    Recipe read(const toml::table& root) const {
        check_keys(root,
                   {"name", "title", "source", "keep_first", "keep_last", "lm_head", "fprop", "dgrad",
                    "wgrad", "outliers", "modifier"},
                   "a recipe");
        Recipe recipe;
        recipe.name = text(root, "name");
        if (root.contains("title")) recipe.title = text(root, "title");
        if (root.contains("source")) recipe.source = text(root, "source");
        if (root.contains("keep_first")) recipe.keep_first = kept(root, "keep_first");
        if (root.contains("keep_last")) recipe.keep_last = kept(root, "keep_last");
        if (root.contains("lm_head")) recipe.lm_head = text(root, "lm_head");
        for (const std::string_view name : kOperandNames) {
            const size_t dot = name.find('.');
            operand(recipe, name) =
                read_operand(product(root, name.substr(0, dot)), name, name.substr(dot + 1));
        }
        for (const std::string_view name : kOutputNames) {
            const size_t dot = name.find('.');
            const toml::node* node = product(root, name.substr(0, dot)).get(name.substr(dot + 1));
            if (node != nullptr) output(recipe, name) = spec_of(*node, name);
        }
        if (const toml::node* node = root.get("outliers")) recipe.outliers = outliers(*node);
        if (const toml::node* node = product(root, "wgrad").get("factor")) recipe.wgrad_factor = dge(*node);
        if (const toml::node* modifiers = root.get("modifier")) {
            if (!modifiers->is_array_of_tables()) {
                fail_at(modifiers->source(), "modifiers are tables, each begun by [[modifier]]");
            }
            for (const toml::node& node : *modifiers->as_array()) {
                recipe.modifiers.push_back(read_modifier(*node.as_table()));
            }
        }
        return recipe;
    }

    [[noreturn]] void fail_at(const toml::source_region& region, std::string_view message) const {
        fail_usage("{}:{}:{}: {}", where_, region.begin.line, region.begin.column, message);
    }

  private:
    void check_keys(const toml::table& table, std::initializer_list<std::string_view> known,
                    std::string_view what) const {
        const std::vector<std::string> names(known.begin(), known.end());
        for (const auto& [key, value] : table) {
            if (std::find(names.begin(), names.end(), key.str()) != names.end()) continue;
            const std::string nearest = nearest_name(key.str(), names);
            fail_at(key.source(),
                    fmt::format("{} has no key '{}'{}", what, key.str(),
                                nearest.empty() ? "" : fmt::format("; did you mean '{}'?", nearest)));
        }
    }

    const toml::node& need(const toml::table& table, std::string_view key, std::string_view shown) const {
        const toml::node* node = table.get(key);
        if (node == nullptr) fail_at(table.source(), fmt::format("'{}' is missing", shown));
        return *node;
    }

    std::string text_of(const toml::node& node, std::string_view shown) const {
        const auto* string = node.as_string();
        if (string == nullptr) fail_at(node.source(), fmt::format("'{}' is a text in quotes", shown));
        return string->get();
    }

    std::string text(const toml::table& table, std::string_view key) const {
        return text_of(need(table, key, key), key);
    }

    double kept(const toml::table& table, std::string_view key) const {
        const toml::node& node = need(table, key, key);
        std::optional<double> amount;
        if (const auto* integer = node.as_integer()) amount = static_cast<double>(integer->get());
        if (const auto* number = node.as_floating_point()) amount = number->get();
        if (const auto* string = node.as_string()) amount = detail::parse_kept(string->get());
        if (!amount || !detail::is_valid_kept(*amount)) {
            fail_at(node.source(),
                    fmt::format("'{}' is a number of blocks or a share of them below \"100%\"", key));
        }
        return *amount;
    }

    const toml::table& product(const toml::table& root, std::string_view name) const {
        const toml::node& node = need(root, name, name);
        if (!node.is_table()) fail_at(node.source(), fmt::format("'{}' is a table of two operands", name));
        const toml::table& table = *node.as_table();
        if (name == "fprop") check_keys(table, {"x", "w", "y"}, "fprop");
        if (name == "dgrad") check_keys(table, {"dy", "w", "dx"}, "dgrad");
        if (name == "wgrad") check_keys(table, {"dy", "x", "factor"}, "wgrad");
        return table;
    }

    OperandSpec read_operand(const toml::table& table, std::string_view name, std::string_view key) const {
        const toml::node& node = need(table, key, name);
        OperandSpec result;
        if (node.is_string()) {
            result.spec = spec_of(node, name);
            return result;
        }
        if (!node.is_table()) {
            fail_at(node.source(),
                    fmt::format("'{}' is a spec or {{ from = \"original\", spec = \"...\" }}", name));
        }
        const toml::table& parts = *node.as_table();
        check_keys(parts, {"from", "spec"}, name);
        if (const toml::node* from = parts.get("from")) result.source = source_of(*from, name);
        result.spec = spec_of(need(parts, "spec", fmt::format("{}.spec", name)), name);
        return result;
    }

    // The number `key` of `table`, or what it is where nothing is said.
    double number(const toml::table& table, std::string_view key, std::string_view shown,
                  double otherwise) const {
        const toml::node* node = table.get(key);
        if (node == nullptr) return otherwise;
        const std::optional<double> value = node->value<double>();
        if (!node->is_number() || !value) fail_at(node->source(), fmt::format("'{}' is a number", shown));
        return *value;
    }

    Outliers outliers(const toml::node& node) const {
        if (!node.is_table()) fail_at(node.source(), "'outliers' is a table: quantile, product");
        const toml::table& table = *node.as_table();
        check_keys(table, {"quantile", "product"}, "outliers");
        Outliers result;
        result.quantile = number(table, "quantile", "outliers.quantile", result.quantile);
        if (const toml::node* spec = table.get("product"))
            result.product = spec_of(*spec, "outliers.product");
        return result;
    }

    Dge dge(const toml::node& node) const {
        constexpr std::string_view kForm = "{ name = \"dge\", k = 5, cap = 3 }";
        if (!node.is_table()) fail_at(node.source(), fmt::format("'wgrad.factor' is {}", kForm));
        const toml::table& table = *node.as_table();
        check_keys(table, {"name", "k", "cap"}, "wgrad.factor");
        const toml::node& name = need(table, "name", "wgrad.factor.name");
        if (text_of(name, "wgrad.factor.name") != "dge") {
            fail_at(name.source(), fmt::format("the only factor of dW is \"dge\": {}", kForm));
        }
        Dge result;
        result.k = number(table, "k", "wgrad.factor.k", result.k);
        result.cap = number(table, "cap", "wgrad.factor.cap", result.cap);
        return result;
    }

    // body(), whose UsageError then says where the node stands.
    template <typename Body>
    auto located(const toml::node& node, Body&& body) const {
        try {
            return body();
        } catch (const UsageError& error) {
            fail_at(node.source(), error.what());
        }
    }

    Modifier read_modifier(const toml::table& table) const {
        const toml::node& name = need(table, "name", "name of a modifier");
        const std::string word = text_of(name, "name");
        Modifier modifier = located(name, [&] { return make_modifier(word); });
        for (const auto& [key, value] : table) {
            if (key.str() == "name") continue;
            const std::string text = option_text(value, key.str());
            located(value, [&, option = key.str()] { set_option(modifier, option, text); });
        }
        return modifier;
    }

    // As the one-line form of a modifier has it.
    std::string option_text(const toml::node& node, std::string_view shown) const {
        if (const auto* whole = node.as_integer()) return fmt::format("{}", whole->get());
        if (const auto* number = node.as_floating_point()) return fmt::format("{}", number->get());
        return text_of(node, shown);
    }

    Source source_of(const toml::node& node, std::string_view name) const {
        const std::string word = text_of(node, fmt::format("{}.from", name));
        std::vector<std::string> known;
        for (const Source source : {Source::original, Source::forward, Source::same_bits}) {
            if (name_of(source) == word) return source;
            known.emplace_back(name_of(source));
        }
        const std::string nearest = nearest_name(word, known);
        fail_at(node.source(), fmt::format("{} cannot be made from '{}'; {}", name, word,
                                           nearest.empty() ? "it is original, forward or same-bits"
                                                           : fmt::format("did you mean '{}'?", nearest)));
    }

    QuantSpec spec_of(const toml::node& node, std::string_view name) const {
        const std::string word = text_of(node, name);
        try {
            return parse_spec(word);
        } catch (const UsageError& error) {
            fail_at(node.source(), fmt::format("{}: {}", name, error.what()));
        }
    }

    std::string_view where_;
};

// A TOML basic string.
std::string toml_string(std::string_view text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
            out += fmt::format("\\u{:04X}", static_cast<unsigned char>(c));
        } else {
            out += c;
        }
    }
    return out + '"';
}

// Blocks as a number, a share as "15%".
std::string kept_value(double amount) {
    const std::string text = detail::kept_text(amount);
    return text.ends_with('%') ? toml_string(text) : text;
}

// A line for a result that is quantised.
std::string result(std::string_view key, const QuantSpec& spec) {
    return spec.is_quantized() ? fmt::format("{:<2} = {}\n", key, toml_string(to_string(spec))) : "";
}

}  // namespace

Recipe parse_recipe(std::string_view text, std::string_view where) {
    const Reader reader(where);
    Recipe recipe;
    try {
        recipe = reader.read(toml::parse(text));
    } catch (const toml::parse_error& error) {
        reader.fail_at(error.source(), error.description());
    }
    try {
        validate(recipe);
    } catch (const UsageError& error) {
        fail_usage("{}: {}", where, error.what());
    }
    return recipe;
}

std::string to_toml(const Recipe& recipe) {
    std::string out;
    out += "name = " + toml_string(recipe.name) + "\n";
    out += "title = " + toml_string(recipe.title) + "\n";
    out += "source = " + toml_string(recipe.source) + "\n";
    out += "keep_first = " + kept_value(recipe.keep_first) + "\n";
    out += "keep_last = " + kept_value(recipe.keep_last) + "\n";
    out += "lm_head = " + toml_string(recipe.lm_head) + "\n";
    std::string_view product;
    for (const std::string_view name : kOperandNames) {
        const size_t dot = name.find('.');
        if (name.substr(0, dot) != product) {
            product = name.substr(0, dot);
            out += fmt::format("\n[{}]\n", product);
        }
        const OperandSpec& o = operand(recipe, name);
        out += fmt::format("{:<2} = {{ from = {}, spec = {} }}\n", name.substr(dot + 1),
                           toml_string(name_of(o.source)), toml_string(to_string(o.spec)));
        if (name == "fprop.w") out += result("y", recipe.fprop_y);
        if (name == "dgrad.w") out += result("dx", recipe.dgrad_dx);
    }
    if (const auto& dge = recipe.wgrad_factor) {  // [wgrad] is the last of the products
        out += fmt::format("factor = {{ name = \"dge\", k = {}, cap = {} }}\n", dge->k, dge->cap);
    }
    if (const auto& outliers = recipe.outliers) {
        out += fmt::format("\n[outliers]\nquantile = {}\nproduct = {}\n", outliers->quantile,
                           toml_string(to_string(outliers->product)));
    }
    for (const Modifier& modifier : recipe.modifiers) {
        out += fmt::format("\n[[modifier]]\nname = {}\n", toml_string(name_of(modifier)));
        for (const auto& [option, value] : options_of(modifier)) {
            const bool is_word = std::isalpha(static_cast<unsigned char>(value.front())) != 0;
            out += fmt::format("{} = {}\n", option, is_word ? toml_string(value) : value);
        }
    }
    return out;
}

}  // namespace nibble
