// Checkpoints: OUT/checkpoints/step-N/ holds all that the steps after N depend on (docs/checkpoint.md gives
// the files to the byte).
//
//   model.safetensors      the FP32 masters, under the names of nn/transformer.h
//   optimizer.safetensors  NAME.m and NAME.v of each, and the amax history of recipes with tensor=delayed
//   state.json             step, configuration, recipe, data, machine; sizes and checksums of the other two
//   files
//
// A checkpoint is written beside its name and renamed when it is whole, so that a folder with that name is
// complete or was damaged later, which the checksums tell.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "core/core.h"
#include "io/safetensors.h"

namespace nibble {

// Raised when the files change, or when the same seed means other random numbers (numerics/philox.h).
inline constexpr int kCheckpointFormat = 1;

struct Checkpoint {
    fs::path path;
    int64_t step = 0;
    nlohmann::ordered_json state;
};

// Writes FOLDER/step-N, then removes the oldest beyond `keep` (0: keeps all). Returns its path. A failure
// leaves earlier checkpoints as they were. An existing one of the same step is replaced.
fs::path write_checkpoint(const fs::path& folder, int64_t step, nlohmann::ordered_json state,
                          const std::vector<NamedTensor>& model, const std::vector<NamedTensor>& optimizer,
                          int64_t keep);

// The steps of the checkpoints in a folder, in ascending order. Empty if there is no such folder.
std::vector<int64_t> checkpoint_steps(const fs::path& folder);

// Reads state.json and verifies every byte. Throws Error that says what is damaged.
Checkpoint open_checkpoint(const fs::path& path);
// The newest one that is whole; nothing if there is none at all. A damaged one is named in a warning, with
// the one that is taken instead. Throws Error when there are checkpoints but all are damaged.
std::optional<Checkpoint> newest_checkpoint(const fs::path& folder);

// Fills the tensors from FILE of an opened checkpoint. Throws Error when one is missing, superfluous or of
// another shape or dtype.
void read_checkpoint_tensors(const Checkpoint& checkpoint, const char* file,
                             const std::vector<NamedTensor>& into);

inline constexpr const char* kCheckpointModel = "model.safetensors";
inline constexpr const char* kCheckpointOptimizer = "optimizer.safetensors";

}  // namespace nibble
