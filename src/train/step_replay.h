// StepReplay: the work of a training step, on a GPU recorded once and replayed from step to step.
//
// A step is a beginning (gradients cleared, weights quantised), micro-steps that are alike, and an end (norm,
// clipping, update). The first step of its kind is done call by call, the second one is recorded, the others
// are replays: the host starts a graph for each of these instead of some thousand kernels. What differs
// between steps and micro-steps lies in memory of the GPU: the counters of randomness, which advance there,
// and what AdamW::begin_update() writes. The bits are those of a step that is done call by call. On a CPU,
// and in planning passes, work is simply done.
#pragma once

#include <functional>
#include <optional>

#include "core/recording.h"

namespace nibble {

class StepReplay {
  public:
    using Work = std::function<void()>;

    // Gives the context a stream of its own. The context must outlive this, and takes note of faults
    // (Context::fault) when steps are recorded: nothing may wait in them.
    explicit StepReplay(Context& context);
    ~StepReplay();
    StepReplay(const StepReplay&) = delete;
    StepReplay& operator=(const StepReplay&) = delete;

    // What, beside the counters and what `work` finds in memory, decides what the step's work is: two steps
    // of one kind and one seed, at one place in the arena, are replays of each other.
    struct Kind {
        float scale = 0;
        int64_t rounded_weights = 0;
        friend bool operator==(const Kind&, const Kind&) = default;
    };
    // A step's beginning; no kind: not one to replay. Its micro-steps follow, each with the same work, and
    // its end, unless it is given up.
    void begin(const std::optional<Kind>& kind, const Work& work);
    void micro_step(const Work& work);
    void end(const Work& work);
    // The work has changed: a new recipe.
    void forget();

    int64_t replays() const { return replays_; }  // steps that were, so far

  private:
    enum class Mode : uint8_t { call_by_call, record, replay };
    // Of what it queues, kernels find the counters in memory.
    void record(std::optional<Recording>& recording, const Work& work);

    Context& context_;
    Stream stream_;
    Buffer counters_;  // StepCounters
    StepCounters* counters() const { return reinterpret_cast<StepCounters*>(counters_.data()); }

    Mode mode_ = Mode::call_by_call;
    std::optional<Kind> kind_;  // of the last step of some kind
    size_t arena_used_ = 0;     // at its beginning
    uint64_t seed_ = 0;
    int64_t replays_ = 0;
    std::optional<Recording> beginning_, micro_step_, end_;
};

}  // namespace nibble
