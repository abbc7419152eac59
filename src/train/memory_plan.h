// The memory of a run, found by a dry run: every buffer of a step is sized, none is taken. A plan that does
// not fit comes with the smallest change that does.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "nn/transformer.h"

namespace nibble {

// Bytes of a run on its device, by what they are for.
struct MemoryPlan {
    size_t masters = 0, gradients = 0, moments = 0, batch = 0, monitor = 0;
    size_t modifiers = 0;    // their state
    size_t weights = 0;      // of a step: quantised, or rounded to BF16
    size_t activations = 0;  // what the forward of a micro-batch keeps for its backward
    size_t scratch = 0;      // what the arena of a step holds beside these
    size_t on_host = 0;      // beside the total: moments that are offloaded

    size_t step() const { return weights + activations + scratch; }
    size_t total() const { return masters + gradients + moments + batch + monitor + modifiers + step(); }
};
nlohmann::ordered_json to_json(const MemoryPlan& plan);
// A line for each of them that is not 0, and for the total; of what to_json() made of a plan.
std::string memory_table(const nlohmann::ordered_json& plan);

// What decides it.
struct MemoryNeeds {
    ModelConfig model;
    std::vector<Recipe> recipes;   // of all phases
    Transformer::Options options;  // whether they allocate does not matter
    DType moments = DType::f32;
    bool offload = false;
    int64_t sequences = 1, length = 1;  // of a micro-batch
    bool evaluates = false;
    size_t modifiers = 0;  // bytes of their state
};
MemoryPlan plan_memory(const MemoryNeeds& needs);

// The first change with which the plan has at most `limit` bytes. Changes are tried in the order of what they
// cost: more recomputation (time), smaller micro-batches (time), both; then the same with moments in BF16,
// with gradients in BF16, too (rounding), and at last, on a GPU, with offloaded moments (time). Nothing if
// all of it is not enough.
std::optional<MemoryNeeds> smallest_change(const MemoryNeeds& needs, size_t limit);

}  // namespace nibble
