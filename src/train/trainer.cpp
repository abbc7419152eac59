#include "train/trainer.h"

#include <algorithm>
#include <cmath>

#include "core/cuda.h"
#include "core/interrupt.h"
#include "train/model_directory.h"
#include "train/report.h"
#include "train/speed_of_light.h"

namespace nibble {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

namespace {

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t counted_targets(const Tensor& targets) {
    const auto all = targets.span<int32_t>();
    return static_cast<int64_t>(all.size()) - std::count(all.begin(), all.end(), kIgnoredTarget);
}

std::string name_of(const Recipe& recipe, Transformer::Execution execution) {
    return execution == Transformer::Execution::bf16 ? "bf16" : recipe.name;
}

}  // namespace

bool Trainer::StepResult::is_finite() const { return std::isfinite(loss) && std::isfinite(grad_norm); }

std::optional<Trainer::StepResult> Trainer::train_step(bool sampled) {
    const ArenaScope scope(arena_);
    const Tensor history = kept_history();
    context_.step = static_cast<uint32_t>(step_);
    load_batch(step_);
    // The mean over all targets of the batch, whatever the micro-batches hold.
    const auto targets = static_cast<double>(counted_targets(batch().targets));

    if (sampled && monitor_->takes_two_passes()) take_other_pass(targets);
    std::optional<Monitor::Sample> sample;
    if (sampled) sample.emplace(*monitor_);
    const Tensor losses = arena_.allocate(DType::f64, {2}), norm = arena_.allocate(DType::f64, {2}),
                 factor = arena_.allocate(DType::f32, {1});
    if (!accumulate_gradients(targets, losses, !sampled)) {
        restore_history(history);
        return {};
    }
    StepResult result;
    result.lr = schedule_->lr(step_ - schedule_begin_);
    const auto wait = [&] {
        result.loss = read_loss(context_, losses).loss_sum / targets;
        result.grad_norm = read_norm(context_, norm).norm;
        result.has_fault = has_fault();
    };
    optimizer_->begin_update(context_, step_ + 1, result.lr);
    replay_->end([&] {
        global_norm(context_, gradients_, norm);
        if (sample) {
            if (!context_.planning()) wait();
            if (result.is_finite()) sample->finish(context_, step_ + 1);
        }
        // Does nothing where something is not finite, so that nothing waits to know.
        clip_factor(context_, norm, losses, config_.optimizer.grad_clip, factor);
        optimizer_->finish_update(context_, factor);
    });
    if (!context_.planning()) {
        if (device() == Device::cuda && step_ + 1 < steps_) load_batch(step_ + 1);
        wait();  // here the program waits for the GPU
        if (!result.is_finite() || result.has_fault) {
            restore_history(history);
            return result;
        }
    }
    result.resets = modifiers_->after_update(context_, step_ + 1, steps_, result.lr);
    return result;
}

bool Trainer::accumulate_gradients(double targets, const Tensor& losses, bool replays) {
    modifiers_->round_weights(context_);
    const auto scale = static_cast<float>(1 / targets);
    std::optional<StepReplay::Kind> kind;
    if (replays && is_replayable(model_->recipe())) kind = {scale, rounded_weights()};
    replay_->begin(kind, [&] {
        if (!context_.planning()) fill_zero(context_, losses);
        model_->zero_gradients(context_);
        model_->begin_step(context_);  // quantises the weights, once for all micro-steps
    });
    for (int64_t micro_step = 0; micro_step < config_.micro_steps(); ++micro_step) {
        if (stop_requested()) return false;
        context_.micro_step = static_cast<uint32_t>(micro_step);
        const Batch part = micro_batch(micro_step);
        replay_->micro_step(
            [&] { model_->forward_backward(context_, part.tokens, part.targets, scale, losses); });
    }
    return true;
}

int64_t Trainer::rounded_weights() const {
    return std::ranges::count_if(model_->round_targets(),
                                 [](const Tensor& target) { return target.shape.rank() > 0; });
}

void Trainer::take_other_pass(double targets) {
    const ArenaScope scope(arena_);
    const Tensor history = kept_history();
    context_.seed = ~context_.seed;  // keys every coin and every rotation
    const bool is_whole = accumulate_gradients(targets, arena_.allocate(DType::f64, {2}), false);
    context_.seed = ~context_.seed;
    restore_history(history);
    if (is_whole) monitor_->keep_other_pass(context_);
}

TextLoss Trainer::evaluate(Transformer::Execution execution) {
    context_.step = static_cast<uint32_t>(step_);
    modifiers_->round_weights(context_);
    return evaluate_text(context_, *model_, *validation_shards_, text_bytes_, config_.data.sequence_length,
                         config_.train.micro_batch_size, execution, config_.train.eval_batches);
}

void Trainer::run() {
    prepare_output();
    const InterruptScope interrupts;
    const auto last = [&] { return options_.until > 0 ? std::min(options_.until, steps_) : steps_; };
    const auto due = [](int64_t step, int64_t every) { return every > 0 && step % every == 0; };

    while (step_ < last() && !stop_requested()) {
        take_step();
        if (due(step_, config_.train.eval_every) && step_ < steps_)
            log_evaluation(Transformer::Execution::recipe);
        if (due(step_, config_.checkpoint.every)) save_checkpoint();
    }
    save_checkpoint();
    if (stop_requested()) fail_interrupted();
    if (step_ < steps_) {
        end("until");
        status_.note(fmt::format("stopped after step {} of {}; go on with --resume", step_, steps_));
        return;
    }
    finish();
}

void Trainer::enter_phase() {
    const size_t next = phase_at(phases_, step_);
    if (next == phase_) return;
    phase_ = next;
    const Phase& phase = phases_[phase_];
    model_->set_recipe(phase.recipe);
    replay_->forget();
    set_schedule();
    if (monitor_ && phase.first_step == step_) monitor_->begin_phase();
    Json record = {{"type", "phase"}, {"step", step_}, {"phase", phase_}};
    record.update(describe(phase));
    record["recipe"] = {
        {"name", phase.recipe.name}, {"table", to_table(phase.recipe)}, {"toml", to_toml(phase.recipe)}};
    if (phase.is_conditional()) record["gradient_to_noise"] = phase.gradient_to_noise;
    record["steps"] = steps_;
    record["gemms"] = describe_products(phase.recipe, model_->options().activations, device(),
                                        model_->options().allowed, fit_fp8(model_->config()));
    record["time"] = elapsed();
    log_->write(record);
    status_.note(fmt::format("step {} of {}: phase {} of {}, {}\n{}", step_ + 1, steps_, phase_ + 1,
                             phases_.size(), phase_text(describe(phase)),
                             recipe_text(to_table(phase.recipe), record.at("gemms"))));
}

void Trainer::decide_phase() {
    if (!monitor_ || !monitor_->is_due(step_) || phase_ + 1 == phases_.size()) return;
    Phase& next = phases_[phase_ + 1];
    const bool is_too_late =
        phase_at(phases_, step_) != phase_ || (step_ == steps_ && next.written.extra_steps == 0);
    if (!next.is_conditional() || is_too_late) return;
    const std::optional<double> ratio = monitor_->gradient_to_noise();
    if (!ratio || !(*ratio < next.written.when)) return;
    next.first_step = step_;
    next.gradient_to_noise = *ratio;
    steps_ = run_steps(phases_, config_);
}

void Trainer::set_schedule() {
    const PhaseRate rate = rate_of_phase(phases_, phase_, config_);
    schedule_.emplace(rate.options);
    schedule_begin_ = rate.first_step;
}

void Trainer::take_step() {
    enter_phase();
    const Clock::time_point begin = Clock::now();
    std::optional<StepResult> result;
    try {
        result = train_step(monitor_ && monitor_->is_due(step_ + 1));
    } catch (const Error& error) {  // a quantiser that met a NaN, or something else
        const std::string first = first_non_finite();
        if (first.empty()) throw;
        fail_not_finite(error.what(), first);
    }
    if (!result) return;
    if (!result->is_finite())
        fail_not_finite(
            fmt::format("the loss is {}, the norm of the gradient {}", result->loss, result->grad_norm),
            first_non_finite());
    if (result->has_fault) fail_not_finite("a quantiser met a value that is not finite", first_non_finite());
    ++step_;
    log_step(*result, seconds_since(begin));
    if (monitor_ && monitor_->is_due(step_)) log_health();
    decide_phase();
}

void Trainer::log_step(const StepResult& result, double seconds) {
    work_seconds_ += seconds;
    // Other programs may slow this machine for a while: then its limit is lower too.
    constexpr double kPeakLasts = 5;  // seconds
    if (device() == Device::cpu && work_seconds_ > peak_measured_at_ + kPeakLasts) {
        peak_measured_at_ = work_seconds_;
        gemm_peak_ = measure_gemm_peak(device(), 0.05);
    }
    const double tokens_per_s = static_cast<double>(config_.tokens_per_step()) / seconds;
    const double sol = tokens_per_s * flops_per_token_ / gemm_peak_;
    light_seconds_ += sol * seconds;
    Json record = {{"type", "step"},
                   {"step", step_},
                   {"tokens", step_ * config_.tokens_per_step()},
                   {"loss", result.loss},
                   {"lr", result.lr},
                   {"grad_norm", result.grad_norm},
                   {"tokens_per_s", tokens_per_s},
                   {"sol", sol}};
    if (unfolded_products_.data() != nullptr) record["unfolded_products"] = products_unfolded();
    record["time"] = elapsed();
    log_->write(record);
    if (result.resets)
        log_->write({{"type", "oscireset"}, {"step", step_}, {"reset", *result.resets}, {"time", elapsed()}});
    const double seconds_left =
        work_seconds_ / static_cast<double>(step_ - resumed_from_) * static_cast<double>(steps_ - step_);
    status_.show(
        fmt::format("step {}/{}  loss {:.4f}  {:.0f} tokens/s  {:.1f} % of the speed of light  {} left",
                    step_, steps_, result.loss, tokens_per_s, 100 * sol, clock_text(seconds_left)));
}

void Trainer::log_health() {
    Json record = monitor_->last();
    record["tokens"] = step_ * config_.tokens_per_step();
    record["time"] = elapsed();
    log_->write(record);
}

void Trainer::log_evaluation(Transformer::Execution execution) {
    if (!validation_shards_) return;
    const TextLoss result = evaluate(execution);
    if (stop_requested()) return;  // in the middle of it
    const std::string forward = name_of(model_->recipe(), execution);
    log_->write({{"type", "eval"},
                 {"step", step_},
                 {"tokens", step_ * config_.tokens_per_step()},
                 {"forward", forward},
                 {"loss", result.loss()},
                 {"bits_per_byte", result.bits_per_byte()},
                 {"time", elapsed()}});
    status_.note(fmt::format("step {}/{}  validation loss {:.4f} ({} forward), {:.4f} bits per byte", step_,
                             steps_, result.loss(), forward, result.bits_per_byte()));
}

void Trainer::finish() {
    enter_phase();  // a run that was resumed after its last step
    log_evaluation(Transformer::Execution::recipe);
    if (model_->recipe().name != "bf16") log_evaluation(Transformer::Execution::bf16);
    if (stop_requested()) fail_interrupted();
    ModelDirectoryOptions options;
    options.dtype = config_.output.dtype == "bf16" ? DType::bf16 : DType::f32;
    options.tokenizer = config_.data.tokenizer;
    write_model_directory(out("model"), model_->config(), model_->parameters(), options);
    end("complete");
    try {
        write_text(out("report.html"), to_html(read_runs({config_.output.dir}), {}));
    } catch (const Error& error) {  // the model is there: a missing plotter does not make the run fail
        log()->warn("no report.html: {}", error.what());
    }
    status_.note(fmt::format("{} written; {} in all", out("model").string(), clock_text(elapsed())));
}

void Trainer::end(const char* reason) {
    const auto done = static_cast<double>((step_ - resumed_from_) * config_.tokens_per_step());
    const double tokens_per_s = work_seconds_ > 0 ? done / work_seconds_ : 0;
    Json record = {{"type", "end"},
                   {"step", step_},
                   {"tokens", step_ * config_.tokens_per_step()},
                   {"reason", reason},
                   {"tokens_per_s", tokens_per_s},
                   {"sol", work_seconds_ > 0 ? light_seconds_ / work_seconds_ : 0},
                   {"time", elapsed()}};
    if (device() == Device::cuda) record["replayed_steps"] = replay_->replays();
    const Json health = monitor_ ? monitor_->summary() : Json();
    if (!health.is_null()) {
        record["health"] = health;
        status_.note(health_text(health));
    }
    log_->write(record);
    status_.clear();
}

// Runs the step again, micro-batch by micro-batch, with an eye on every tensor.
std::string Trainer::first_non_finite() {
    context_.fault = nullptr;  // quantisers wait, and say what they met
    const auto scale = static_cast<float>(1.0 / static_cast<double>(counted_targets(batch().targets)));
    std::string first;
    for (int64_t micro_step = 0; micro_step < config_.micro_steps() && first.empty(); ++micro_step) {
        model_->zero_gradients(context_);
        context_.micro_step = static_cast<uint32_t>(micro_step);
        const Batch part = micro_batch(micro_step);
        first = model_->first_non_finite(context_, part.tokens, part.targets, scale);
    }
    return first;
}

void Trainer::fail_not_finite(const std::string& symptom, const std::string& first) {
    end("failed");
    fail(
        "step {}: {}; the first tensor that is not finite: {}. Lower optimizer.lr or optimizer.grad_clip; "
        "checkpoints of earlier steps are whole",
        step_ + 1, symptom, first.empty() ? "only a sum of finite ones" : first);
}

void Trainer::fail_interrupted() {
    end("interrupted");
    fail("interrupted after step {} of {}; {} holds it all: go on with --resume", step_, steps_,
         out("checkpoints").string());
}

void Trainer::save_checkpoint() {
    if (saved_step_ == step_) return;
    status_.clear();
    Json state = {{"seed", config_.seed},
                  {"tokens", step_ * config_.tokens_per_step()},
                  {"seconds", elapsed()},
                  {"config", to_json(config_)},
                  {"model", Json::parse(to_json(model_->config()))},
                  {"recipe", to_toml(phases_.front().recipe)},
                  {"phases", describe(phases_)},
                  {"decisions", decisions(phases_)},
                  {"data", fmt::format("{:016x}", train_shards_->hash())},
                  {"vocabulary", fmt::format("{:016x}", train_shards_->vocabulary_hash())},
                  {"machine", describe_machine(device())}};
    if (monitor_) state["monitor"] = monitor_->state();
    const fs::path path = write_checkpoint(out("checkpoints"), step_, state, masters(), optimizer_state(),
                                           config_.checkpoint.keep);
    saved_step_ = step_;
    log_->write({{"type", "checkpoint"}, {"step", step_}, {"path", path.string()}, {"time", elapsed()}});
}

void Trainer::load_batch(int64_t step) {
    LoadedBatch& loaded = batches_[static_cast<size_t>(step % 2)];
    if (loaded.step == step) return;
    loader_->load(step, 0, loaded.batch.tokens, loaded.batch.targets);
    loaded.step = step;
}

Trainer::Batch Trainer::micro_batch(int64_t micro_step) {
    const int64_t rows = config_.train.micro_batch_size;
    const auto part = [&](const Tensor& all) {
        return all.slice(micro_step * rows, (micro_step + 1) * rows);
    };
    const Batch here = {part(batch().tokens), part(batch().targets)};
    if (device() == Device::cpu) return here;
    if (!context_.planning()) {
        queue_copy(context_, here.tokens, micro_batch_.tokens);
        queue_copy(context_, here.targets, micro_batch_.targets);
    }
    return micro_batch_;
}

Tensor Trainer::kept_history() {
    const Tensor history = model_->amax_history();
    const Tensor kept = arena_.allocate(history.dtype, history.shape);
    if (!context_.planning()) copy(context_, history, kept);
    return kept;
}

void Trainer::restore_history(const Tensor& kept) {
    if (!context_.planning()) copy(context_, kept, model_->amax_history());
}

bool Trainer::has_fault() const {
    if (context_.fault == nullptr || context_.planning()) return false;
    uint32_t fault = 0;
    copy(context_, fault_.tensor(), {&fault, DType::u32, Device::cpu, {1}});
    return fault != 0;
}

uint32_t Trainer::products_unfolded() {
    const OnCpu all(unfolded_products_.tensor());
    const uint32_t now = *all.tensor().as<uint32_t>();
    return now - std::exchange(unfolded_products_then_, now);
}

double Trainer::elapsed() const { return earlier_seconds_ + seconds_since(start_); }

void train(const RunConfig& config, const TrainOptions& options) { Trainer(config, options).run(); }

}  // namespace nibble
