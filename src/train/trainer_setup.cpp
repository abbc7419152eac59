// What the Trainer does before the first step.
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>

#include "core/cuda.h"
#include "train/model_directory.h"
#include "train/self_check.h"
#include "train/speed_of_light.h"
#include "train/trainer.h"

namespace nibble {

using Json = nlohmann::ordered_json;

namespace {

constexpr const char* kOutputs[] = {"log.jsonl", "checkpoints", "model", "report.html"};

DType dtype_named(std::string_view word) { return word == "bf16" ? DType::bf16 : DType::f32; }

Transformer::Options model_options(const RunConfig& config) {
    Transformer::Options options;
    options.activations = dtype_named(config.precision.activations);
    options.logits = dtype_named(config.precision.logits);
    options.device = config.device.device();
    options.allowed = parse_allowed(config.device.allow);
    options.recompute = parse_recompute(config.train.recompute);
    options.gradients = dtype_named(config.train.gradients);
    options.deterministic_attention = config.device.attention == "deterministic";
    return options;
}

// The keys that turn one plan into the other.
std::string changed_keys(const MemoryNeeds& from, const MemoryNeeds& to) {
    std::vector<std::string> keys;
    if (to.options.recompute != from.options.recompute)
        keys.push_back(fmt::format("train.recompute = \"{}\"", name_of(to.options.recompute)));
    if (to.sequences != from.sequences)
        keys.push_back(fmt::format("train.micro_batch_size = {}", to.sequences));
    if (to.moments != from.moments) keys.emplace_back("optimizer.moments = \"bf16\"");
    if (to.options.gradients != from.options.gradients) keys.emplace_back("train.gradients = \"bf16\"");
    if (to.offload != from.offload) keys.emplace_back("optimizer.offload = \"moments\"");
    return fmt::format("{}", fmt::join(keys, ", "));
}

ModelConfig model_shape(const RunConfig& config) {
    if (!config.model.init.empty()) return read_model_config(config.model.init);
    return parse_model_config(read_text(config.model.config), config.model.config);
}

}  // namespace

Trainer::Trainer(const RunConfig& config, const TrainOptions& options)
    : config_(config), options_(options), arena_(config.device.device()) {
    phases_ = resolve_phases(config_);
    check_device();
    steps_ = run_steps(phases_, config_);
    int64_t most_steps = config_.steps();
    for (const Phase& phase : phases_) most_steps += phase.written.extra_steps;
    if (options.until > most_steps)
        fail_usage("--until {} lies beyond the run, which has {} steps", options.until, most_steps);
    if (options.resume && options.overwrite) fail_usage("--resume and --overwrite exclude each other");
    check_output();
    context_.seed = static_cast<uint64_t>(config_.seed);
    read_data();
    make_model();
    make_optimizer();
    if (config_.monitor.every > 0)
        monitor_.emplace(
            *model_, config_.monitor.every,
            config_.monitor.noise == "two-pass" ? Monitor::Noise::two_pass : Monitor::Noise::predicted,
            config_.train.micro_batch_size * config_.data.sequence_length);
    gemm_peak_ = measure_gemm_peak(device());
    plan_memory();
    if (options.resume) resume();
    flops_per_token_ = training_flops_per_token(model_->config(), config_.data.sequence_length);
}

void Trainer::check_device() {
    if (config_.monitor.every > 0 && config_.train.gradients != "f32")
        fail_usage(
            "monitor.every = {}: the monitor reads gradients in f32; set it to 0 for train.gradients = "
            "\"{}\"",
            config_.monitor.every, config_.train.gradients);
    if (device() == Device::cpu && config_.optimizer.offload != "none")
        fail_usage("optimizer.offload = \"{}\" takes memory of a GPU; leave it out for device.kind = \"cpu\"",
                   config_.optimizer.offload);
    if (device() == Device::cuda) {
        require_cuda();
        const AllowedProducts allowed = parse_allowed(config_.device.allow);
        const bool has_fp8_head = allowed.fp8 && std::ranges::any_of(phases_, [](const Phase& phase) {
                                      return phase.recipe.lm_head == "fp8";
                                  });
        std::vector<KernelCheck> checks = check_kernels(
            {dtype_named(config_.precision.activations), config_.device.attention == "deterministic",
             has_fp8_head ? std::optional(allowed.sums()) : std::nullopt});
        checks.push_back(
            check_update(dtype_named(config_.train.gradients), dtype_named(config_.optimizer.moments)));
        checks.push_back(check_layer(find_recipe("bf16")));  // of blocks that are kept, and of evaluation
        for (const Phase& phase : phases_) checks.push_back(check_layer(phase.recipe, allowed));
        if (std::ranges::any_of(phases_, [](const Phase& p) { return !p.recipe.modifiers.empty(); }))
            checks.push_back(check_modifiers());
        require_well(checks);
    }
    replay_.emplace(context_);
    if (device() == Device::cpu) return;
    fault_ = Buffer(DType::u32, {1}, device());
    context_.fault = fault_.tensor().as<uint32_t>();
    if (parse_allowed(config_.device.allow).fp8_folded)
        unfolded_products_ = Buffer(DType::u32, {1}, device());
}

void Trainer::read_data() {
    auto& data = config_.data;
    train_shards_.emplace(data.train);
    if (data.tokenizer.empty()) data.tokenizer = data.train;
    tokenizer_ = Tokenizer::load(data.tokenizer);
    text_bytes_ = tokenizer_->text_bytes();
    train_shards_->require_tokenizer(*tokenizer_, data.tokenizer);
    train_shards_->verify();
    loader_.emplace(*train_shards_, data.sequence_length, config_.train.batch_size, context_.seed);
    if (!data.validation.empty()) {
        validation_shards_.emplace(data.validation);
        validation_shards_->require_tokenizer(*tokenizer_, data.tokenizer);
        validation_shards_->verify();
    }
    allocate_batches();
}

void Trainer::allocate_batches() {
    const Shape all = {config_.train.batch_size, config_.data.sequence_length},
                micro = {config_.train.micro_batch_size, config_.data.sequence_length};
    const size_t bytes = Tensor{.dtype = DType::i32, .shape = all}.bytes();
    std::byte* next = nullptr;
    if (device() == Device::cpu) {  // which loads one, and works on it
        batch_memory_ = Buffer(2 * bytes);
        next = batch_memory_.data();
    } else {
        host_batch_memory_ = HostBuffer(4 * bytes, "make train.batch_size smaller");
        next = host_batch_memory_.data();
        micro_batch_memory_ = Buffer(DType::i32, {2, micro[0], micro[1]}, device());
        const Tensor both = micro_batch_memory_.tensor();
        micro_batch_ = {both.slice(0, 1).reshaped(micro), both.slice(1, 2).reshaped(micro)};
    }
    const auto take = [&] {
        const Tensor taken{next, DType::i32, Device::cpu, all};
        next += bytes;
        return taken;
    };
    for (LoadedBatch& loaded : batches_) {
        if (device() == Device::cpu) next = batch_memory_.data();
        loaded.batch = {take(), take()};
    }
}

void Trainer::make_model() {
    const ModelConfig shape = model_shape(config_);
    const std::string& where = config_.model.init.empty() ? config_.model.config : config_.model.init;
    require(train_shards_->vocabulary_size() <= shape.vocab_size,
            "{} has a vocabulary of {}, the tokens of {} need {}", where, shape.vocab_size,
            config_.data.train, train_shards_->vocabulary_size());
    require(config_.data.sequence_length <= shape.max_position_embeddings,
            "data.sequence_length {} exceeds the {} positions of {}", config_.data.sequence_length,
            shape.max_position_embeddings, where);
    require_memory(shape);
    Transformer::Options options = model_options(config_);
    options.allowed.unfolded_products = static_cast<uint32_t*>(unfolded_products_.tensor().data);
    model_ = std::make_unique<Transformer>(shape, phases_.front().recipe, options);
    if (config_.model.init.empty())
        model_->initialize(context_.seed);
    else
        read_parameters(config_.model.init, shape, model_->parameters());
}

void Trainer::make_optimizer() {
    std::vector<OptimizedTensor> tensors;
    const auto& decayed = config_.optimizer.decay;
    for (const Parameter& parameter : model_->parameters()) {
        const bool decays =
            std::find(decayed.begin(), decayed.end(), nibble::name_of(parameter.kind)) != decayed.end();
        tensors.push_back({parameter.name, parameter.master, parameter.gradient, decays});
        gradients_.push_back(parameter.gradient);
    }
    AdamWOptions options;
    options.beta1 = config_.optimizer.betas[0];
    options.beta2 = config_.optimizer.betas[1];
    options.epsilon = config_.optimizer.eps;
    options.weight_decay = config_.optimizer.weight_decay;
    options.moments = dtype_named(config_.optimizer.moments);
    options.offload = config_.optimizer.offload == "moments";
    optimizer_.emplace(std::move(tensors), options);
    modifiers_.emplace(*model_, phases_);
    set_schedule();
}

void Trainer::require_memory(const ModelConfig& shape) const {
    MemoryNeeds needs;
    needs.model = shape;
    for (const Phase& phase : phases_) needs.recipes.push_back(phase.recipe);
    needs.options = model_options(config_);
    needs.moments = dtype_named(config_.optimizer.moments);
    needs.offload = config_.optimizer.offload == "moments";
    needs.sequences = config_.train.micro_batch_size;
    needs.length = config_.data.sequence_length;
    needs.evaluates = validation_shards_.has_value();
    needs.modifiers = static_cast<size_t>(shape.parameters()) * ModifierState::bytes_per_weight(phases_);
    const bool is_limited = config_.device.memory > 0;
    const auto limit = [&] {
        const size_t bytes =
            is_limited ? static_cast<size_t>(config_.device.memory) : available_memory(device());
        return bytes > 0 ? bytes : std::numeric_limits<size_t>::max();  // the system does not say
    };
    const auto text = [](size_t n) { return bytes_text(static_cast<double>(n)); };
    const auto refuse = [&](size_t bytes, const std::string& advice) {
        fail("the run needs {} of memory and {} are {}; {}", text(bytes), text(limit()),
             is_limited ? "allowed by device.memory" : "available", advice);
    };
    // Master, gradient and moments at their smallest: a model for which that is too much is not even planned.
    const size_t least = static_cast<size_t>(shape.parameters()) * (device() == Device::cpu ? 10 : 6);
    if (least > limit()) refuse(least, "choose a smaller model");
    const size_t bytes = nibble::plan_memory(needs).total();
    const size_t most = limit();  // now that the libraries of a GPU have taken theirs
    if (bytes <= most) return;
    const std::optional<MemoryNeeds> change = smallest_change(needs, most);
    if (!change) refuse(bytes, "choose a smaller model or a shorter data.sequence_length");
    refuse(bytes, fmt::format("set {}: {}", changed_keys(needs, *change),
                              text(nibble::plan_memory(*change).total())));
}

// A dry run of what the run will do, with an arena that only counts.
void Trainer::plan_memory() {
    Transformer::StepMemory largest;
    for (auto phase = phases_.rbegin(); phase != phases_.rend(); ++phase) {  // the first one last: it stays
        model_->set_recipe(phase->recipe);
        if (monitor_) train_step(true);
        train_step(false);
        const Transformer::StepMemory memory = model_->step_memory();
        if (memory.weights + memory.activations > largest.weights + largest.activations) largest = memory;
        model_->zero_gradients(context_);
        context_.micro_step = 0;
        const Batch part = micro_batch(0);
        model_->first_non_finite(context_, part.tokens, part.targets, 1.0f);
        if (validation_shards_)
            for (const auto execution : {Transformer::Execution::recipe, Transformer::Execution::bf16})
                evaluate(execution);
    }

    for (const Parameter& parameter : model_->parameters()) memory_.masters += parameter.master.bytes();
    for (const Tensor& gradient : gradients_) memory_.gradients += gradient.bytes();
    for (const AdamW::State& state : optimizer_->state())
        (config_.optimizer.offload == "moments" ? memory_.on_host : memory_.moments) +=
            state.m.bytes() + state.v.bytes();
    memory_.batch = device() == Device::cpu ? batch_memory_.bytes() : micro_batch_memory_.bytes();
    memory_.monitor = monitor_ ? monitor_->bytes() : 0;
    memory_.modifiers = modifiers_->bytes();
    memory_.weights = largest.weights;
    memory_.activations = largest.activations;
    memory_.scratch = arena_.peak() - largest.weights - largest.activations;
    arena_.commit();
}

std::vector<NamedTensor> Trainer::masters() const {
    std::vector<NamedTensor> tensors;
    for (const Parameter& parameter : model_->parameters())
        tensors.push_back({parameter.name, parameter.master});
    return tensors;
}

std::vector<NamedTensor> Trainer::optimizer_state() {
    std::vector<NamedTensor> tensors;
    for (const AdamW::State& state : optimizer_->state()) {
        tensors.push_back({state.name + ".m", state.m});
        tensors.push_back({state.name + ".v", state.v});
    }
    for (NamedTensor& tensor : modifiers_->tensors()) tensors.push_back(std::move(tensor));
    tensors.push_back({"amax_history", model_->amax_history()});
    return tensors;
}

void Trainer::resume() {
    const std::optional<Checkpoint> checkpoint = newest_checkpoint(out("checkpoints"));
    require(checkpoint.has_value(), "there is no checkpoint in {}; start without --resume",
            out("checkpoints").string());
    const Json& state = checkpoint->state;
    const std::string where = checkpoint->path.string();
    const auto same = [&](const char* key, const Json& now, const char* what, const char* advice) {
        if (state.at(key) != now) fail("{} was trained with another {}; {}", where, what, advice);
    };
    try {
        // As a configuration: the order of its keys has changed before.
        if (parse_model_config(state.at("model").dump(), where) != model_->config())
            fail("{} was trained with another model; restore model.config or start a new run", where);
        same("recipe", to_toml(phases_.front().recipe), "recipe", "restore [recipe] or start a new run");
        // What a file or train.steps decides is not in the configuration's text.
        if (state.contains("phases"))
            same("phases", describe(phases_), "list of phases",
                 "restore [[phase]], their recipes and train.steps");
        same("seed", config_.seed, "seed", "restore seed or start a new run");
        same("data", fmt::format("{:016x}", train_shards_->hash()), "text",
             "restore data.train or start a new run");
        for (const ConfigDifference& d : differences(state.at("config"), to_json(config_))) {
            const bool decides =
                d.key.starts_with("monitor.") &&
                std::ranges::any_of(phases_, [](const Phase& p) { return p.is_conditional(); });
            if (d.on_resume == OnResume::fixed || decides)
                fail("{} was written with {} = {}, now it is {}; restore it or start a new run", where, d.key,
                     d.then, d.now);
            log()->warn("{} was {} before, now it is {}", d.key, d.then, d.now);
        }
        const Json machine = describe_machine(device());
        for (const auto& [key, now] : machine.items())
            if (state.at("machine").value(key, Json()) != now)
                log()->warn("{} was {} before, now it is {}: the run goes on, but not to the bit", key,
                            state.at("machine").value(key, Json()).dump(), now.dump());
        earlier_seconds_ = state.at("seconds").get<double>();
        if (state.contains("decisions")) restore_decisions(phases_, state.at("decisions"));
        steps_ = run_steps(phases_, config_);
        if (monitor_ && state.contains("monitor")) monitor_->restore(state.at("monitor"));
    } catch (const Json::exception& error) {
        fail("{}: {}", where, error.what());
    }
    require(checkpoint->step <= steps_, "{} is beyond the run, which now has {} steps", where, steps_);
    read_checkpoint_tensors(*checkpoint, kCheckpointModel, masters());
    read_checkpoint_tensors(*checkpoint, kCheckpointOptimizer, optimizer_state());
    step_ = resumed_from_ = saved_step_ = checkpoint->step;
}

void Trainer::check_output() const {
    if (options_.resume || options_.overwrite) return;
    for (const char* name : kOutputs)
        require(!fs::exists(out(name)),
                "{} exists: {} holds a run already; --resume continues it, --overwrite begins anew",
                out(name).string(), config_.output.dir);
}

void Trainer::prepare_output() {
    if (options_.overwrite)
        for (const char* name : kOutputs) fs::remove_all(out(name));
    fs::create_directories(config_.output.dir);
    log_.emplace(out("log.jsonl"));
    Json header = make_header({config_, phases_, *model_, *train_shards_,
                               validation_shards_ ? &*validation_shards_ : nullptr, memory_, steps_,
                               gemm_peak_, options_.command});
    if (options_.resume) header["resumed_from"] = resumed_from_;
    log_->write(header);
    status_.note(to_text(header));
    if (options_.resume) status_.note(fmt::format("resumed after step {}", resumed_from_));
}

}  // namespace nibble
