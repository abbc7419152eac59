#include "train/modifier_state.h"

#include <algorithm>

namespace nibble {

ModifierState::ModifierState(Transformer& model, const std::vector<Phase>& phases)
    : model_(model), layers_(model.layers()), counts_(DType::i32, {2, static_cast<int64_t>(layers_.size())}) {
    const Device device = model.options().device;
    for (size_t id = 0; id < layers_.size(); ++id) {
        const Shape shape = model.matrix_of(id).master.shape;
        Layer& layer = layers_[id];
        for (const Phase& phase : phases) {
            const Recipe& recipe = phase.recipe;
            if (recipe.keeps(Transformer::block_of(id), model.config().num_hidden_layers)) continue;
            if (find_modifier<Qema>(recipe) != nullptr) layer.average = Buffer(DType::f32, shape, device);
            if (find_modifier<OsciReset>(recipe) == nullptr) continue;
            for (Buffer* buffer : {&layer.weight_path, &layer.quantized_path, &layer.previous})
                *buffer = Buffer(DType::f32, shape, device);
        }
    }
}

size_t ModifierState::bytes_per_weight(const std::vector<Phase>& phases) {
    const auto any = [&](auto kind) {
        return std::any_of(phases.begin(), phases.end(), [](const Phase& phase) {
            return find_modifier<decltype(kind)>(phase.recipe) != nullptr;
        });
    };
    return (any(Qema{}) ? 4 : 0) + (any(OsciReset{}) ? 12 : 0);
}

void ModifierState::round_weights(const Context& context) {
    for (size_t id = 0; id < layers_.size(); ++id) {
        const Qema* const qema = active<Qema>(id);
        const bool rounds = qema != nullptr && (context.planning() || averaged(id) >= qema->after);
        model_.round_targets()[id] = rounds ? layers_[id].average.tensor() : Tensor{};
    }
}

std::optional<int64_t> ModifierState::after_update(Context& context, int64_t update, int64_t steps,
                                                   double lr) {
    std::optional<int64_t> resets;
    for (size_t id = 0; id < layers_.size(); ++id) {
        const Tensor& w = model_.matrix_of(id).master;
        const QuantSpec& spec = model_.recipe().fprop_w.spec;
        const RandomKey key = {.seed = context.seed,
                               .step = context.step,
                               .layer = static_cast<uint16_t>(id),
                               .gemm = Gemm::fprop,
                               .side = Side::b};
        if (const auto* cage = active<Cage>(id))
            cage_update(context, spec, key, lr * cage_lambda(*cage, update, steps), w);
        const auto* oscireset = active<OsciReset>(id);
        if (oscireset == nullptr) {
            watched(id) = 0;
        } else if (const auto set = watch(context, *oscireset, id, key, update, steps)) {
            resets = resets.value_or(0) + *set;
        }
        // Last: the average is of the weights that the next step begins with.
        if (const auto* qema = active<Qema>(id)) {
            qema_update(context, qema->decay, averaged(id) == 0, w, layers_[id].average.tensor());
            averaged(id) += context.planning() ? 0 : 1;
        } else {
            averaged(id) = 0;
        }
    }
    return resets;
}

std::optional<int64_t> ModifierState::watch(Context& context, const OsciReset& options, size_t layer,
                                            const RandomKey& key, int64_t update, int64_t steps) {
    const Tensor& w = model_.matrix_of(layer).master;
    const QuantSpec& spec = model_.recipe().fprop_w.spec;
    const Oscillation seen = layers_[layer].oscillation();
    int32_t& count = watched(layer);
    std::optional<int64_t> resets;
    if (count > 0 || context.planning()) oscireset_watch(context, spec, key, w, seen);
    if (count >= options.window || context.planning())
        resets = oscireset_reset(context, spec, key, options.threshold, w, seen);
    if (context.planning()) return {};
    count = resets || count == 0 ? 0 : count + 1;
    if (oscireset_begins(options, update, steps)) {
        oscireset_begin(context, w, seen);
        count = 1;
    }
    return resets;
}

std::vector<NamedTensor> ModifierState::tensors() const {
    std::vector<NamedTensor> tensors;
    for (size_t id = 0; id < layers_.size(); ++id) {
        const std::string& name = model_.matrix_of(id).name;
        const auto add = [&](const char* what, const Buffer& buffer) {
            if (buffer.bytes() > 0) tensors.push_back({name + what, buffer.tensor()});
        };
        add(".average", layers_[id].average);
        add(".weight_path", layers_[id].weight_path);
        add(".quantized_path", layers_[id].quantized_path);
        add(".previous", layers_[id].previous);
    }
    if (!tensors.empty()) tensors.push_back({"modifier_counts", counts_.tensor()});
    return tensors;
}

size_t ModifierState::bytes() const {
    size_t sum = 0;
    for (const NamedTensor& named : tensors()) sum += named.tensor.bytes();
    return sum;
}

}  // namespace nibble
