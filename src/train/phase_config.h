// Inside train/ only: how a [[phase]] is read.
#pragma once

#include <toml++/toml.h>

#include <string>

#include "train/phases.h"

namespace nibble {

// Throws UsageError naming file:line for an unknown key, a wrong type or value, or a phase without a place or
// a change.
PhaseConfig read_phase(const toml::table& table, const std::string& file);

}  // namespace nibble
