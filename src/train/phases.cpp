#include "train/phases.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "train/run_config.h"

namespace nibble {

using Json = nlohmann::ordered_json;

namespace {

// Whether the monitor finds noise in the weight gradients of this recipe.
bool has_noise(const Recipe& recipe, const RunConfig& config) {
    const OperandSpec& x = recipe.wgrad_x;
    return config.monitor.noise == "two-pass" || recipe.wgrad_dy.spec.is_quantized() ||
           (x.spec.is_quantized() && x.source != Source::same_bits);
}

void check_condition(const PhaseConfig& phase, const Recipe& before, const RunConfig& config) {
    if (config.monitor.every == 0)
        fail_usage("{}: a phase with `when` needs the monitor; set monitor.every", phase.origin);
    if (!has_noise(before, config))
        fail_usage(
            "{}: this phase would never begin: {} does not quantise the weight gradient, so there is "
            "no noise to compare it with",
            phase.origin, before.name);
}

// The steps that are planned when phase number `phase` begins: conditional ones after it may add others.
int64_t steps_known_at(const std::vector<Phase>& phases, size_t phase, int64_t steps) {
    for (size_t i = 0; i < phases.size(); ++i) {
        const bool counts =
            phases[i].is_conditional() ? i <= phase && phases[i].first_step != Phase::kNotBegun : true;
        if (counts) steps += phases[i].written.extra_steps;
    }
    return steps;
}

ScheduleOptions rate_of_run(const RunConfig& config) {
    const int64_t steps = config.steps();
    ScheduleOptions options;
    options.shape = parse_schedule_shape(config.schedule.name);
    options.lr = config.optimizer.lr;
    options.steps = steps;
    // At least one step is left after the warm-up, and one for the decay, however short the run.
    options.warmup_steps = std::min(fraction_of_steps(config.schedule.warmup, steps), steps - 1);
    options.decay_steps =
        std::clamp<int64_t>(fraction_of_steps(config.schedule.decay, steps), 1, steps - options.warmup_steps);
    options.final = config.schedule.final;
    return options;
}

}  // namespace

std::vector<Phase> resolve_phases(const RunConfig& config) {
    std::vector<Phase> phases = {{0, resolve_recipe(config), {}, 0}};
    int64_t steps = config.steps(), before = 0;
    for (const PhaseConfig& written : config.phases) {
        Phase phase = {Phase::kNotBegun, phases.back().recipe, written, 0};
        if (phase.is_conditional()) {
            check_condition(written, phase.recipe, config);
        } else {
            phase.first_step = written.at_step >= 0
                                   ? written.at_step
                                   : std::llround(written.at * static_cast<double>(config.steps()));
            steps += written.extra_steps;
            if (phase.first_step <= before || phase.first_step >= steps)
                fail_usage(
                    "{}: a phase after {} of {} steps; it must begin after step {} and before the last",
                    written.origin, phase.first_step, steps, before);
            before = phase.first_step;
        }
        if (!written.recipe.empty()) phase.recipe = with_run_settings(find_recipe(written.recipe), config);
        phase.recipe = with_precisions(std::move(phase.recipe), written.fprop, written.dgrad, written.wgrad);
        phase.recipe = with_lm_head(std::move(phase.recipe), written.lm_head);
        phase.recipe = with_modifiers(std::move(phase.recipe), written.modifiers);
        validate(phase.recipe);
        phases.push_back(std::move(phase));
    }
    return phases;
}

size_t phase_at(const std::vector<Phase>& phases, int64_t step) {
    size_t found = 0;
    for (size_t i = 0; i < phases.size(); ++i)
        if (phases[i].has_begun(step)) found = i;
    return found;
}

int64_t run_steps(const std::vector<Phase>& phases, const RunConfig& config) {
    return steps_known_at(phases, phases.size() - 1, config.steps());
}

PhaseRate rate_of_phase(const std::vector<Phase>& phases, size_t phase, const RunConfig& config) {
    const int64_t now = phases[phase].first_step;
    size_t owner = phase;
    while (owner > 0 && !(phases[owner].written.schedule && phases[owner].has_begun(now))) --owner;
    PhaseRate rate = {phases[owner].first_step, rate_of_run(config)};
    if (owner == 0) return rate;
    const PhaseSchedule& written = *phases[owner].written.schedule;
    const auto next = std::find_if(phases.begin() + static_cast<std::ptrdiff_t>(owner) + 1, phases.end(),
                                   [](const Phase& p) { return !p.is_conditional() && p.written.schedule; });
    const int64_t end =
        next != phases.end() ? next->first_step : steps_known_at(phases, owner, config.steps());
    ScheduleOptions& options = rate.options;
    options.shape = parse_schedule_shape(written.name);
    options.lr = written.lr.value_or(config.optimizer.lr);
    options.final = written.final.value_or(config.schedule.final);
    options.steps = std::max<int64_t>(1, end - rate.first_step);
    options.warmup_steps = std::min(written.warmup_steps, options.steps - 1);
    options.decay_steps = std::clamp<int64_t>(
        written.decay_steps.value_or(fraction_of_steps(config.schedule.decay, options.steps)), 1,
        options.steps - options.warmup_steps);
    return rate;
}

Json describe(const std::vector<Phase>& phases) {
    Json all = Json::array();
    for (const Phase& phase : phases) {
        Json json;
        if (phase.is_conditional())
            json["when"] = phase.written.when;
        else
            json["after_step"] = phase.first_step;
        json["recipe"] = to_toml(phase.recipe);
        const Json written = to_json(phase.written);
        for (const char* key : {"schedule", "extra_steps"})
            if (written.contains(key)) json[key] = written.at(key);
        all.push_back(json);
    }
    return all;
}

Json decisions(const std::vector<Phase>& phases) {
    Json all = Json::array();
    for (const Phase& phase : phases) {
        if (!phase.is_conditional()) continue;
        Json decided;
        if (phase.first_step != Phase::kNotBegun)
            decided = {{"after_step", phase.first_step}, {"gradient_to_noise", phase.gradient_to_noise}};
        all.push_back(decided);
    }
    return all;
}

void restore_decisions(std::vector<Phase>& phases, const Json& decisions) {
    size_t i = 0;
    for (Phase& phase : phases) {
        if (!phase.is_conditional()) continue;
        const Json& decided = decisions.at(i++);
        if (decided.is_null()) continue;
        phase.first_step = decided.at("after_step").get<int64_t>();
        phase.gradient_to_noise = decided.at("gradient_to_noise").get<double>();
    }
}

}  // namespace nibble
