// Finished runs, one a line of a CSV file.
#pragma once

#include <string>
#include <vector>

#include "core/file.h"

namespace nibble {

struct ScalingRun {
    std::string scheme;     // bf16, quartet-sr, ...
    double parameters = 0;  // N, embeddings not counted
    double tokens = 0;      // D
    double loss = 0;        // of validation, nats per token

    double ratio() const { return tokens / parameters; }
};

// Reads the columns `scheme`, `non_embedding_parameters`, `tokens` and the one whose name is `loss` or ends
// in `_loss`, in any order; others are ignored. Throws Error with file and line.
std::vector<ScalingRun> read_scaling_runs(const fs::path& path);

}  // namespace nibble
