#include "nn/transformer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/cuda.h"
#include "nn/rope.h"
#include "nn/transformer_pass.h"
#include "numerics/philox.h"

namespace nibble {

namespace {

constexpr int64_t kAlignment = 16;  // elements

const std::vector<std::string> kRecomputeNames = {"none", "norms", "mlp", "block"};

int64_t aligned(int64_t count) { return (count + kAlignment - 1) / kAlignment * kAlignment; }

// Standard normal numbers 2j and 2j+1 of a parameter.
struct NormalPair {
    double first, second;
};
NormalPair normal_pair(uint64_t seed, uint16_t parameter, uint64_t j) {
    const Philox draw = philox_draw(seed, Purpose::initialization, j, 0, parameter);
    // In (0, 1]: 64 bits and a half, so that the logarithm is finite.
    const auto uniform = [&draw](int low) {
        const uint64_t bits = draw.word[low] | static_cast<uint64_t>(draw.word[low + 1]) << 32;
        return (static_cast<double>(bits) + 0.5) * 0x1p-64;
    };
    const double radius = std::sqrt(-2 * std::log(uniform(0)));
    const double angle = 2 * std::numbers::pi * uniform(2);
    return {radius * std::cos(angle), radius * std::sin(angle)};
}

void fill_normal(std::span<float> values, uint64_t seed, uint16_t parameter, double deviation) {
    const auto count = static_cast<int64_t>(values.size());
    parallel_for((count + 1) / 2, 1024, [=](int64_t first, int64_t last) {
        for (int64_t j = first; j < last; ++j) {
            const NormalPair pair = normal_pair(seed, parameter, static_cast<uint64_t>(j));
            values[2 * j] = static_cast<float>(deviation * pair.first);
            if (2 * j + 1 < count) values[2 * j + 1] = static_cast<float>(deviation * pair.second);
        }
    });
}

// What fill(values) makes of the tensor's elements on the CPU, wherever they belong.
template <typename Fill>
void fill_on_cpu(const Tensor& tensor, Fill&& fill) {
    if (tensor.device == Device::cpu) return fill(tensor.span<float>());
    const Buffer values(DType::f32, tensor.shape);
    fill(values.tensor().span<float>());
    Arena none(tensor.device);
    copy(Context{none}, values.tensor(), tensor);
}

}  // namespace

std::string_view name_of(ParameterKind kind) {
    switch (kind) {
        case ParameterKind::matrix:
            return "matrices";
        case ParameterKind::embedding:
            return "embedding";
        case ParameterKind::head:
            return "head";
        case ParameterKind::norm:
            return "norms";
        case ParameterKind::bias:
            return "biases";
    }
    return "?";
}

Recompute parse_recompute(std::string_view name) {
    const auto found = std::find(kRecomputeNames.begin(), kRecomputeNames.end(), name);
    if (found == kRecomputeNames.end()) {
        const std::string nearest = nearest_name(name, kRecomputeNames);
        fail_usage("there is no recompute level \"{}\"; {}", name,
                   nearest.empty() ? "take none, norms, mlp or block"
                                   : fmt::format("did you mean \"{}\"?", nearest));
    }
    return static_cast<Recompute>(found - kRecomputeNames.begin());
}

std::string_view name_of(Recompute recompute) { return kRecomputeNames[static_cast<size_t>(recompute)]; }

Transformer::Transformer(const ModelConfig& config, const Recipe& recipe, const Options& options)
    : config_(config), recipe_(recipe), bf16_(find_recipe("bf16")), options_(options) {
    require(options.activations == DType::bf16 || options.activations == DType::f32,
            "activations are BF16 or F32, not {}", name_of(options.activations));
    require(options.gradients == DType::bf16 || options.gradients == DType::f32,
            "gradients are BF16 or F32, not {}", name_of(options.gradients));
    require(options.logits == DType::f32 || options.logits == options.activations,
            "logits are F32, or BF16 where activations are, not {}", name_of(options.logits));
    add_parameters();

    const int64_t c = config.hidden_size, f = config.intermediate_size;
    for (int block = 0; block < config.num_hidden_layers; ++block) {
        const int64_t in[kBlockLayers] = {c, config.attention_size(), c, f};
        const int64_t out[kBlockLayers] = {config.qkv_size(), c, 2 * f, c};
        for (int which = 0; which < kBlockLayers; ++which) {
            const auto id = static_cast<uint16_t>(block * kBlockLayers + which);
            bf16_layers_.emplace_back(bf16_, in[which], out[which], id);
        }
    }
    layers_ = bf16_layers_;
    set_recipe(recipe);
    // (Planning passes look at no more than whether there is one.)
    amax_history_ = Buffer(DType::f32, {static_cast<int64_t>(layers_.size()), 2, 6},
                           options.allocates ? options.device : Device::cpu);
    round_targets_.resize(layers_.size());
    weights_.resize(layers_.size());
    saved_.resize(static_cast<size_t>(config.num_hidden_layers));

    const int64_t positions = config.max_position_embeddings, half = config.head_dim / 2;
    rope_cos_ = rope_sin_ = {nullptr, DType::f32, options.device, {positions, half}};
    if (!options.allocates) return;
    rope_table_ = Buffer(DType::f32, {2, positions, half}, options.device);
    rope_cos_ = rope_table_.tensor().slice(0, 1).reshaped({positions, half});
    rope_sin_ = rope_table_.tensor().slice(1, 2).reshaped({positions, half});
    fill_on_cpu(rope_table_.tensor(), [&](std::span<float> values) {
        const Tensor both{values.data(), DType::f32, Device::cpu, {2, positions, half}};
        rope_table(config.rope_theta, both.slice(0, 1).reshaped({positions, half}),
                   both.slice(1, 2).reshaped({positions, half}));
    });
}

Transformer::~Transformer() = default;

void Transformer::set_recipe(const Recipe& recipe) {
    recipe_ = recipe;
    executed_ = nullptr;
    for (size_t id = 0; id < layers_.size(); ++id) {
        const QuantLinear& shape = bf16_layers_[id];
        const bool kept = is_kept(block_of(id));
        layers_[id] = QuantLinear(kept ? bf16_ : recipe_, shape.in(), shape.out(), static_cast<uint16_t>(id),
                                  options_.allowed);
    }
}

void Transformer::observe(const QuantLinear::Observer& observer) {
    for (QuantLinear& layer : layers_) layer.observe(observer);
}

void Transformer::add_parameters() {
    const int64_t c = config_.hidden_size, f = config_.intermediate_size, v = config_.vocab_size;
    int64_t elements = 0, of_matrices = 0;
    const auto add = [&](std::string name, Shape shape, ParameterKind kind) {
        const DType of_gradient = kind == ParameterKind::matrix ? options_.gradients : DType::f32;
        parameters_.push_back({std::move(name),
                               {nullptr, DType::f32, options_.device, shape},
                               {nullptr, of_gradient, options_.device, shape},
                               kind});
        elements += aligned(shape.count());
        if (kind == ParameterKind::matrix) of_matrices += aligned(shape.count());
    };
    add("embedding", {v, c}, ParameterKind::embedding);
    for (int block = 0; block < config_.num_hidden_layers; ++block) {
        const std::string prefix = fmt::format("layers.{}.", block);
        add(prefix + "attention.norm", {c}, ParameterKind::norm);
        add(prefix + "attention.qkv", {config_.qkv_size(), c}, ParameterKind::matrix);
        add(prefix + "attention.out", {c, config_.attention_size()}, ParameterKind::matrix);
        add(prefix + "mlp.norm", {c}, ParameterKind::norm);
        add(prefix + "mlp.gate_up", {2 * f, c}, ParameterKind::matrix);
        add(prefix + "mlp.down", {c, f}, ParameterKind::matrix);
        if (config_.has_qkv_bias()) {
            add(prefix + "attention.qkv_bias", {config_.qkv_size()}, ParameterKind::bias);
        }
        if (config_.has_qk_norm()) {
            add(prefix + "attention.q_norm", {config_.head_dim}, ParameterKind::norm);
            add(prefix + "attention.k_norm", {config_.head_dim}, ParameterKind::norm);
        }
    }
    add("norm", {c}, ParameterKind::norm);
    if (!config_.tie_word_embeddings) add("head", {v, c}, ParameterKind::head);

    if (!options_.allocates) return;
    const bool narrow = options_.gradients == DType::bf16;
    masters_ = Buffer(DType::f32, {elements}, options_.device);
    gradients_ = Buffer(DType::f32, {elements - (narrow ? of_matrices : 0)}, options_.device);
    bf16_gradients_ = Buffer(DType::bf16, {narrow ? of_matrices : 0}, options_.device);
    const auto take = [](Tensor& tensor, const Buffer& from, int64_t& next) {
        const Shape shape = tensor.shape;
        tensor = from.tensor().slice(next, next + shape.count()).reshaped(shape);
        next += aligned(shape.count());
    };
    int64_t next_master = 0, next_gradient = 0, next_bf16_gradient = 0;
    for (Parameter& parameter : parameters_) {
        take(parameter.master, masters_, next_master);
        if (parameter.gradient.dtype == DType::bf16)
            take(parameter.gradient, bf16_gradients_, next_bf16_gradient);
        else
            take(parameter.gradient, gradients_, next_gradient);
    }
}

void Transformer::initialize(uint64_t seed) {
    const double deviation = config_.initializer_range;
    const double output_deviation = deviation / std::sqrt(2.0 * config_.num_hidden_layers);
    for (size_t i = 0; i < parameters_.size(); ++i) {
        const Parameter& parameter = parameters_[i];
        if (parameter.kind == ParameterKind::norm || parameter.kind == ParameterKind::bias) {
            const float value = parameter.kind == ParameterKind::norm ? 1.0f : 0.0f;
            fill_on_cpu(parameter.master, [=](std::span<float> values) { std::ranges::fill(values, value); });
            continue;
        }
        const bool is_output =
            parameter.name.ends_with("attention.out") || parameter.name.ends_with("mlp.down");
        fill_on_cpu(parameter.master, [&](std::span<float> values) {
            fill_normal(values, seed, static_cast<uint16_t>(i), is_output ? output_deviation : deviation);
        });
    }
}

Parameter& Transformer::parameter(std::string_view name) {
    const auto found = std::find_if(parameters_.begin(), parameters_.end(),
                                    [name](const Parameter& parameter) { return parameter.name == name; });
    require(found != parameters_.end(), "the model has no parameter {}", name);
    return *found;
}

Parameter& Transformer::of_block(int block, BlockParameter which) {
    return parameters_[static_cast<size_t>(1 + block * block_parameters() + which)];
}

Parameter& Transformer::matrix_of(size_t layer) {
    constexpr BlockParameter kMatrices[kBlockLayers] = {kQkv, kOut, kGateUp, kDown};
    return of_block(static_cast<int>(layer / kBlockLayers), kMatrices[layer % kBlockLayers]);
}

Parameter& Transformer::final_norm() {
    return parameters_[static_cast<size_t>(1 + config_.num_hidden_layers * block_parameters())];
}

Parameter& Transformer::head() {
    return config_.tie_word_embeddings ? parameters_.front() : parameters_.back();
}

void Transformer::zero_gradients(const Context& context) {
    for (const Buffer* buffer : {&gradients_, &bf16_gradients_}) {
        if (options_.device != Device::cpu) {
            fill_zero(context, buffer->tensor());
            continue;
        }
        std::byte* const bytes = buffer->data();
        parallel_for(static_cast<int64_t>(buffer->bytes()), 1 << 16, [=](int64_t begin, int64_t end) {
            std::fill(bytes + begin, bytes + end, std::byte{0});
        });
    }
}

bool Transformer::is_kept(int block) const { return recipe_.keeps(block, config_.num_hidden_layers); }

void Transformer::begin_step(Context& context, Execution execution) {
    executed_ = execution == Execution::recipe ? &layers_ : &bf16_layers_;
    const size_t before = context.arena.used();
    for (size_t id = 0; id < weights_.size(); ++id) {
        running_layer_ = id;
        const bool is_smoothed = id % kBlockLayers == kDownLayer && smoothing(block_of(id)) != nullptr;
        if (is_smoothed) continue;  // made in each micro-batch
        auto* const histories = static_cast<AmaxHistory*>(amax_history().data);
        AmaxHistory* history = (*executed_)[id].needs_history() ? histories + id : nullptr;
        const Keep on_gpu = options_.recompute == Recompute::block ? Keep::bytes : Keep::operand;
        weights_[id] =
            (*executed_)[id].prepare(context, matrix_of(id).master, history, round_targets_[id], on_gpu);
    }
    step_memory_ = {context.arena.used() - before, 0};
}

const SmoothSwiglu* Transformer::smoothing(int block) const {
    return executed_ == &layers_ && !is_kept(block) ? find_modifier<SmoothSwiglu>(recipe_) : nullptr;
}

}  // namespace nibble
