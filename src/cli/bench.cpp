// nibble bench: how fast this machine is at the parts of a training step, and at whole ones, beside limits
// that are measured in the same run.
#include "cli/bench.h"

#include <deque>
#include <memory>
#include <utility>

#include "cli/commands.h"
#include "cli/study_output.h"
#include "core/cuda.h"
#include "gemm/matmul.h"
#include "nn/nn.h"
#include "optim/optim.h"
#include "quant/quantize_both.h"
#include "train/memory_plan.h"
#include "train/random_numbers.h"
#include "train/run_header.h"
#include "train/self_check.h"
#include "train/speed_of_light.h"
#include "train/step_replay.h"

namespace nibble {

namespace {

// --- copy

void bench_copy(const BenchOptions& options) {
    Report report(options, "copy");
    const double rate = copy_rate(options.device());
    report.add({{"bytes_per_s", rate}}, fmt::format("copy    {:.1f} GB/s, read and written", rate * 1e-9));
    report.finish();
}

// --- gemm

void bench_gemm(const BenchOptions& options) {
    Report report(options, "gemm");
    const Device device = options.device();
    const double peak = measure_gemm_peak(device, 1.0);
    fmt::print("square  {:.1f} TFLOP/s, bf16\n", peak * 1e-12);
    const int64_t t = options.tokens, k = options.in, n = options.out;
    const Buffer x = random_tensor(DType::bf16, {t, k}, device, 1),
                 w = random_tensor(DType::bf16, {n, k}, device, 2),
                 y = random_tensor(DType::bf16, {t, n}, device, 3), dx(DType::bf16, {t, k}, device),
                 dw(DType::f32, {n, k}, device);
    const double flops = 2.0 * static_cast<double>(t) * static_cast<double>(k) * static_cast<double>(n);
    const auto measure = [&](const std::string& name, auto&& product) {
        const double seconds = seconds_of(device, product);
        report.add({{"product", name},
                    {"seconds", seconds},
                    {"flops", flops / seconds},
                    {"of_peak", flops / seconds / peak}},
                   fmt::format("{:<27}  {:.1f} TFLOP/s, {:.2f} of the square's", name,
                               flops / seconds * 1e-12, flops / seconds / peak));
    };
    MatmulOptions adding;
    adding.accumulate = true;
    measure("fprop", [&](Context& c) { matmul(c, x.tensor(), w.tensor(), y.tensor()); });
    measure("dgrad",
            [&](Context& c) { matmul(c, y.tensor(), Operand::transposed(w.tensor()), dx.tensor()); });
    measure("wgrad", [&](Context& c) {
        matmul(c, Operand::transposed(y.tensor()), Operand::transposed(x.tensor()), dw.tensor(), adding);
    });
    for (const std::string kind : {"nvfp4 outer=1x128", "fp4 32x32"}) {
        const QuantizedTensor by_groups_x(x, parse_spec(kind)), by_groups_w(w, parse_spec(kind));
        measure(kind + " fprop",
                [&](Context& c) { matmul(c, by_groups_x.matrix, by_groups_w.matrix, y.tensor()); });
    }
    for (const Fp8Sums sums : {Fp8Sums::precise, Fp8Sums::fast}) {
        if (!has_fp8_products(device)) break;
        const std::string kind = sums == Fp8Sums::precise ? "fp8" : "fp8-fast-accumulation";
        MatmulOptions in_fp8;
        in_fp8.fp8 = sums;
        const QuantSpec e4m3 = parse_spec("fp8:e4m3 tensor"), e5m2 = parse_spec("fp8:e5m2 tensor");
        const QuantizedTensor e4m3_x(x, e4m3), e4m3_w(w, e4m3), e5m2_y(y, e5m2), w_by_column(w, e4m3, true),
            y_by_column(y, e5m2, true), x_by_column(x, e4m3, true);
        measure(kind + " fprop",
                [&](Context& c) { matmul(c, e4m3_x.matrix, e4m3_w.matrix, y.tensor(), in_fp8); });
        measure(kind + " dgrad",
                [&](Context& c) { matmul(c, e5m2_y.matrix, w_by_column.matrix, dx.tensor(), in_fp8); });
        in_fp8.accumulate = true;
        measure(kind + " wgrad",
                [&](Context& c) { matmul(c, y_by_column.matrix, x_by_column.matrix, dw.tensor(), in_fp8); });
    }
    report.finish();
}

// --- quant

void bench_quant(const BenchOptions& options) {
    const std::vector<QuantSpec> specs = specs_of(options.names);
    Report report(options, "quant");
    const Device device = options.device();
    const double rate = copy_rate(device);
    fmt::print(
        "copy {:.0f} GB/s; BF16 [{}, {}]: G elements/s, and the share of that rate for the bytes that must "
        "move:\n"
        "x once, or twice where its amax comes first, and what is written. Packed bytes{}\n",
        rate * 1e-9, options.tokens, options.in,
        device == Device::cuda
            ? "; then the values that products read, of a known amax, also both from one read"
            : "");
    const Buffer x = random_tensor(DType::bf16, {options.tokens, options.in}, device, 1);
    const auto count = static_cast<double>(x.tensor().count());
    struct Way {
        const char* name;
        std::vector<bool> transposed;  // one orientation, or both from one read
        Keep keep;
    };
    std::vector<Way> ways = {{"rows", {false}, Keep::bytes}, {"columns", {true}, Keep::bytes}};
    if (device == Device::cuda)
        ways.insert(ways.end(), {{"rows_values", {false}, Keep::operand},
                                 {"columns_values", {true}, Keep::operand},
                                 {"both_values", {false, true}, Keep::operand}});
    for (const Way& way : ways) fmt::print("{:>15} {:>5}  ", way.name, "share");
    fmt::print("spec\n");
    for (const QuantSpec& spec : specs) {
        Json row = {{"spec", to_string(spec)}};
        std::string line;
        for (const Way& way : ways) {
            const bool knows_amax = way.keep == Keep::operand;
            if (knows_amax && (!has_exact_operand(spec) || spec.rotates_rows())) continue;
            size_t bytes = x.bytes() * (spec.takes_amax_of_tensor() && !knows_amax ? 2 : 1);
            std::deque<QuantizedTensor> made;
            std::vector<OperandOfBoth> operands;
            const Buffer amaxes(DType::f32, {2}, device);
            for (const bool transposed : way.transposed) {
                QuantizedMatrix& q = made.emplace_back(x, spec, transposed, way.keep).matrix;
                for (const Tensor& part : {q.codes, q.scales, q.fp32_scales, q.mask, q.operand})
                    if (part.data != nullptr) bytes += part.bytes();
                operands.push_back({&q, {.seed = 1}});
                if (!knows_amax) continue;
                Arena scratch(size_t{1} << 20, device);
                Context context{scratch};
                float* const amax = amaxes.tensor().as<float>() + operands.size() - 1;
                quantize(context, spec, x.tensor(), {}, q, {.amax = amax, .transposed = transposed});
                operands.back().options.known_amax = amax;
            }
            const double seconds = seconds_of(device, [&](Context& context) {
                if (operands.size() == 2) return quantize_both(context, x.tensor(), operands[0], operands[1]);
                QuantizeOptions how = operands[0].options;
                how.transposed = way.transposed[0];
                quantize(context, spec, x.tensor(), operands[0].key, *operands[0].out, how);
            });
            const double share = static_cast<double>(bytes) / seconds / rate;
            row[way.name] = {{"seconds", seconds}, {"of_copy", share}};
            line += fmt::format("{:>15.1f} {:>5.2f}  ", count / seconds * 1e-9, share);
        }
        report.add(row, fmt::format("{:<{}}{}", line, 23 * ways.size(), to_string(spec)));
    }
    report.finish();
}

// --- layer

void bench_layer(const BenchOptions& options) {
    const std::vector<Recipe> recipes = recipes_of(options.names);
    Report report(options, "layer");
    const Device device = options.device();
    const int64_t t = options.tokens, k = options.in, n = options.out;
    const Buffer x = random_tensor(DType::bf16, {t, k}, device, 1),
                 w = random_tensor(DType::f32, {n, k}, device, 2),
                 dy = random_tensor(DType::bf16, {t, n}, device, 3), y(DType::bf16, {t, n}, device),
                 dx(DType::bf16, {t, k}, device), dw(DType::f32, {n, k}, device);
    const double flops = 6.0 * static_cast<double>(t) * static_cast<double>(k) * static_cast<double>(n);
    const Recipe bf16 = find_recipe("bf16");
    double reference = 0;
    const double peak = measure_gemm_peak(device, 1.0);
    fmt::print(
        "{} tokens, {} to {} features, forward and backward with one preparation of the weight; "
        "products in bf16 {:.1f} TFLOP/s\n",
        t, k, n, peak * 1e-12);
    const auto measure = [&](const Recipe& recipe) {
        const QuantLinear layer(recipe, k, n, 0, parse_allowed(options.allow));
        const Buffer history(DType::f32, {2, 6}, device);
        auto* const state = reinterpret_cast<AmaxHistory*>(history.data());
        return seconds_of(
            device,
            [&](Context& context) {
                const QuantLinear::Weight weight =
                    layer.prepare(context, w.tensor(), layer.needs_history() ? state : nullptr);
                const QuantLinear::Saved saved = layer.forward(context, weight, x.tensor(), y.tensor());
                layer.backward(context, weight, saved, dy.tensor(), dx.tensor(), dw.tensor());
            },
            is_replayable(recipe));
    };
    reference = measure(bf16);
    for (const Recipe& recipe : recipes) {
        try {
            const double seconds = measure(recipe);
            const double of_peak = flops / seconds / peak;
            report.add(
                {{"recipe", recipe.name},
                 {"seconds", seconds},
                 {"of_bf16", reference / seconds},
                 {"of_peak", of_peak},
                 {"gemm_peak", peak}},
                fmt::format("{:<20} {:>8.3f} ms  {:>7.1f} TFLOP/s  {:.2f} of bf16  {:.2f} of the products",
                            recipe.name, seconds * 1e3, flops / seconds * 1e-12, reference / seconds,
                            of_peak));
        } catch (const Error& error) {
            report.add({{"recipe", recipe.name}, {"error", error.what()}},
                       fmt::format("{:<20} {}", recipe.name, error.what()));
        }
    }
    report.finish();
}

// --- train

// Whole optimizer steps on random tokens.
class Training {
  public:
    Training(const BenchOptions& options, const MemoryNeeds& needs)
        : options_(options), arena_(options.device()), model_(needs.model, needs.recipes[0], needs.options) {
        model_.initialize(1);
        std::vector<OptimizedTensor> tensors;
        for (const Parameter& p : model_.parameters()) {
            tensors.push_back({p.name, p.master, p.gradient, p.kind == ParameterKind::matrix});
            gradients_.push_back(p.gradient);
        }
        AdamWOptions adamw;
        adamw.moments = needs.moments;
        adamw.offload = needs.offload;
        optimizer_ = std::make_unique<AdamW>(std::move(tensors), adamw);
        tokens_ = random_tokens(1);
        targets_ = random_tokens(2);
        if (options.device() == Device::cuda) {
            require_well(std::vector{check_layer(model_.recipe(), needs.options.allowed)});
            fault_ = Buffer(DType::u32, {1}, Device::cuda);
            context_.fault = fault_.tensor().as<uint32_t>();
        }
        step();  // plans the memory
        arena_.commit();
        for (int i = 0; i < 3; ++i) step();  // call by call, recorded, replayed
    }

