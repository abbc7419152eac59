// A scaling study for people, for programs, and as a picture.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "io/plot.h"
#include "study/scaling_speed.h"
#include "study/scaling_study.h"

namespace nibble {

// 30482560 -> "30.5M"
std::string short_count(double count);

std::string to_text(const ScalingStudy& study);
std::string to_text(const BudgetMap& map);

// Every number of the study, unrounded; docs/scaling.md describes the keys.
nlohmann::ordered_json to_json(const ScalingStudy& study);
nlohmann::ordered_json to_json(const BudgetMap& map);

// Loss over tokens per parameter: the runs as points, the fit of each scheme and size as a line.
Chart scaling_chart(const ScalingStudy& study);

}  // namespace nibble
