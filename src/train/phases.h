// Phases: from some step of a run on, another recipe. A run begins with the recipe of [recipe]; each
// [[phase]] changes it.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "recipe/recipe.h"

namespace nibble {

struct RunConfig;

// One [[phase]] as it is written. Exactly one of at and at_step is given.
struct PhaseConfig {
    double at = -1;                   // fraction of the run, in (0, 1)
    int64_t at_step = -1;             // or: steps done before it
    std::string recipe;               // a built-in name or a file; empty: that of the phase before
    std::string fprop, dgrad, wgrad;  // "bf16", or empty: as before
    std::vector<std::string> modifiers = {"recipe"};  // with_modifiers(); "recipe": those of its recipe
    std::string origin;                               // "demo.toml:12"
};

struct Phase {
    int64_t first_step = 0;  // steps done before it
    Recipe recipe;
};

// The recipe of the run and those of its phases, in their order; the first begins at step 0. Throws
// UsageError for a phase outside the run, or not after the one before it, and as resolve_recipe() does.
std::vector<Phase> resolve_phases(const RunConfig& config);
// [{"after_step": 0, "recipe": TOML}, ...], for checkpoints.
nlohmann::ordered_json describe(const std::vector<Phase>& phases);

}  // namespace nibble
