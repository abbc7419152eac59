// The modifiers of a run (recipe/modifier.h): their state, and the two hooks where the Trainer lets them act.
//
//   round_weights()  before weights are quantised   qema
//   after_update()   after the optimizer's update   cage, qema, oscireset
//
// smooth-swiglu has no state; the Transformer executes it. A modifier acts on the linear layers that the
// recipe quantises, never on kept blocks. It belongs to the recipe of the phase: its state goes on while
// successive phases have it, with whatever options, and begins anew after a step without it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "io/safetensors.h"
#include "nn/transformer.h"
#include "optim/optim.h"
#include "train/phases.h"

namespace nibble {

class ModifierState {
  public:
    // Takes memory, zero, for what the modifiers of all phases remember. `model` must outlive this.
    ModifierState(Transformer& model, const std::vector<Phase>& phases);
    // How many bytes a weight that will be, at most.
    static size_t bytes_per_weight(const std::vector<Phase>& phases);

    // Tells the model what its next begin_step() rounds weights towards.
    void round_weights(const Context& context);
    // Update number `update` (1 is the first) of `steps` has been made, at this rate, under context.step. A
    // planning pass takes the scratch of every hook. Returns how many weights oscireset has set, nothing
    // where no window ended.
    std::optional<int64_t> after_update(Context& context, int64_t update, int64_t steps, double lr);

    // What a checkpoint holds of it: nothing without such modifiers.
    std::vector<NamedTensor> tensors() const;
    size_t bytes() const;

  private:
    // Of one linear layer; empty where no phase needs it.
    struct Layer {
        Buffer average;                                // qema
        Buffer weight_path, quantized_path, previous;  // oscireset
        Oscillation oscillation() const {
            return {weight_path.tensor(), quantized_path.tensor(), previous.tensor()};
        }
    };
    // The options, for layers that the present recipe quantises; else null.
    template <typename Kind>
    const Kind* active(size_t layer) const {
        return model_.is_kept(Transformer::block_of(layer)) ? nullptr : find_modifier<Kind>(model_.recipe());
    }
    // How many updates a layer's average has seen; how many of its window, the one that began it included.
    int32_t& averaged(size_t layer) const { return counts_.tensor().as<int32_t>()[layer]; }
    int32_t& watched(size_t layer) const { return counts_.tensor().as<int32_t>()[layers_.size() + layer]; }
    std::optional<int64_t> watch(Context& context, const OsciReset& options, size_t layer,
                                 const RandomKey& key, int64_t update, int64_t steps);

    Transformer& model_;
    std::vector<Layer> layers_;
    Buffer counts_;  // I32 [2, layers]
};

}  // namespace nibble
