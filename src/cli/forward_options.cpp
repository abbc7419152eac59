#include "cli/forward_options.h"

#include <algorithm>

#include "core/cuda.h"
#include "recipe/recipe.h"

namespace nibble {

namespace {

bool quantizes_nothing(const Recipe& recipe) {
    return std::ranges::none_of(
        kOperandNames, [&](std::string_view name) { return operand(recipe, name).spec.is_quantized(); });
}

}  // namespace

void ForwardOptions::add_to(CLI::App& command) {
    command.add_option("--recipe", recipe, "The recipe whose forward is used (default: bf16)")
        ->type_name("R");
    command
        .add_option("--precision", precision,
                    "Of activations, and of products where the recipe quantises nothing (default: bf16)")
        ->check(CLI::IsMember({"bf16", "fp32"}))
        ->type_name("bf16|fp32");
    command.add_option("--device", device, "Where to execute (default: cpu)")
        ->check(CLI::IsMember({"cpu", "cuda"}))
        ->type_name("cpu|cuda");
}

Device ForwardOptions::chosen_device() const {
    return device == name_of(Device::cuda) ? Device::cuda : Device::cpu;
}

Transformer ForwardOptions::make_model(const ModelConfig& config) const {
    if (chosen_device() == Device::cuda) require_cuda();
    Recipe chosen = find_recipe(recipe);
    if (find_modifier<Qema>(chosen) != nullptr)
        log()->warn("the average of qema is in a run's checkpoint, not here: weights are rounded without it");
    if (precision == "fp32" && quantizes_nothing(chosen)) {
        for (const std::string_view name : kOperandNames) operand(chosen, name).spec = parse_spec("fp32");
    }
    return {config,
            chosen,
            {.activations = precision == "fp32" ? DType::f32 : DType::bf16, .device = chosen_device()}};
}

}  // namespace nibble