    // Seconds of an optimizer step.
    double step() {
        const double begin = now();
        const ArenaScope scope(arena_);
        context_.step = static_cast<uint32_t>(update_);
        const Tensor losses = arena_.allocate(DType::f64, {2}), norm = arena_.allocate(DType::f64, {2}),
                     factor = arena_.allocate(DType::f32, {1});
        const float scale = 1.0f / static_cast<float>(tokens_.tensor().count() * options_.accumulate);
        std::optional<StepReplay::Kind> kind;
        if (options_.replays && is_replayable(model_.recipe())) kind = {.scale = scale};
        replay_.begin(kind, [&] {
            if (!context_.planning()) fill_zero(context_, losses);
            model_.zero_gradients(context_);
            model_.begin_step(context_);
        });
        for (int64_t i = 0; i < options_.accumulate; ++i) {
            context_.micro_step = static_cast<uint32_t>(i);
            replay_.micro_step([&] {
                model_.forward_backward(context_, tokens_.tensor(), targets_.tensor(), scale, losses);
            });
        }
        optimizer_->begin_update(context_, ++update_, 1e-4);
        replay_.end([&] {
            global_norm(context_, gradients_, norm);
            clip_factor(context_, norm, losses, 1.0, factor);
            optimizer_->finish_update(context_, factor);
        });
        loss_ = read_loss(context_, losses);
        if (!context_.planning()) synchronize(context_);
        return now() - begin;
    }
    size_t arena_bytes() const { return arena_.peak(); }
    double loss() const { return loss_.loss_sum / static_cast<double>(loss_.count); }

