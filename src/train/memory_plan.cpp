#include "train/memory_plan.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "optim/optim.h"
#include "train/run_header.h"

namespace nibble {

namespace {

// The largest of the steps and evaluations of all phases.
void add_step(const MemoryNeeds& needs, Transformer& model, MemoryPlan& plan) {
    std::vector<Tensor> gradients;
    for (const Parameter& parameter : model.parameters()) gradients.push_back(parameter.gradient);
    const Tensor tokens{nullptr, DType::i32, needs.options.device, {needs.sequences, needs.length}};
    for (const Recipe& recipe : needs.recipes) {
        Arena arena(needs.options.device);
        Context context{arena};
        model.set_recipe(recipe);
        {
            const ArenaScope scope(arena);
            model.begin_step(context);
            model.forward_backward(context, tokens, tokens, 1.0f);
            global_norm(context, gradients);
        }
        if (needs.evaluates) {
            for (const auto execution : {Transformer::Execution::recipe, Transformer::Execution::bf16}) {
                const ArenaScope scope(arena);
                model.begin_step(context, execution);
                model.forward(context, tokens, tokens);
            }
        }
        if (arena.peak() <= plan.step()) continue;
        const Transformer::StepMemory memory = model.step_memory();
        plan.weights = memory.weights;
        plan.activations = memory.activations;
        plan.scratch = arena.peak() - memory.weights - memory.activations;
    }
}

}  // namespace

MemoryPlan plan_memory(const MemoryNeeds& needs) {
    Transformer::Options options = needs.options;
    options.allocates = false;
    Transformer model(needs.model, needs.recipes.front(), options);
    MemoryPlan plan;
    for (const Parameter& parameter : model.parameters()) {
        plan.masters += parameter.master.bytes();
        plan.gradients += parameter.gradient.bytes();
        (needs.offload ? plan.on_host : plan.moments) +=
            AdamW::moment_bytes(parameter.master.shape, needs.moments);
    }
    plan.batch = 2 * static_cast<size_t>(needs.sequences * needs.length) * size_of(DType::i32);
    plan.modifiers = needs.modifiers;
    add_step(needs, model, plan);
    return plan;
}

std::optional<MemoryNeeds> smallest_change(const MemoryNeeds& needs, size_t limit) {
    const auto fits = [&](const MemoryNeeds& changed) { return plan_memory(changed).total() <= limit; };
    std::vector<MemoryNeeds> storage = {needs};
    const auto with = [&](auto&& change) {
        MemoryNeeds changed = storage.back();
        change(changed);
        storage.push_back(changed);
    };
    with([](MemoryNeeds& n) { n.moments = DType::bf16; });
    with([](MemoryNeeds& n) { n.options.gradients = DType::bf16; });
    if (needs.options.device == Device::cuda) with([](MemoryNeeds& n) { n.offload = true; });
    for (const MemoryNeeds& stored : storage) {
        MemoryNeeds least = stored;
        least.options.recompute = Recompute::block;
        least.sequences = 1;
        if (!fits(least)) continue;
        std::vector<Recompute> levels;
        for (const Recompute level : {Recompute::none, Recompute::norms, Recompute::mlp, Recompute::block})
            if (level >= needs.options.recompute) levels.push_back(level);
        MemoryNeeds changed = stored;
        for (const Recompute level : levels) {
            changed.options.recompute = level;
            if (fits(changed)) return changed;
        }
        for (const Recompute level : {levels.front(), Recompute::block}) {
            changed.options.recompute = level;
            for (changed.sequences = needs.sequences - 1; changed.sequences >= 1; --changed.sequences)
                if (needs.sequences % changed.sequences == 0 && fits(changed)) return changed;
        }
    }
    return {};
}

nlohmann::ordered_json to_json(const MemoryPlan& plan) {
    return {{"masters", plan.masters},     {"gradients", plan.gradients},     {"moments", plan.moments},
            {"batch", plan.batch},         {"monitor", plan.monitor},         {"step", plan.step()},
            {"weights", plan.weights},     {"activations", plan.activations}, {"scratch", plan.scratch},
            {"modifiers", plan.modifiers}, {"total", plan.total()},           {"on_host", plan.on_host}};
}

std::string memory_table(const nlohmann::ordered_json& plan) {
    std::string table;
    for (const auto& [key, what] : {std::pair{"masters", ""},
                                    {"gradients", ""},
                                    {"moments", ""},
                                    {"modifiers", ""},
                                    {"weights", "of a step: quantised, or in bf16"},
                                    {"activations", "kept for the backward of a micro-batch"},
                                    {"scratch", "the rest of a step's arena"},
                                    {"batch", ""},
                                    {"monitor", ""},
                                    {"total", ""},
                                    {"on_host", "moments, beside these"}}) {
        const auto bytes = plan.at(key).get<double>();
        if (bytes == 0) continue;
        std::string line = fmt::format("{:<12} {:>9}  {}", key, bytes_text(bytes), what);
        line.erase(line.find_last_not_of(' ') + 1);
        table += line + '\n';
    }
    return table;
}

}  // namespace nibble
