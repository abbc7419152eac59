#include "train/run_config.h"

#include <fmt/ranges.h>
#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "train/phase_config.h"

namespace nibble {

using Json = nlohmann::ordered_json;

namespace {

template <typename... Fs>
struct Overloaded : Fs... {
    using Fs::operator()...;
};
template <typename... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;

std::string_view type_wanted(const ConfigSlot& slot) {
    return std::visit(Overloaded{[](int64_t*) { return "a whole number"; },
                                 [](double*) { return "a number"; }, [](std::string*) { return "a text"; },
                                 [](KeptBlocks*) { return "\"recipe\", a number, or a share like \"15%\""; },
                                 [](std::vector<double>*) { return "a list of numbers"; },
                                 [](std::vector<std::string>*) { return "a list of texts"; }},
                      slot);
}

const ConfigKey* find_key(std::string_view name) {
    const auto& keys = config_keys();
    const auto found =
        std::find_if(keys.begin(), keys.end(), [&](const ConfigKey& k) { return k.name == name; });
    return found == keys.end() ? nullptr : &*found;
}

[[noreturn]] void fail_unknown(std::string_view origin, const std::string& name) {
    if (name == "phase" || name.starts_with("phase."))
        fail_usage("{}: phases are tables of a file, each begun by [[phase]]", origin);
    std::vector<std::string> names;
    for (const ConfigKey& key : config_keys()) names.emplace_back(key.name);
    std::string near = nearest_name(name, names);
    // A key in the wrong section, or without one: compare the last word alone.
    if (near.empty()) {
        const std::string word = name.substr(name.rfind('.') + 1);
        for (const std::string& known : names)
            if (known.substr(known.rfind('.') + 1) == word) near = known;
    }
    fail_usage("{}: unknown key \"{}\"{}", origin, name,
               near.empty() ? "; `nibble train --print-config` lists all keys"
                            : fmt::format("; did you mean \"{}\"?", near));
}

// "recipe" -> -1, "3" -> 3, "15%" -> 0.15, anything else -> NaN.
double parse_kept(std::string_view text) {
    if (text == "recipe") return -1;
    double value = NAN;
    const bool share = text.ends_with('%');
    const std::string_view digits = share ? text.substr(0, text.size() - 1) : text;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size() || !(value >= 0)) return NAN;
    if (share) return value < 100 ? value / 100 : NAN;
    return value == std::floor(value) && value < 1e6 ? value : NAN;
}

// Whether `value` obeys the key's limits; if not, says what is allowed.
std::string broken_limit(const ConfigKey& key, const ConfigSlot& slot) {
    const auto number = [&](double x) -> std::string {
        if (x >= key.least && x <= key.largest) return "";
        if (key.largest >= 1e18) return fmt::format("must be at least {}, not {}", key.least, x);
        return fmt::format("must be from {} to {}, not {}", key.least, key.largest, x);
    };
    const auto word = [&](const std::string& x) -> std::string {
        if (key.words.empty() || std::find(key.words.begin(), key.words.end(), x) != key.words.end())
            return "";
        const std::string near = nearest_name(x, key.words);
        return fmt::format("must be one of {}, not \"{}\"{}", fmt::join(key.words, ", "), x,
                           near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near));
    };
    const auto each = [](const auto& list, const auto& check) -> std::string {
        for (const auto& element : list)
            if (std::string broken = check(element); !broken.empty()) return "each element " + broken;
        return "";
    };
    return std::visit(
        Overloaded{[&](int64_t* x) { return number(static_cast<double>(*x)); },
                   [&](double* x) { return number(*x); }, [&](std::string* x) { return word(*x); },
                   [&](KeptBlocks* x) -> std::string {
                       if (!std::isnan(parse_kept(x->text))) return "";
                       return fmt::format("must be {}, not \"{}\"", type_wanted(slot), x->text);
                   },
                   [&](std::vector<double>* x) -> std::string {
                       if (key.list_length > 0 && x->size() != key.list_length)
                           return fmt::format("must hold {} numbers, not {}", key.list_length, x->size());
                       return each(*x, number);
                   },
                   [&](std::vector<std::string>* x) { return each(*x, word); }},
        slot);
}

