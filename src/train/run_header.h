// The header of a run: what was asked for, what executes it, on which machine, with which data. Printed
// before the first step and written to the log, from the same JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "data/shard.h"
#include "nn/transformer.h"
#include "train/memory_plan.h"
#include "train/run_config.h"

namespace nibble {

std::string cpu_name();

// What the same bits depend on beside the configuration: instruction set, threads, libraries. A run that is
// resumed where one of them differs goes on, but not to the bit.
nlohmann::ordered_json describe_machine(Device device = Device::cpu);

// For each product of the linear layers, and the LM head: {"product", "requested", "executed"}. `allowed`: as
// the run allows it (device.allow). fits_fp8: fit_fp8() of the model; if not, that is said.
nlohmann::ordered_json describe_products(const Recipe& recipe, DType activations, Device device = Device::cpu,
                                         const AllowedProducts& allowed = {}, bool fits_fp8 = false);
// Whether all outputs of these products have as many columns as FP8 tensor cores take: multiples of 16.
bool fit_fp8(const ModelConfig& shape);

struct HeaderParts {
    const RunConfig& config;
    const std::vector<Phase>& all_phases;
    const Transformer& model;
    const TokenShards& train;
    const TokenShards* validation;  // or null
    MemoryPlan memory;
    int64_t steps;     // of the run, as far as it is known
    double gemm_peak;  // FLOP/s
    std::string command;
};
// {"recipe": NAME, "after_step" or "when": ..., what else it changes}: of a phase, for the log.
nlohmann::ordered_json describe(const Phase& phase);
nlohmann::ordered_json make_header(const HeaderParts& parts);
// A phase as describe() gives it, in one line for a person.
std::string phase_text(const nlohmann::ordered_json& phase);
// A recipe's table, and a line for each product as describe_products() gives them; the last line has no end.
std::string recipe_text(const std::string& table, const nlohmann::ordered_json& products);
// Some lines for a person.
std::string to_text(const nlohmann::ordered_json& header);

// Bytes of a device's memory that are free for this program now; 0 if the system does not say.
size_t available_memory(Device device = Device::cpu);
std::string bytes_text(double bytes);  // "12.3 MB"

}  // namespace nibble
