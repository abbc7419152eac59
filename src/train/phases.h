// Phases: from some step of a run on, another recipe, another course of the learning rate, more steps. A run
// begins with [recipe] and [schedule]; each [[phase]] changes them.
//
// A phase has a fixed place, or begins when the monitor finds too little gradient over the noise. One that
// waits for that when a later phase begins is passed over. Recipes follow each other in the order of the
// file: a phase changes the recipe of the one before it, whether that began or not. Schedules and extra steps
// count from when their phase begins.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "optim/schedule.h"
#include "recipe/recipe.h"

namespace nibble {

struct RunConfig;

// The learning rate of a phase, as written: from its first step to the next phase of fixed place that has
// one, or to the end of the run.
struct PhaseSchedule {
    std::string name;
    int64_t warmup_steps = 0;
    // What is not given is that of the run.
    std::optional<int64_t> decay_steps;  // of wsd
    std::optional<double> lr, final;
};

// One [[phase]] as it is written. Exactly one of at, at_step and when is given.
struct PhaseConfig {
    double at = -1;                   // fraction of train.steps, in (0, 1]
    int64_t at_step = -1;             // or: steps done before it
    double when = -1;                 // or: it begins when the gradient-to-noise ratio is below this
    std::string recipe;               // a built-in name or a file; empty: that of the phase before
    std::string fprop, dgrad, wgrad;  // "bf16", or empty: as before
    std::string lm_head;              // "bf16" or "fp8", or empty: as before
    std::vector<std::string> modifiers = {"recipe"};  // with_modifiers(); "recipe": those of its recipe
    std::optional<PhaseSchedule> schedule;
    int64_t extra_steps = 0;  // the run becomes that much longer
    std::string origin;       // "demo.toml:12"
};

// {"at": 0.9, "dgrad": "bf16", "schedule": {...}}: the keys that are written, with their values.
nlohmann::ordered_json to_json(const PhaseConfig& phase);
// The same as lines of TOML.
std::string to_toml(const PhaseConfig& phase);

struct Phase {
    static constexpr int64_t kNotBegun = INT64_MAX;

    int64_t first_step = 0;  // steps done before it; kNotBegun: its `when` is not fulfilled yet
    Recipe recipe;
    PhaseConfig written;
    double gradient_to_noise = 0;  // that began it

    bool is_conditional() const { return written.when > 0; }
    bool has_begun(int64_t step) const { return first_step <= step; }
};

// The recipe of the run and those of its phases, in their order; the first begins at step 0. Throws
// UsageError for a phase outside the run, or not after the one before it, or whose condition can never be
// fulfilled, and as resolve_recipe() does.
std::vector<Phase> resolve_phases(const RunConfig& config);
// Which of them a step belongs to, counted from 0.
size_t phase_at(const std::vector<Phase>& phases, int64_t step);
// The length of the run, given the conditional phases that have begun.
int64_t run_steps(const std::vector<Phase>& phases, const RunConfig& config);

// The course of the learning rate that holds in phase number `phase`; its step 0 is step `first_step`.
struct PhaseRate {
    int64_t first_step = 0;
    ScheduleOptions options;
};
PhaseRate rate_of_phase(const std::vector<Phase>& phases, size_t phase, const RunConfig& config);

// [{"after_step": 0, "recipe": TOML}, {"when": 1.732, ...}, ...]: what is planned, for checkpoints.
nlohmann::ordered_json describe(const std::vector<Phase>& phases);
// What the monitor has decided, for checkpoints: of each conditional phase {"after_step",
// "gradient_to_noise"}, or null.
nlohmann::ordered_json decisions(const std::vector<Phase>& phases);
void restore_decisions(std::vector<Phase>& phases, const nlohmann::ordered_json& decisions);

}  // namespace nibble