// Writes a TOML value into a slot; false if its type is another.
bool assign(const ConfigSlot& slot, const toml::node& value) {
    const auto whole = [](const toml::node& node) -> std::optional<int64_t> {
        if (auto i = node.as_integer()) return i->get();
        // 1e6 is a float in TOML, and a handy way to write a number of tokens.
        if (auto f = node.as_floating_point();
            f && f->get() == std::floor(f->get()) && std::abs(f->get()) < 9e15)
            return static_cast<int64_t>(f->get());
        return {};
    };
    const auto real = [](const toml::node& node) -> std::optional<double> {
        if (auto f = node.as_floating_point(); f && std::isfinite(f->get())) return f->get();
        if (auto i = node.as_integer()) return static_cast<double>(i->get());
        return {};
    };
    const auto text = [](const toml::node& node) -> std::optional<std::string> {
        if (auto s = node.as_string()) return s->get();
        return {};
    };
    const auto put = [](auto* to, auto&& from) {
        if (from) *to = *from;
        return from.has_value();
    };
    const auto put_list = [&](auto* to, auto&& convert) {
        const toml::array* array = value.as_array();
        if (array == nullptr) return false;
        to->clear();
        for (const toml::node& node : *array) {
            auto element = convert(node);
            if (!element) return false;
            to->push_back(*element);
        }
        return true;
    };
    return std::visit(Overloaded{[&](int64_t* to) { return put(to, whole(value)); },
                                 [&](double* to) { return put(to, real(value)); },
                                 [&](std::string* to) { return put(to, text(value)); },
                                 [&](KeptBlocks* to) {
                                     if (auto i = whole(value)) return to->text = std::to_string(*i), true;
                                     return put(&to->text, text(value));
                                 },
                                 [&](std::vector<double>* to) { return put_list(to, real); },
                                 [&](std::vector<std::string>* to) { return put_list(to, text); }},
                      slot);
}

void set_key(RunConfig& config, const std::string& name, const toml::node& value, const std::string& origin) {
    const ConfigKey* key = find_key(name);
    if (key == nullptr) fail_unknown(origin, name);
    const ConfigSlot slot = key->slot(config);
    if (!assign(slot, value)) fail_usage("{}: {} must be {}", origin, name, type_wanted(slot));
    if (const std::string broken = broken_limit(*key, slot); !broken.empty())
        fail_usage("{}: {} {}", origin, name, broken);
    config.origins[static_cast<size_t>(key - config_keys().data())] = origin;
}

void set_table(RunConfig& config, const toml::table& table, const std::string& prefix,
               const std::string& file) {
    for (const auto& [key, value] : table) {
        const std::string name =
            prefix.empty() ? std::string(key.str()) : fmt::format("{}.{}", prefix, key.str());
        const std::string origin = fmt::format("{}:{}", file, key.source().begin.line);
        if (name == "phase" && value.is_array_of_tables()) {
            for (const toml::node& phase : *value.as_array())
                config.phases.push_back(read_phase(*phase.as_table(), file));
            continue;
        }
        if (const toml::table* inner = value.as_table(); inner != nullptr && find_key(name) == nullptr) {
            if (inner->empty() &&
                std::none_of(config_keys().begin(), config_keys().end(),
                             [&](const ConfigKey& k) { return k.name.starts_with(name + "."); }))
                fail_unknown(origin, name);
            set_table(config, *inner, name, file);
        } else {
            set_key(config, name, value, origin);
        }
    }
}

toml::table parse_toml(std::string_view text, std::string_view where, bool is_file) {
    try {
        return toml::parse(text, where);
    } catch (const toml::parse_error& error) {
        if (!is_file) fail_usage("{}: {}", where, error.description());
        fail_usage("{}:{}: {}", where, error.source().begin.line, error.description());
    }
}

