// How a command that runs a model forward (eval, generate) executes it: the options that they share.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "nn/transformer.h"

namespace nibble {

struct ForwardOptions {
    std::string recipe = "bf16", precision = "bf16", device = "cpu";

    void add_to(CLI::App& command);  // --recipe, --precision, --device
    Device chosen_device() const;
    // Throws Error if there is no such device.
    Transformer make_model(const ModelConfig& config) const;
};

}  // namespace nibble
