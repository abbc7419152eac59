#include "train/step_replay.h"

#include "core/cuda.h"

namespace nibble {

StepReplay::StepReplay(Context& context) : context_(context), stream_(context.device) {
    if (context.device == Device::cpu) return;
    context.stream = stream_.get();
    counters_ = Buffer(sizeof(StepCounters), context.device);
}

StepReplay::~StepReplay() {
    if (context_.device == Device::cpu) return;
    context_.stream = nullptr;
}

void StepReplay::forget() {
    kind_.reset();
    beginning_.reset();
    micro_step_.reset();
    end_.reset();
}

void StepReplay::begin(const std::optional<Kind>& kind, const Work& work) {
    mode_ = Mode::call_by_call;
    const bool can_record = context_.device == Device::cuda && !context_.planning() && kind.has_value();
    if (!can_record) return work();
    const size_t used = context_.arena.used();
    if (kind_ != kind || arena_used_ != used || seed_ != context_.seed) {
        forget();
        kind_ = kind;
        arena_used_ = used;
        seed_ = context_.seed;
        return work();
    }
    mode_ = beginning_ && micro_step_ && end_ ? Mode::replay : Mode::record;
    if (mode_ == Mode::replay) ++replays_;
    set_counters(context_, counters(), {context_.step, 0});
    if (mode_ == Mode::record) {
        micro_step_.reset();  // what a step left that was given up
        record(beginning_, work);
    }
    beginning_->replay(context_);
}

void StepReplay::micro_step(const Work& work) {
    if (mode_ == Mode::call_by_call) return work();
    if (!micro_step_) {
        record(micro_step_, [&] {
            work();
            advance_micro_step(context_, counters());
        });
    }
    micro_step_->replay(context_);
}

void StepReplay::end(const Work& work) {
    if (mode_ == Mode::call_by_call) return work();
    if (!end_) record(end_, work);
    end_->replay(context_);
}

void StepReplay::record(std::optional<Recording>& recording, const Work& work) {
    require(context_.fault != nullptr, "steps are recorded of a context that takes note of faults");
    context_.counters = counters();
    try {
        recording.emplace(context_, work);
    } catch (...) {
        context_.counters = nullptr;
        throw;
    }
    context_.counters = nullptr;
}

}  // namespace nibble
