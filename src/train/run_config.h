// RunConfig: everything that a run is told. One table of keys (run_config_keys.cpp) says name, place, limits
// and meaning of each; TOML, --set, --print-config and the JSON of logs and checkpoints are derived from it.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/core.h"
#include "recipe/recipe.h"
#include "train/phases.h"

namespace nibble {

// How many transformer blocks stay in bf16: "recipe" (what the recipe says), a number, or a share like "15%".
struct KeptBlocks {
    std::string text = "recipe";
    // The number or share (below 1) that it means, given the recipe's own.
    double resolve(double of_recipe) const;
    friend bool operator==(const KeptBlocks&, const KeptBlocks&) = default;
};

struct RunConfig {
    std::string name = "run";
    int64_t seed = 1;
    struct {
        std::string config, init;
    } model;
    struct {
        std::string train, validation, tokenizer;
        int64_t sequence_length = 256;
    } data;
    struct {
        std::string name = "quartet2", file;
        KeptBlocks keep_first, keep_last;
        std::string lm_head = "recipe";
        // "recipe": what the recipe says.
        std::string fprop = "recipe", dgrad = "recipe", wgrad = "recipe";
        std::array<std::string, 6> operands = {"recipe", "recipe", "recipe", "recipe", "recipe", "recipe"};
        std::vector<std::string> modifiers = {"recipe"};  // with_modifiers()
    } recipe;
    struct {
        std::string activations = "bf16", logits = "fp32";
    } precision;
    struct {
        std::string name = "adamw";
        double lr = 1e-3;
        std::vector<double> betas = {0.9, 0.95};
        double eps = 1e-8, weight_decay = 0.1;
        std::vector<std::string> decay = {"matrices"};
        double grad_clip = 1.0;
        std::string moments = "f32", offload = "none";
    } optimizer;
    struct {
        std::string name = "cosine";
        double warmup = 0.1, decay = 0.2, final = 0.1;
    } schedule;
    struct {
        int64_t steps = 0, tokens = 0;
        int64_t batch_size = 16, micro_batch_size = 16;
        int64_t eval_every = 50, eval_batches = 0;
        std::string recompute = "none", gradients = "f32";
    } train;
    struct {
        int64_t every = 50;
        std::string noise = "predicted";
    } monitor;
    struct {
        int64_t every = 100, keep = 3;
    } checkpoint;
    struct {
        std::string kind = "cpu";
        std::string attention = "deterministic";
        Device device() const { return kind == name_of(Device::cuda) ? Device::cuda : Device::cpu; }
        int64_t threads = 0, memory = 0;
        std::vector<std::string> allow;
    } device;
    struct {
        std::string dir = "runs/run", dtype = "f32";
    } output;

    std::vector<PhaseConfig> phases;  // [[phase]], in the order of the file

    // Where each key's value came from, in the order of config_keys(): "default", "demo.toml:12" or "--set".
    std::vector<std::string> origins;

    int64_t tokens_per_step() const { return train.batch_size * data.sequence_length; }
    int64_t micro_steps() const { return train.batch_size / train.micro_batch_size; }
    // train.steps, or the steps that hold train.tokens.
    int64_t steps() const;
};

// The value of one key inside a RunConfig. The alternative is the type that users must give.
using ConfigSlot = std::variant<int64_t*, double*, std::string*, KeptBlocks*, std::vector<double>*,
                                std::vector<std::string>*>;

// What a resumed run may do with a key.
enum class OnResume : uint8_t {
    fixed,  // must stay: it decides what is trained on what
    free,   // may change
};

struct ConfigKey {
    std::string_view name;  // "optimizer.lr"
    ConfigSlot (*slot)(RunConfig&);
    std::string_view help;
    OnResume on_resume = OnResume::free;
    // Numbers: the least and the largest value allowed; a list: those of each element.
    double least = 0, largest = 1e18;
    // Texts: the words allowed; empty: any.
    std::vector<std::string> words = {};
    size_t list_length = 0;  // of a list; 0: any
};

const std::vector<ConfigKey>& config_keys();

// Defaults, then the file (none if `path` is empty), then each "section.key=value" of `overrides`.
// Throws UsageError, naming file:line or the override, for an unknown key (with the nearest known one), a
// wrong type or a value outside its limits. Does not look at files other than `path`.
RunConfig load_run_config(const std::string& path, const std::vector<std::string>& overrides);
// Throws UsageError when keys contradict each other or a required one is missing. Called before a run.
void check_complete(const RunConfig& config);

// The recipe that the run asks for, with its kept blocks, head and changed operands. Throws as find_recipe
// does.
Recipe resolve_recipe(const RunConfig& config);
// A recipe whose products are in bf16 where the word for them is "bf16".
Recipe with_precisions(Recipe recipe, const std::string& fprop, const std::string& dgrad,
                       const std::string& wgrad);
// A recipe with the run's kept blocks and head.
Recipe with_run_settings(Recipe recipe, const RunConfig& config);

// Valid TOML: every key, its value, where it came from and what it means.
std::string to_annotated_toml(const RunConfig& config);
// {"name": ..., "optimizer": {"lr": ...}, ...}
nlohmann::ordered_json to_json(const RunConfig& config);
// One line for each key whose value differs, "optimizer.lr: 0.001 in the checkpoint, 0.002 now".
struct ConfigDifference {
    std::string key, then, now;
    OnResume on_resume;
};
std::vector<ConfigDifference> differences(const nlohmann::ordered_json& then,
                                          const nlohmann::ordered_json& now);

}  // namespace nibble
