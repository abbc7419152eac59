// The charts of a report.
#pragma once

#include <vector>

#include "io/plot.h"
#include "train/run_table.h"

namespace nibble {

// Training loss, smoothed over about a fiftieth of the run, and validation loss, over tokens.
Chart loss_chart(const std::vector<ReportedRun>& runs);
// Validation loss minus that of the bf16 run, where both were evaluated. No curves without a bf16 run.
Chart gap_chart(const std::vector<ReportedRun>& runs);

}  // namespace nibble
