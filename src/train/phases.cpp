#include "train/phases.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "train/run_config.h"

namespace nibble {

namespace {

int64_t first_step(const PhaseConfig& phase, int64_t steps) {
    return phase.at_step >= 0 ? phase.at_step : std::llround(phase.at * static_cast<double>(steps));
}

}  // namespace

std::vector<Phase> resolve_phases(const RunConfig& config) {
    std::vector<Phase> phases = {{0, resolve_recipe(config)}};
    const int64_t steps = config.steps();
    for (const PhaseConfig& written : config.phases) {
        Phase phase = {first_step(written, steps), phases.back().recipe};
        if (phase.first_step <= phases.back().first_step || phase.first_step >= steps)
            fail_usage("{}: a phase after {} of {} steps; it must begin after step {} and before the last",
                       written.origin, phase.first_step, steps, phases.back().first_step);
        if (!written.recipe.empty()) phase.recipe = with_run_settings(find_recipe(written.recipe), config);
        phase.recipe = with_precisions(std::move(phase.recipe), written.fprop, written.dgrad, written.wgrad);
        phase.recipe = with_modifiers(std::move(phase.recipe), written.modifiers);
        validate(phase.recipe);
        phases.push_back(std::move(phase));
    }
    return phases;
}

nlohmann::ordered_json describe(const std::vector<Phase>& phases) {
    auto all = nlohmann::ordered_json::array();
    for (const Phase& phase : phases)
        all.push_back({{"after_step", phase.first_step}, {"recipe", to_toml(phase.recipe)}});
    return all;
}

}  // namespace nibble