  private:
    Buffer random_tokens(uint64_t seed) const {
        return random_integers({options_.batch, options_.sequence}, model_.config().vocab_size,
                               options_.device(), seed);
    }

    const BenchOptions& options_;
    Arena arena_;
    Context context_{arena_};
    StepReplay replay_{context_};
    Transformer model_;
    std::vector<Tensor> gradients_;
    std::unique_ptr<AdamW> optimizer_;
    Buffer tokens_, targets_, fault_;
    HeadLoss loss_;
    int64_t update_ = 0;
};

MemoryNeeds needs_of(const BenchOptions& options, const ModelConfig& config, const Recipe& recipe) {
    MemoryNeeds needs;
    needs.model = config;
    needs.recipes = {recipe};
    needs.options.device = options.device();
    needs.options.recompute = parse_recompute(options.recompute);
    needs.options.allowed = parse_allowed(options.allow);
    needs.options.logits = options.logits == "bf16" ? DType::bf16 : DType::f32;
    needs.options.gradients = options.gradients == "bf16" ? DType::bf16 : DType::f32;
    needs.options.deterministic_attention = options.attention == "deterministic";
    needs.moments = options.moments == "bf16" ? DType::bf16 : DType::f32;
    needs.offload = options.offload == "moments";
    needs.sequences = options.batch;
    needs.length = options.sequence;
    return needs;
}

// The options that turn one plan into the other, of a step with as many sequences.
std::string changed_options(const BenchOptions& options, const MemoryNeeds& from, const MemoryNeeds& to) {
    std::string text;
    if (to.options.recompute != from.options.recompute)
        text += fmt::format(" --recompute {}", name_of(to.options.recompute));
    if (to.sequences != from.sequences)
        text += fmt::format(" --batch {} --accumulate {}", to.sequences,
                            options.accumulate * from.sequences / to.sequences);
    if (to.moments != from.moments) text += " --moments bf16";
    if (to.options.gradients != from.options.gradients) text += " --gradients bf16";
    if (to.offload != from.offload) text += " --offload moments";
    return text;
}

// Throws Error, with what to change, if the plan has more bytes than there are.
void require_fit(const BenchOptions& options, const MemoryNeeds& needs, const MemoryPlan& plan) {
    const size_t limit = options.memory > 0 ? options.memory
                         : options.plans    ? 0  // of another machine, maybe
                                            : available_memory(options.device());
    if (limit == 0 || plan.total() <= limit) return;
    const auto text = [](size_t bytes) { return bytes_text(static_cast<double>(bytes)); };
    const std::optional<MemoryNeeds> change = smallest_change(needs, limit);
    fail("{} needs {} of memory and has {}; {}", needs.recipes[0].name, text(plan.total()), text(limit),
         change ? fmt::format("take{}: {}", changed_options(options, needs, *change),
                              text(plan_memory(*change).total()))
                : "take a smaller model or a shorter --sequence");
}

void plan_training(const BenchOptions& options, const ModelConfig& config,
                   const std::vector<Recipe>& recipes) {
    nlohmann::ordered_json json = {{"command", "train"}, {"device", options.device_name}};
    for (const Recipe& recipe : recipes) {
        const MemoryNeeds needs = needs_of(options, config, recipe);
        const MemoryPlan plan = plan_memory(needs);
        fmt::print("{}, {}: {} parameters; {} sequences of {} tokens in a micro-batch\n{}",
                   options.model.string(), recipe.name, config.parameters(), options.batch, options.sequence,
                   memory_table(to_json(plan)));
        if (!kHasCuda && needs.options.device == Device::cuda)
            fmt::print("scratch is that of the CPU's kernels: this build has no CUDA\n");
        json["results"].push_back({{"recipe", recipe.name}, {"memory", to_json(plan)}});
        require_fit(options, needs, plan);
    }
    if (!options.json.empty()) write_text(options.json, json.dump(2) + "\n");
}

void bench_train(const BenchOptions& options) {
    const ModelConfig config = parse_model_config(read_text(options.model), options.model.string());
    std::vector<Recipe> recipes =
        options.names.empty() ? std::vector{find_recipe("bf16")} : recipes_of(options.names);
    if (options.lm_head != "recipe")
        for (Recipe& recipe : recipes) recipe.lm_head = options.lm_head;
    if (options.plans) return plan_training(options, config, recipes);
    Report report(options, "train");
    const double peak = measure_gemm_peak(options.device(), 1.0);
    const auto tokens = static_cast<double>(options.batch * options.accumulate * options.sequence);
    const double flops = tokens * training_flops_per_token(config, options.sequence);
    fmt::print(
        "{}: {} parameters; {} sequences of {} tokens, {} micro-batches a step; products {:.1f} TFLOP/s\n",
        options.model.string(), config.parameters(), options.batch * options.accumulate, options.sequence,
        options.accumulate, peak * 1e-12);
    double first = 0;
    for (const Recipe& recipe : recipes) {
        const MemoryNeeds needs = needs_of(options, config, recipe);
        const MemoryPlan plan = plan_memory(needs);
        require_fit(options, needs, plan);
        Training training(options, needs);
        std::vector<double> seconds;
        for (int64_t i = 0; i < options.steps; ++i) seconds.push_back(training.step());
        const double rate = tokens / median(seconds);
        if (first == 0) first = rate;
        report.add(
            {{"recipe", recipe.name},
             {"tokens_per_s", rate},
             {"of_first", rate / first},
             {"sol", rate / tokens * flops / peak},
             {"arena_bytes", training.arena_bytes()},
             {"memory", to_json(plan)},
             {"loss", training.loss()}},
            fmt::format(
                "{:<20} {:>9.0f} tokens/s  {:.3f} of {}  {:>4.1f} % of the speed of light  step memory {}",
                recipe.name, rate, rate / first, recipes.front().name, 100 * rate / tokens * flops / peak,
                bytes_text(static_cast<double>(training.arena_bytes()))));
    }
    report.finish();
}

}  // namespace

void add_bench_command(CLI::App& app) {
    CLI::App* bench = app.add_subcommand(
        "bench",
        "How fast this machine is: copies, products, quantisers, other kernels, layers, training steps");
    bench->require_subcommand(1);
    const auto add = [&](const char* name, const char* text, void (*run)(const BenchOptions&)) {
        CLI::App* command = bench->add_subcommand(name, text);
        auto options = std::make_shared<BenchOptions>();
        command->add_option("--device", options->device_name, "cpu or cuda (default: cpu)")
            ->check(CLI::IsMember({"cpu", "cuda"}));
        command->add_option("--json", options->json, "Write the figures to this file, too")
            ->type_name("FILE");
        command->callback([options, run] { run(*options); });
        return std::pair(command, options);
    };
    const auto add_size = [](CLI::App* command, const char* name, int64_t& value, const char* text) {
        command->add_option(name, value, text)->check(CLI::PositiveNumber)->capture_default_str();
    };
    const auto add_allow = [](CLI::App* command, BenchOptions& options) {
        command
            ->add_option(
                "--allow", options.allow,
                "Ways of multiplying on a GPU, as device.allow: fp8, fp8-folded, fp8-fast-accumulation")
            ->type_name("NAME")
            ->allow_extra_args(false);
    };
    add("copy", "Copies of memory: the limit of whatever computes little", bench_copy);
    const auto add_layer = [&](const char* name, const char* text, void (*run)(const BenchOptions&)) {
        const auto [command, options] = add(name, text, run);
        add_size(command, "--tokens", options->tokens, "Rows of x");
        add_size(command, "--in", options->in, "Features that go in");
        add_size(command, "--out", options->out, "Features that come out");
        return std::pair(command, options);
    };
    add_layer("gemm",
              "Products in the three layouts of a linear layer; of fp32 scales along K and of fp8, too",
              bench_gemm);
    const auto [layer, layer_options] =
        add_layer("layer", "A linear layer under recipes: weight, forward and backward", bench_layer);
    layer->add_option("RECIPE", layer_options->names, "Built-in recipes (default: all)");
    add_allow(layer, *layer_options);
    const auto [quant, quant_options] =
        add("quant", "Quantisers, along the rows and along the columns of a matrix", bench_quant);
    add_size(quant, "--tokens", quant_options->tokens, "Rows of the matrix");
    add_size(quant, "--in", quant_options->in, "Columns of the matrix");
    quant->add_option("SPEC", quant_options->names, "Quantisers (default: those of all recipes)");
    const auto add_model = [&](CLI::App* command, BenchOptions& options) {
        command->add_option("--model", options.model, "config.json of the model")->capture_default_str();
        add_size(command, "--batch", options.batch, "Sequences of a micro-batch");
        add_size(command, "--sequence", options.sequence, "Tokens of a sequence");
    };
    const auto [kernels, kernel_options] =
        add("kernels", "The other kernels of a step, beside the least time of their bytes or operations",
            bench_kernels);
    add_model(kernels, *kernel_options);
    const auto [train, train_options] = add("train", "Whole optimizer steps on random tokens", bench_train);
    add_model(train, *train_options);
    add_size(train, "--accumulate", train_options->accumulate, "Micro-batches of an optimizer step");
    add_size(train, "--steps", train_options->steps, "Steps that are measured");
    train
        ->add_option("--recompute", train_options->recompute,
                     "What backward makes again: none, norms, mlp or block")
        ->capture_default_str();
    const auto add_word = [](CLI::App* command, const char* name, std::string& value, const char* text,
                             const std::vector<std::string>& words) {
        command->add_option(name, value, text)->check(CLI::IsMember(words))->capture_default_str();
    };
    add_word(train, "--moments", train_options->moments, "Dtype of the moments: f32 or bf16",
             {"f32", "bf16"});
    add_word(train, "--gradients", train_options->gradients,
             "Dtype of the linear layers' gradients: f32 or bf16", {"f32", "bf16"});
    add_word(train, "--lm-head", train_options->lm_head, "How the LM head multiplies: recipe, bf16 or fp8",
             {"recipe", "bf16", "fp8"});
    add_word(train, "--logits", train_options->logits, "Dtype of the logits: fp32 or bf16", {"fp32", "bf16"});
    add_word(train, "--attention", train_options->attention,
             "Backward of attention on a GPU: deterministic or any-order", {"deterministic", "any-order"});
    add_word(train, "--offload", train_options->offload,
             "What a GPU keeps in memory of the host: none or moments", {"none", "moments"});
    train->add_option("--memory", train_options->memory, "Memory that it may take, such as 80GiB")
        ->transform(CLI::AsSizeValue(true));
    train->add_flag("--plan", train_options->plans, "Only say what memory it needs; needs no GPU itself");
    train->add_flag("--replay,!--no-replay", train_options->replays,
                    "Steps on a GPU are recorded and replayed (default), or queued call by call");
    train->add_option("RECIPE", train_options->names, "Built-in recipes (default: bf16)");
    add_allow(train, *train_options);
}

}  // namespace nibble
