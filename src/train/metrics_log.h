// log.jsonl: what a run measured, one JSON object a line, in the order in which it happened.
//
//   header      command, configuration, recipe table, requested and executed products, device, data. A
//               resumed run appends another, with "resumed_from": earlier steps beyond it no longer count.
//   step        step (1 is the first), tokens so far, loss, lr, grad_norm, tokens_per_s, sol, time; with
//               device.allow = ["fp8-folded"] unfolded_products: made in BF16, for FP8 did not hold an
//               operand
//   eval        step, tokens, forward (the recipe's name or "bf16"), loss, bits_per_byte, time
//   health      step, noise, gradient_to_noise, layers with their operands (train/monitor.h), tokens, time
//   phase       step, phase (1 is the first [[phase]]), after_step, recipe, what else it changes, steps, time
//   checkpoint  step, path, time
//   end         step, tokens, reason ("complete", "until", "interrupted", "failed"), tokens_per_s, sol, time;
//               health: the summary of the monitor
//
// Losses are nats per token; time is seconds of this run, earlier parts included; sol is the fraction of the
// speed of light (train/speed_of_light.h).
#pragma once

#include <nlohmann/json.hpp>

#include "core/core.h"

namespace nibble {

class MetricsLog {
  public:
    // Appends to `path`; a last line that an earlier process left unfinished is closed first.
    explicit MetricsLog(fs::path path);
    ~MetricsLog();
    MetricsLog(const MetricsLog&) = delete;
    MetricsLog& operator=(const MetricsLog&) = delete;

    // Writes one line, at once. Throws Error when the disk does not take it.
    void write(const nlohmann::ordered_json& record);

  private:
    fs::path path_;
    int descriptor_ = -1;
};

// What a log says at its end, with steps that a resumed run repeated counted once.
struct RunLog {
    struct Step {
        int64_t step = 0, tokens = 0;
        double loss = 0, lr = 0, grad_norm = 0, tokens_per_s = 0, sol = 0, time = 0;
    };
    struct Eval {
        int64_t step = 0, tokens = 0;
        std::string forward;
        bool own = false;  // with the forward of the recipe (of the phase) that trained
        double loss = 0, bits_per_byte = 0;
    };
    nlohmann::ordered_json header;     // the last one
    std::string recipe;                // that trained last
    std::vector<size_t> phases_begun;  // 1 is the first [[phase]]
    nlohmann::ordered_json end;        // null while the run is not over
    std::vector<Step> steps;
    std::vector<Eval> evals;
};

// Throws Error naming file and line when a line cannot be understood; an unfinished last line is left out.
RunLog read_run_log(const fs::path& path);

}  // namespace nibble