void set_override(RunConfig& config, const std::string& text) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0)
        fail_usage("--set {}: write --set section.key=value", text);
    const std::string name = text.substr(0, equals), value = text.substr(equals + 1);
    const std::string origin = "--set " + name;
    const ConfigKey* key = find_key(name);
    if (key == nullptr) fail_unknown("--set", name);
    const ConfigSlot slot = key->slot(config);
    const bool is_text =
        std::holds_alternative<std::string*>(slot) || std::holds_alternative<KeptBlocks*>(slot);
    // A shell has eaten the quotes: a text may come without them.
    const bool is_list = std::holds_alternative<std::vector<std::string>*>(slot);
    if (is_text && !value.starts_with('"') && !value.starts_with('\''))
        set_key(config, name, toml::value<std::string>(value), "--set");
    else if (is_list && !value.starts_with('['))  // one text
        set_key(config, name, toml::array(value), "--set");
    else
        set_key(config, name, *parse_toml("value = " + value, origin, false).get("value"), "--set");
}

Json slot_json(const ConfigSlot& slot) {
    return std::visit(
        Overloaded{[](KeptBlocks* x) { return Json(x->text); }, [](auto* x) { return Json(*x); }}, slot);
}

// {"optimizer", "lr"}, or {"", "seed"}.
std::pair<std::string, std::string> split_name(std::string_view name) {
    const size_t dot = name.find('.');
    if (dot == std::string_view::npos) return {"", std::string(name)};
    return {std::string(name.substr(0, dot)), std::string(name.substr(dot + 1))};
}

}  // namespace

double KeptBlocks::resolve(double of_recipe) const {
    const double value = parse_kept(text);
    return value < 0 ? of_recipe : value;
}

int64_t RunConfig::steps() const {
    if (train.steps > 0) return train.steps;
    return (train.tokens + tokens_per_step() - 1) / tokens_per_step();
}

RunConfig load_run_config(const std::string& path, const std::vector<std::string>& overrides) {
    RunConfig config;
    config.origins.assign(config_keys().size(), "default");
    if (!path.empty()) set_table(config, parse_toml(read_text(path), path, true), "", path);
    for (const std::string& text : overrides) set_override(config, text);
    return config;
}

void check_complete(const RunConfig& config) {
    const auto origin = [&](std::string_view name) {
        return config.origins.empty()
                   ? "default"
                   : config.origins[static_cast<size_t>(find_key(name) - config_keys().data())];
    };
    const auto is_given = [&](std::string_view name) { return origin(name) != "default"; };
    const auto one_of_two = [&](std::string_view a, bool has_a, std::string_view b, bool has_b) {
        if (!has_a && !has_b) fail_usage("the configuration needs {} or {}", a, b);
        if (has_a && has_b) fail_usage("{}: {} and {} exclude each other; remove one", origin(b), a, b);
    };
    one_of_two("model.config", !config.model.config.empty(), "model.init", !config.model.init.empty());
    one_of_two("train.steps", config.train.steps > 0, "train.tokens", config.train.tokens > 0);
    if (config.data.train.empty()) fail_usage("the configuration needs data.train");
    if (!config.recipe.file.empty() && is_given("recipe.name"))
        fail_usage("{}: recipe.name and recipe.file exclude each other; remove one", origin("recipe.file"));
    if (config.train.batch_size % config.train.micro_batch_size != 0)
        fail_usage("{}: train.batch_size {} is not a multiple of train.micro_batch_size {}",
                   origin("train.micro_batch_size"), config.train.batch_size, config.train.micro_batch_size);
    constexpr int64_t kMostMicroSteps = 256;  // the counter of the random numbers has 8 bits for them
    if (config.micro_steps() > kMostMicroSteps)
        fail_usage("{}: {} micro-batches in a step, at most {} are possible; raise train.micro_batch_size",
                   origin("train.micro_batch_size"), config.micro_steps(), kMostMicroSteps);
    if (config.precision.logits == "bf16" && config.precision.activations != "bf16")
        fail_usage("{}: precision.logits = \"bf16\" needs precision.activations = \"bf16\", not \"{}\"",
                   origin("precision.logits"), config.precision.activations);
    if (config.schedule.name == "wsd" && config.schedule.warmup + config.schedule.decay > 1)
        fail_usage("{}: schedule.warmup and schedule.decay together exceed the run",
                   origin("schedule.decay"));
}

