// Trainer: one run. train_step() (trainer.cpp) is the whole optimizer step; the rest is what surrounds it.
#pragma once

#include <array>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/data.h"
#include "nn/transformer.h"
#include "optim/optim.h"
#include "train/checkpoint.h"
#include "train/evaluation.h"
#include "train/memory_plan.h"
#include "train/metrics_log.h"
#include "train/modifier_state.h"
#include "train/monitor.h"
#include "train/run_config.h"
#include "train/run_header.h"
#include "train/status_line.h"
#include "train/step_replay.h"

namespace nibble {

struct TrainOptions {
    bool resume = false;     // go on from the newest checkpoint
    bool overwrite = false;  // remove what an earlier run left in output.dir
    int64_t until = 0;       // stop after this step, with the schedule of the whole run; 0: do not
    std::string command;     // as typed, for the log
};

// Trains, evaluates and writes output.dir. Throws Error or UsageError, one line each; when it is interrupted
// or a loss is not finite, too. What was written before stays whole.
void train(const RunConfig& config, const TrainOptions& options);

class Trainer {
  public:
    // Reads the data, builds the model, plans the memory, resumes. Nothing is written yet.
    Trainer(const RunConfig& config, const TrainOptions& options);
    void run();

  private:
    struct StepResult {
        double loss = 0;  // nats per token
        double lr = 0, grad_norm = 0;
        bool has_fault = false;         // on a GPU: a quantiser met a value that is not finite
        std::optional<int64_t> resets;  // ModifierState::after_update()
        bool is_finite() const;
    };

    // I32 [sequences, sequence_length].
    struct Batch {
        Tensor tokens, targets;
    };

    // The gradients of the batch that is loaded; losses (head_loss_backward()) <- its loss. Does not wait for
    // the GPU. replays: the step may be a replay. False if it was interrupted.
    bool accumulate_gradients(double targets, const Tensor& losses, bool replays);
    int64_t rounded_weights() const;  // that have something to be rounded towards
    // The gradients of the batch with other random numbers, for the monitor.
    void take_other_pass(double targets);
    // One optimizer step; sampled: by the monitor. Nothing if it was interrupted: the run then stands where
    // it stood before the step.
    std::optional<StepResult> train_step(bool sampled);
    // The validation loss with the present weights.
    TextLoss evaluate(Transformer::Execution execution);

    void check_output() const;
    void check_device();
    void read_data();
    void allocate_batches();
    void make_model();
    void make_optimizer();
    // Throws Error, before any memory is taken, if the run would not fit: with what to change.
    void require_memory(const ModelConfig& shape) const;
    void plan_memory();
    void resume();
    void prepare_output();

    // Makes the recipe of the next step the model's; says so in the log where it is another.
    void enter_phase();
    // Begins the next phase with the next step if that waits for the monitor and is due.
    void decide_phase();
    void set_schedule();
    void take_step();
    void log_step(const StepResult& result, double seconds);
    // Since it was last asked.
    uint32_t products_unfolded();
    void log_health();
    void log_evaluation(Transformer::Execution execution);
    void save_checkpoint();
    void finish();
    void end(const char* reason);
    std::string first_non_finite();
    [[noreturn]] void fail_not_finite(const std::string& symptom, const std::string& first);
    [[noreturn]] void fail_interrupted();

    Device device() const { return arena_.device(); }
    // Where it lies, of the step that is done next.
    const Batch& batch() const { return batches_[static_cast<size_t>(step_ % 2)].batch; }
    // Does nothing if it is loaded.
    void load_batch(int64_t step);
    // On the device. On a GPU it lies at one place, where the next takes its place.
    Batch micro_batch(int64_t micro_step);
    // A copy of the model's amax history in the arena; what steps that come to nothing put back.
    Tensor kept_history();
    void restore_history(const Tensor& kept);
    bool has_fault() const;
    std::vector<NamedTensor> masters() const;
    std::vector<NamedTensor> optimizer_state();
    double elapsed() const;  // seconds of the run, earlier parts included
    fs::path out(const char* name) const { return fs::path(config_.output.dir) / name; }

    RunConfig config_;
    TrainOptions options_;
    int64_t steps_ = 0;  // of the run; a phase that begins may add some
    int64_t step_ = 0;   // steps done

    std::optional<Tokenizer> tokenizer_;
    std::vector<int32_t> text_bytes_;  // of each token
    std::optional<TokenShards> train_shards_, validation_shards_;
    std::optional<Loader> loader_;
    // Those of two steps: the next one is loaded while a GPU works. It fetches micro-batches from there.
    struct LoadedBatch {
        int64_t step = -1;
        Batch batch;
    };
    std::array<LoadedBatch, 2> batches_;
    Buffer batch_memory_, micro_batch_memory_;
    HostBuffer host_batch_memory_;  // in place of the first, where there is a GPU
    Batch micro_batch_;             // of a GPU

    std::vector<Phase> phases_;  // the first begins the run
    size_t phase_ = 0;
    std::unique_ptr<Transformer> model_;
    std::vector<Tensor> gradients_;
    std::optional<AdamW> optimizer_;
    std::optional<ModifierState> modifiers_;
    std::optional<Schedule> schedule_;
    int64_t schedule_begin_ = 0;  // steps done before its first
    Arena arena_;
    Context context_{arena_};
    std::optional<StepReplay> replay_;
    Buffer fault_;              // of a GPU: Context::fault
    Buffer unfolded_products_;  // of a GPU, where scales are folded: AllowedProducts::unfolded_products
    uint32_t unfolded_products_then_ = 0;  // when the last step was logged
    MemoryPlan memory_;

    std::optional<Monitor> monitor_;  // unless monitor.every is 0

    double gemm_peak_ = 0, flops_per_token_ = 0;
    double peak_measured_at_ = 0;  // in work_seconds_
    std::optional<MetricsLog> log_;
    StatusLine status_;
    int64_t resumed_from_ = 0, saved_step_ = -1;
    double earlier_seconds_ = 0;  // of the parts of the run before this process
    double work_seconds_ = 0;     // inside steps, in this process
    double light_seconds_ = 0;    // what the machine's limit would have needed for them
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace nibble
