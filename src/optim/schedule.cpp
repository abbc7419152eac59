#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace nibble {

namespace {
const std::vector<std::string> kShapeNames = {"constant", "linear", "cosine", "wsd"};
}

ScheduleShape parse_schedule_shape(std::string_view name) {
    const auto found = std::find(kShapeNames.begin(), kShapeNames.end(), name);
    if (found == kShapeNames.end()) {
        const std::string nearest = nearest_name(name, kShapeNames);
        fail_usage("there is no schedule \"{}\"; {}", name,
                   nearest.empty() ? "take constant, linear, cosine or wsd"
                                   : fmt::format("did you mean \"{}\"?", nearest));
    }
    return static_cast<ScheduleShape>(found - kShapeNames.begin());
}

std::string_view name_of(ScheduleShape shape) { return kShapeNames[static_cast<size_t>(shape)]; }

int64_t fraction_of_steps(double fraction, int64_t steps) {
    if (!(fraction >= 0 && fraction <= 1)) fail_usage("a fraction of the run is in [0, 1], not {}", fraction);
    return static_cast<int64_t>(std::floor(fraction * static_cast<double>(steps) + 0.5));
}

Schedule::Schedule(const ScheduleOptions& o) : options_(o) {
    if (o.steps < 1) fail_usage("a schedule needs at least one step, not {}", o.steps);
    if (!(std::isfinite(o.lr) && o.lr >= 0))
        fail_usage("the learning rate must not be negative, but is {}", o.lr);
    if (!(o.final >= 0 && o.final <= 1)) {
        fail_usage("the final learning rate is a fraction of lr in [0, 1], not {}", o.final);
    }
    if (o.warmup_steps < 0 || o.warmup_steps >= o.steps) {
        fail_usage("a warm-up of {} steps does not fit a run of {}", o.warmup_steps, o.steps);
    }
    if (o.shape == ScheduleShape::wsd && (o.decay_steps < 1 || o.decay_steps > o.steps - o.warmup_steps)) {
        fail_usage("a decay of {} steps does not fit a run of {} with a warm-up of {}", o.decay_steps,
                   o.steps, o.warmup_steps);
    }
}

double Schedule::lr(int64_t step) const {
    const ScheduleOptions& o = options_;
    step = std::clamp<int64_t>(step, 0, o.steps - 1);
    if (step < o.warmup_steps) {
        return o.lr * static_cast<double>(step + 1) / static_cast<double>(o.warmup_steps);
    }
    if (o.shape == ScheduleShape::constant) return o.lr;
    const int64_t length = o.shape == ScheduleShape::wsd ? o.decay_steps : o.steps - o.warmup_steps;
    const int64_t begin = o.steps - length;
    if (step < begin) return o.lr;
    const double p = static_cast<double>(step - begin + 1) / static_cast<double>(length);
    const double left = o.shape == ScheduleShape::cosine ? (1 + std::cos(std::numbers::pi * p)) / 2 : 1 - p;
    return o.lr * (o.final + (1 - o.final) * left);
}

}  // namespace nibble
