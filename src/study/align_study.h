// Gradient alignment through depth: the gradients of a whole model under a recipe against those under bf16,
// at every block and matrix (arXiv 2505.14669, its figure of alignment through depth).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "nn/transformer.h"

namespace nibble {

// How a gradient q lies to that of bf16, g. Of one draw of signs and coins, averaged over the draws:
struct Alignment {
    double cosine = 0;        // <q, g> / |q| |g|; of the residual stream: of each token, averaged over tokens
    double misalignment = 0;  // 1 - <q, g> / <g, g>: what is lost of g along g (arXiv 2505.14669)
    double norm = 0;          // |q| / |g|
    double error = 0;         // |q - g| / |g|, as root mean square
    // Of the mean of the draws. What does not shrink with the number of draws is bias: |E q - g| / |g|, from
    // |mean - g|² = bias² + variance / draws. NaN where a single draw cannot tell.
    double mean_cosine = 0;
    double bias = 0;
};

struct AlignedGradient {
    int block = 0;
    // "residual": the gradient of the residual stream at the block's input, [T, C]; or the weight gradient of
    // "attention.qkv", "attention.out", "mlp.gate_up" or "mlp.down".
    std::string name;
    Alignment alignment;
};

struct RecipeAlignment {
    double loss = 0;                         // nats a token, of the first draw
    int draws = 0;                           // 1 if all are the same
    std::vector<AlignedGradient> gradients;  // block by block, in the order of the names above
};

class AlignmentStudy {
  public:
    // Runs `model` forward and backward in bf16 on one batch, tokens and targets I32 [sequences, length].
    // Uses the model's recipe and gradients; its weights stay. `model` must outlive the study.
    AlignmentStudy(Transformer& model, const Tensor& tokens, const Tensor& targets, uint64_t seed = 1);

    double loss() const { return reference_.loss; }  // of bf16
    // draws >= 1: steps of one run, so that signs=run stay. Blocks that the recipe keeps are kept.
    RecipeAlignment measure(const Recipe& recipe, int draws);

  private:
    struct Gradients {
        double loss = 0;
        std::vector<std::vector<float>> of;  // as RecipeAlignment::gradients
    };
    Gradients run(int step);

    Transformer& model_;
    Tensor tokens_, targets_;
    uint64_t seed_;
    std::vector<std::string> names_;  // of a block's gradients
    Gradients reference_;
};

// Tokens without meaning, each followed by the next as its target: I32 [sequences, length], uniform in the
// vocabulary.
struct TokenBatch {
    Buffer tokens, targets;
};
TokenBatch random_batch(int64_t sequences, int64_t length, int64_t vocabulary, uint64_t seed);

}  // namespace nibble
