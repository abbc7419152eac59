#include "train/phase_config.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace nibble {

using Json = nlohmann::ordered_json;

namespace {

// One key of a phase or of its schedule, and where it stands.
struct Entry {
    std::string_view key;
    const toml::node& value;
    std::string origin;

    std::string text() const {
        const std::string given = value.value<std::string>().value_or("");
        if (given.empty()) fail_usage("{}: {} of a phase must be a text", origin, key);
        return given;
    }
    std::string precision() const {
        std::string given = text();
        if (given != "bf16")
            fail_usage(
                "{}: {} of a phase can be \"bf16\", not \"{}\"; recipe = \"NAME\" takes another recipe",
                origin, key, given);
        return given;
    }
    std::vector<std::string> texts() const {
        std::vector<std::string> given;
        const toml::array* list = value.as_array();
        for (size_t i = 0; list != nullptr && i < list->size(); ++i) {
            if (const auto* text = list->get(i)->as_string()) given.push_back(text->get());
        }
        if (list == nullptr || given.size() != list->size())
            fail_usage("{}: {} of a phase must be a list of texts", origin, key);
        return given;
    }
    int64_t steps(int64_t least) const {
        const int64_t given = value.value<int64_t>().value_or(-1);
        if (given < least)
            fail_usage("{}: {} of a phase is a number of steps from {} up", origin, key, least);
        return given;
    }
    double number(double least, double most) const {
        const double given = value.value<double>().value_or(NAN);
        if (!(given >= least && given <= most))
            fail_usage("{}: {} of a phase is a number from {} to {}", origin, key, least, most);
        return given;
    }
    // "gradient_to_noise < 1.732": the number.
    double condition() const {
        const std::string given = text();
        double limit = 0;
        int read = 0;
        if (std::sscanf(given.c_str(), " gradient_to_noise < %lf %n", &limit, &read) != 1 ||
            static_cast<size_t>(read) != given.size() || !(limit > 0 && std::isfinite(limit)))
            fail_usage("{}: when of a phase is \"gradient_to_noise < NUMBER\", not \"{}\"", origin, given);
        return limit;
    }
};

template <typename Body>
void for_each_entry(const toml::table& table, const std::string& file, Body&& body) {
    for (const auto& [key, value] : table)
        body(Entry{key.str(), value, fmt::format("{}:{}", file, key.source().begin.line)});
}

PhaseSchedule read_schedule(const Entry& from, const std::string& file) {
    const toml::table* table = from.value.as_table();
    if (table == nullptr)
        fail_usage("{}: schedule of a phase is a table like {{ name = \"cosine\", warmup_steps = 40 }}",
                   from.origin);
    PhaseSchedule schedule;
    for_each_entry(*table, file, [&](const Entry& entry) {
        if (entry.key == "name") {
            schedule.name = entry.text();
            try {
                parse_schedule_shape(schedule.name);
            } catch (const UsageError& error) {
                fail_usage("{}: {}", entry.origin, error.what());
            }
        } else if (entry.key == "warmup_steps") {
            schedule.warmup_steps = entry.steps(0);
        } else if (entry.key == "decay_steps") {
            schedule.decay_steps = entry.steps(1);
        } else if (entry.key == "lr") {
            schedule.lr = entry.number(0, 1e3);
        } else if (entry.key == "final") {
            schedule.final = entry.number(0, 1);
        } else {
            fail_usage(
                "{}: unknown key \"{}\" of a phase's schedule; it has name, warmup_steps, decay_steps, "
                "lr, final",
                entry.origin, entry.key);
        }
    });
    if (schedule.name.empty()) fail_usage("{}: schedule of a phase needs a name", from.origin);
    return schedule;
}

}  // namespace