Recipe with_precisions(Recipe recipe, const std::string& fprop, const std::string& dgrad,
                       const std::string& wgrad) {
    if (fprop == "bf16") recipe = with_bf16_product(std::move(recipe), "fprop");
    if (dgrad == "bf16") recipe = with_bf16_product(std::move(recipe), "dgrad");
    if (wgrad == "bf16") recipe = with_bf16_product(std::move(recipe), "wgrad");
    return recipe;
}

Recipe with_run_settings(Recipe recipe, const RunConfig& config) {
    recipe.keep_first = config.recipe.keep_first.resolve(recipe.keep_first);
    recipe.keep_last = config.recipe.keep_last.resolve(recipe.keep_last);
    return with_lm_head(std::move(recipe), config.recipe.lm_head);
}

Recipe resolve_recipe(const RunConfig& config) {
    Recipe recipe = with_run_settings(
        find_recipe(config.recipe.file.empty() ? config.recipe.name : config.recipe.file), config);
    recipe =
        with_precisions(std::move(recipe), config.recipe.fprop, config.recipe.dgrad, config.recipe.wgrad);
    for (size_t i = 0; i < kOperandNames.size(); ++i) {
        const std::string& text = config.recipe.operands[i];
        if (text != "recipe") recipe = with_operand(std::move(recipe), kOperandNames[i], text);
    }
    recipe = with_modifiers(std::move(recipe), config.recipe.modifiers);
    validate(recipe);
    return recipe;
}

std::string to_annotated_toml(const RunConfig& config) {
    RunConfig copy = config;  // slots are writable
    std::string text, section;
    for (size_t i = 0; i < config_keys().size(); ++i) {
        const ConfigKey& key = config_keys()[i];
        const auto [head, word] = split_name(key.name);
        if (head != section) text += fmt::format("\n[{}]\n", section = head);
        // JSON's texts, numbers and lists of them are TOML's too.
        const std::string value = fmt::format("{} = {}", word, slot_json(key.slot(copy)).dump());
        const std::string origin = copy.origins.empty() ? "default" : copy.origins[i];
        std::string words = key.words.size() > 1 ? fmt::format(" ({})", fmt::join(key.words, ", ")) : "";
        text += fmt::format("{:<40} # {}: {}{}\n", value, origin, key.help, words);
    }
    for (const PhaseConfig& phase : config.phases) {
        text += fmt::format("\n[[phase]]  # {}\n", phase.origin);
        text += to_toml(phase);
    }
    return text;
}

Json to_json(const RunConfig& config) {
    RunConfig copy = config;
    Json json = Json::object();
    for (const ConfigKey& key : config_keys()) {
        const auto [section, word] = split_name(key.name);
        (section.empty() ? json[word] : json[section][word]) = slot_json(key.slot(copy));
    }
    for (const PhaseConfig& phase : config.phases) json["phase"].push_back(to_json(phase));
    return json;
}

std::vector<ConfigDifference> differences(const Json& then, const Json& now) {
    const auto at = [](const Json& json, const std::string& section, const std::string& word) -> std::string {
        const Json* place = &json;
        if (!section.empty()) {
            if (!json.contains(section)) return "nothing";
            place = &json.at(section);
        }
        return place->contains(word) ? place->at(word).dump() : "nothing";
    };
    const Json defaults = to_json(RunConfig{});
    std::vector<ConfigDifference> all;
    for (const ConfigKey& key : config_keys()) {
        const auto [section, word] = split_name(key.name);
        std::string before = at(then, section, word);
        if (before == "nothing") before = at(defaults, section, word);  // a key that is newer than the run
        const std::string after = at(now, section, word);
        if (before != after) all.push_back({std::string(key.name), before, after, key.on_resume});
    }
    const std::string before = at(then, "", "phase"), after = at(now, "", "phase");
    if (before != after) all.push_back({"[[phase]]", before, after, OnResume::fixed});
    return all;
}

}  // namespace nibble
