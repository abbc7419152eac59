// The report of one or several runs: a table, loss curves, recipe tables, configurations. One HTML file that
// needs nothing else, in light and in dark. Made of log.jsonl alone.
#pragma once

#include <string>
#include <vector>

#include "train/run_table.h"

namespace nibble {

// Throws Error when gnuplot is missing.
std::string to_html(const std::vector<ReportedRun>& runs, const SeedLosses& seeds);
// The loss curves alone, on white: an SVG file. Throws Error as to_html(), and when there are no curves.
std::string to_svg(const std::vector<ReportedRun>& runs);

}  // namespace nibble