PhaseConfig read_phase(const toml::table& table, const std::string& file) {
    PhaseConfig phase;
    phase.origin = fmt::format("{}:{}", file, table.source().begin.line);
    for_each_entry(table, file, [&](const Entry& entry) {
        if (entry.key == "at") {
            phase.at = entry.value.value<double>().value_or(-1);
            if (!(phase.at > 0 && phase.at <= 1))
                fail_usage("{}: at of a phase is a fraction of train.steps above 0 and at most 1",
                           entry.origin);
        } else if (entry.key == "at_step") {
            phase.at_step = entry.steps(1);
        } else if (entry.key == "when") {
            phase.when = entry.condition();
        } else if (entry.key == "recipe") {
            phase.recipe = entry.text();
        } else if (entry.key == "fprop") {
            phase.fprop = entry.precision();
        } else if (entry.key == "dgrad") {
            phase.dgrad = entry.precision();
        } else if (entry.key == "wgrad") {
            phase.wgrad = entry.precision();
        } else if (entry.key == "lm_head") {
            phase.lm_head = entry.text();
            if (phase.lm_head != "bf16" && phase.lm_head != "fp8")
                fail_usage("{}: lm_head of a phase is \"bf16\" or \"fp8\", not \"{}\"", entry.origin,
                           phase.lm_head);
        } else if (entry.key == "modifiers") {
            phase.modifiers = entry.texts();
        } else if (entry.key == "schedule") {
            phase.schedule = read_schedule(entry, file);
        } else if (entry.key == "extra_steps") {
            phase.extra_steps = entry.steps(1);
        } else {
            fail_usage(
                "{}: unknown key \"{}\" of a phase; it has at, at_step, when, recipe, fprop, dgrad, "
                "wgrad, lm_head, modifiers, schedule, extra_steps",
                entry.origin, entry.key);
        }
    });
    if ((phase.at > 0) + (phase.at_step > 0) + (phase.when > 0) != 1)
        fail_usage("{}: a phase needs one of at, at_step and when", phase.origin);
    if (phase.recipe.empty() && phase.fprop.empty() && phase.dgrad.empty() && phase.wgrad.empty() &&
        phase.lm_head.empty() && phase.modifiers == PhaseConfig{}.modifiers && !phase.schedule &&
        phase.extra_steps == 0)
        fail_usage(
            "{}: a phase needs recipe, fprop, dgrad, wgrad, lm_head, modifiers, schedule or extra_steps: "
            "what "
            "it changes",
            phase.origin);
    return phase;
}

Json to_json(const PhaseConfig& phase) {
    Json json = Json::object();
    if (phase.at > 0) json["at"] = phase.at;
    if (phase.at_step > 0) json["at_step"] = phase.at_step;
    if (phase.when > 0) json["when"] = fmt::format("gradient_to_noise < {}", phase.when);
    if (!phase.recipe.empty()) json["recipe"] = phase.recipe;
    if (!phase.fprop.empty()) json["fprop"] = phase.fprop;
    if (!phase.dgrad.empty()) json["dgrad"] = phase.dgrad;
    if (!phase.wgrad.empty()) json["wgrad"] = phase.wgrad;
    if (!phase.lm_head.empty()) json["lm_head"] = phase.lm_head;
    if (phase.modifiers != PhaseConfig{}.modifiers) json["modifiers"] = phase.modifiers;
    if (phase.schedule) {
        const PhaseSchedule& schedule = *phase.schedule;
        Json& to = json["schedule"] = {{"name", schedule.name}, {"warmup_steps", schedule.warmup_steps}};
        if (schedule.decay_steps) to["decay_steps"] = *schedule.decay_steps;
        if (schedule.lr) to["lr"] = *schedule.lr;
        if (schedule.final) to["final"] = *schedule.final;
    }
    if (phase.extra_steps > 0) json["extra_steps"] = phase.extra_steps;
    return json;
}

std::string to_toml(const PhaseConfig& phase) {
    // JSON's texts and numbers are TOML's too.
    std::string text;
    const Json json = to_json(phase);
    for (const auto& [key, value] : json.items()) {
        std::string inner;
        if (value.is_object())
            for (const auto& [word, of] : value.items())
                inner += fmt::format("{}{} = {}", inner.empty() ? "" : ", ", word, of.dump());
        text +=
            fmt::format("{} = {}\n", key, value.is_object() ? fmt::format("{{ {} }}", inner) : value.dump());
    }
    return text;
}

}  // namespace nibble
