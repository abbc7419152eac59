// Runs beside each other: what is read from their logs, and the table that compares them.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/core.h"
#include "train/metrics_log.h"

namespace nibble {

struct ReportedRun {
    std::string where;  // its folder
    RunLog log;
};

// Reads OUT/log.jsonl of each folder.
std::vector<ReportedRun> read_runs(const std::vector<std::string>& folders);

// Text at a JSON pointer in a header, or a dash.
std::string text_at(const nlohmann::ordered_json& json, const std::string& pointer);
// "quartet2", or with the recipes of its phases "quartet2, then bf16".
std::string recipe_of(const ReportedRun& run);
// The recipe's name, with the folder's where several runs share it.
std::string label_of(const std::vector<ReportedRun>& runs, const ReportedRun& run);

// Final validation losses (own forward) of earlier runs that differ in their seed alone, by recipe: what a
// gap between two recipes is to be compared with. Read from a JSON object {"recipe": [loss, loss, ...], ...};
// keys that begin with "_" are remarks.
using SeedLosses = std::map<std::string, std::vector<double>>;
SeedLosses read_seed_losses(const fs::path& path);

// A run a row, under a row of headings. Columns that nothing fills are left out.
TableRows run_table(const std::vector<ReportedRun>& runs, const SeedLosses& seeds);
// The same for a terminal.
std::string to_text_table(const std::vector<ReportedRun>& runs, const SeedLosses& seeds);

}  // namespace nibble
