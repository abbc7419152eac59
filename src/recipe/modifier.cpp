#include "recipe/modifier.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "core/error.h"

namespace nibble {

namespace {

// One option inside its modifier, with the values allowed.
struct Option {
    std::string_view name;
    std::variant<double*, int64_t*, std::string*> slot;
    double least = 0, largest = 0;        // of numbers
    std::vector<std::string> words = {};  // of texts
    bool below_largest = false;           // `largest` itself is not allowed
};

std::vector<Option> options(Cage& m) {
    return {{"lambda", &m.lambda, 0, 1e6},
            {"silence", &m.silence, 0, 1, {}, true},
            {"ramp", &m.ramp, 0, 0, {"linear", "constant"}}};
}
std::vector<Option> options(Qema& m) {
    return {{"decay", &m.decay, 0, 1, {}, true}, {"after", &m.after, 1, 1e9}};
}
std::vector<Option> options(OsciReset& m) {
    return {{"start", &m.start, 0, 1, {}, true},
            {"period", &m.period, 1, 1e9},
            {"window", &m.window, 1, 1e9},
            {"threshold", &m.threshold, 0, 1e9}};
}
std::vector<Option> options(SmoothSwiglu& m) {
    return {{"strength", &m.strength, 0, 1}, {"scale", &m.scale, 0, 0, {"power-of-two", "exact"}}};
}

std::vector<Option> options(Modifier& modifier) {
    return std::visit([](auto& m) { return options(m); }, modifier);
}

std::string suggestion(std::string_view word, const std::vector<std::string>& known) {
    const std::string near = nearest_name(word, known);
    return near.empty() ? fmt::format("known are {}", fmt::join(known, ", "))
                        : fmt::format("did you mean \"{}\"?", near);
}

// Writes a number into its slot, if it is one and within its limits.
template <typename Number>
void set_number(const Option& option, std::string_view modifier, std::string_view text, Number& slot) {
    Number value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) {
        fail_usage("{}: {} must be a {}number, not \"{}\"", modifier, option.name,
                   std::is_integral_v<Number> ? "whole " : "", text);
    }
    const auto x = static_cast<double>(value);
    if (!(x >= option.least && x <= option.largest) || (option.below_largest && x == option.largest)) {
        fail_usage("{}: {} must be from {} to {}{}, not {}", modifier, option.name, option.least,
                   option.below_largest ? "below " : "", option.largest, text);
    }
    slot = value;
}

void set_text(const Option& option, std::string_view modifier, std::string_view text, std::string& slot) {
    if (std::find(option.words.begin(), option.words.end(), text) == option.words.end()) {
        fail_usage("{}: {} must be one of {}, not \"{}\"", modifier, option.name,
                   fmt::join(option.words, ", "), text);
    }
    slot = text;
}

}  // namespace

std::string_view name_of(const Modifier& modifier) {
    constexpr std::string_view names[] = {"cage", "qema", "oscireset", "smooth-swiglu"};
    static_assert(std::variant_size_v<Modifier> == std::size(names));
    return names[modifier.index()];
}

std::vector<std::pair<std::string, std::string>> options_of(const Modifier& modifier) {
    Modifier copy = modifier;  // slots are writable
    std::vector<std::pair<std::string, std::string>> all;
    for (const Option& option : options(copy)) {
        const std::string value =
            std::visit([](const auto* slot) { return fmt::format("{}", *slot); }, option.slot);
        all.emplace_back(option.name, value);
    }
    return all;
}

std::string to_string(const Modifier& modifier) {
    std::string text(name_of(modifier));
    for (const auto& [option, value] : options_of(modifier)) text += fmt::format(" {}={}", option, value);
    return text;
}

Modifier make_modifier(std::string_view name) {
    const Modifier all[] = {Cage{}, Qema{}, OsciReset{}, SmoothSwiglu{}};
    std::vector<std::string> known;
    for (const Modifier& modifier : all) {
        if (name_of(modifier) == name) return modifier;
        known.emplace_back(name_of(modifier));
    }
    fail_usage("there is no modifier \"{}\"; {}", name, suggestion(name, known));
}

void set_option(Modifier& modifier, std::string_view name, std::string_view value) {
    std::vector<std::string> known;
    for (const Option& option : options(modifier)) {
        known.emplace_back(option.name);
        if (option.name != name) continue;
        if (auto* const* text = std::get_if<std::string*>(&option.slot)) {
            set_text(option, name_of(modifier), value, **text);
        } else if (auto* const* whole = std::get_if<int64_t*>(&option.slot)) {
            set_number(option, name_of(modifier), value, **whole);
        } else {
            set_number(option, name_of(modifier), value, *std::get<double*>(option.slot));
        }
        return;
    }
    fail_usage("{} has no option \"{}\"; {}", name_of(modifier), name, suggestion(name, known));
}

Modifier parse_modifier(std::string_view text) {
    const auto next_word = [&text] {
        text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
        const std::string_view word = text.substr(0, text.find(' '));
        text.remove_prefix(word.size());
        return word;
    };
    Modifier modifier = make_modifier(next_word());
    for (std::string_view word = next_word(); !word.empty(); word = next_word()) {
        const size_t equals = word.find('=');
        if (equals == std::string_view::npos) {
            fail_usage("{}: \"{}\" is no option=value", name_of(modifier), word);
        }
        set_option(modifier, word.substr(0, equals), word.substr(equals + 1));
    }
    validate_modifier(modifier);
    return modifier;
}

void validate_modifier(const Modifier& modifier) {
    const auto* reset = std::get_if<OsciReset>(&modifier);
    if (reset != nullptr && reset->window >= reset->period) {
        fail_usage(
            "oscireset: a window of {} steps does not fit before the next, {} steps later; lower window",
            reset->window, reset->period);
    }
}

}  // namespace nibble
