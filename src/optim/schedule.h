// The learning rate of each step.
//
//   warm-up    steps 0 .. W-1:  lr * (step + 1) / W             the first step already learns
//   then, with p = (step - W + 1) / (steps - W), which is 1 at the last step:
//   constant   lr
//   linear     lr * (final + (1 - final) * (1 - p))
//   cosine     lr * (final + (1 - final) * (1 + cos(pi * p)) / 2)
//   wsd        lr until D steps are left, then linear with p = (step - (steps - D) + 1) / D
//              (warm-up, stable, decay: Hu et al., arXiv 2404.06395)
//
// The decay's length excludes the warm-up; the last step of linear, cosine and wsd has exactly lr * final.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/core.h"

namespace nibble {

enum class ScheduleShape : uint8_t { constant, linear, cosine, wsd };

// "constant", "linear", "cosine", "wsd". Throws UsageError naming the nearest.
ScheduleShape parse_schedule_shape(std::string_view name);
std::string_view name_of(ScheduleShape shape);

struct ScheduleOptions {
    ScheduleShape shape = ScheduleShape::cosine;
    double lr = 1e-3;          // the peak
    int64_t steps = 0;         // of the whole run
    int64_t warmup_steps = 0;  // W, less than `steps`
    double final = 0.1;        // fraction of lr at the last step
    int64_t decay_steps = 0;   // D of wsd, in [1, steps - W]
};

// A fraction of the run, as configurations give it, in whole steps (nearest, halves up).
int64_t fraction_of_steps(double fraction, int64_t steps);

class Schedule {
  public:
    // Throws UsageError when an option is out of range.
    explicit Schedule(const ScheduleOptions& options);

    // For step 0 .. steps-1. Later steps keep the last one's.
    double lr(int64_t step) const;
    const ScheduleOptions& options() const { return options_; }

  private:
    ScheduleOptions options_;
};

}  // namespace nibble
