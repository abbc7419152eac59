// Whole training steps of the demo model (configs/models/llama-1m.json: 8 sequences of 256 tokens, one
// micro-batch): weights quantised, forward and backward, norm of the gradients, AdamW. The recipes take
// turns, each step between two products of square matrices, so that other programs slow all of them alike.
//
//   usage: bench_step [RECIPE...] [--rounds N]     the first recipe is what the others are compared with
//
// tokens/s: of the best step. of first: median over the rounds of the step's speed over the first recipe's in
// the same round. of peak: median of the step's FLOP/s (training_flops_per_token) over those of the faster of
// the two products beside it.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gemm/matmul.h"
#include "nn/nn.h"
#include "numerics/philox.h"
#include "optim/optim.h"
#include "train/speed_of_light.h"

namespace nibble {
namespace {

constexpr int64_t kSequences = 8, kLength = 256, kTokens = kSequences * kLength;

double seconds_of(auto&& work) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

ModelConfig demo_model() {
    ModelConfig config;
    config.hidden_size = 128;
    config.intermediate_size = 384;
    config.vocab_size = 2048;
    config.num_hidden_layers = config.num_attention_heads = config.num_key_value_heads = 4;
    config.head_dim = 32;
    config.max_position_embeddings = kLength;
    return config;
}

Buffer random_tokens(int64_t vocab, uint64_t seed) {
    Buffer tokens(DType::i32, {kSequences, kLength});
    for (int64_t i = 0; i < kTokens; ++i) {
        const Philox draw = philox_draw(seed, Purpose::sampling, static_cast<uint64_t>(i));
        tokens.tensor().as<int32_t>()[i] = static_cast<int32_t>(draw.word[0] % static_cast<uint32_t>(vocab));
    }
    return tokens;
}

// One recipe's model, and the seconds of its steps.
class Training {
  public:
    explicit Training(const std::string& recipe) : model_(demo_model(), find_recipe(recipe), {}) {
        model_.initialize(1);
        std::vector<OptimizedTensor> tensors;
        for (const Parameter& p : model_.parameters()) {
            tensors.push_back({p.name, p.master, p.gradient, p.kind == ParameterKind::matrix});
            gradients_.push_back(p.gradient);
        }
        optimizer_ = std::make_unique<AdamW>(std::move(tensors), AdamWOptions{});
        step();  // plans the memory
        arena_.commit();
        step();
    }
    void step() {
        const ArenaScope scope(arena_);
        context_.step = static_cast<uint32_t>(update_);
        model_.zero_gradients(context_);
        model_.begin_step(context_);
        model_.forward_backward(context_, tokens_.tensor(), targets_.tensor(), 1.0f / kTokens);
        const GradientNorm norm = global_norm(context_, gradients_);
        optimizer_->update(context_, ++update_, 1e-3, clip_factor(norm.norm, 1.0));
    }

  private:
    Arena arena_;
    Context context_{arena_};
    Transformer model_;
    std::vector<Tensor> gradients_;
    std::unique_ptr<AdamW> optimizer_;
    const Buffer tokens_ = random_tokens(2048, 1), targets_ = random_tokens(2048, 2);
    int64_t update_ = 0;
};

// The machine's limit at this moment.
class SquareProduct {
  public:
    SquareProduct() {
        multiply();  // plans the memory
        arena_.commit();
        multiply();
    }
    // FLOP/s of the best of a few.
    double measure() {
        double best = 1e30;
        for (int i = 0; i < 5; ++i) best = std::min(best, seconds_of([&] { multiply(); }));
        return 2.0 * kSize * kSize * kSize / best;
    }

  private:
    static constexpr int64_t kSize = 1024;
    void multiply() { matmul(context_, a_.tensor(), b_.tensor(), c_.tensor()); }

    Buffer a_{DType::bf16, {kSize, kSize}}, b_{DType::bf16, {kSize, kSize}}, c_{DType::f32, {kSize, kSize}};
    Arena arena_;
    Context context_{arena_};
};

void run(const std::vector<std::string>& recipes, int rounds) {
    SquareProduct product;
    std::vector<std::unique_ptr<Training>> trainings;
    for (const std::string& recipe : recipes) trainings.push_back(std::make_unique<Training>(recipe));
    std::vector<std::vector<double>> seconds(recipes.size()), of_first(recipes.size()),
        of_peak(recipes.size());
    const double flops = kTokens * training_flops_per_token(demo_model(), kLength);
    double peak = product.measure(), best_peak = peak;
    for (int round = 0; round < rounds; ++round) {
        for (size_t i = 0; i < recipes.size(); ++i) {
            const double before = peak;
            seconds[i].push_back(seconds_of([&] { trainings[i]->step(); }));
            peak = product.measure();
            best_peak = std::max(best_peak, peak);
            of_peak[i].push_back(flops / seconds[i].back() / std::max(before, peak));
            of_first[i].push_back(seconds[0].back() / seconds[i].back());
        }
    }
    fmt::print("{} threads, {}, {} rounds; best product {:.0f} GFLOP/s\n", thread_count(),
               matmul_description(), rounds, best_peak * 1e-9);
    fmt::print("{:<16} {:>10} {:>10} {:>10}\n", "recipe", "tokens/s", "of first", "of peak");
    for (size_t i = 0; i < recipes.size(); ++i) {
        fmt::print("{:<16} {:>10.0f} {:>10.3f} {:>10.3f}\n", recipes[i],
                   kTokens / *std::min_element(seconds[i].begin(), seconds[i].end()), median(of_first[i]),
                   median(of_peak[i]));
    }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
    std::vector<std::string> recipes;
    int rounds = 40;
    for (int i = 1; i < argc; ++i) {
        if (std::string_view(argv[i]) == "--rounds" && i + 1 < argc) {
            rounds = std::max(1, std::atoi(argv[++i]));
        } else {
            recipes.emplace_back(argv[i]);
        }
    }
    if (recipes.empty()) recipes = {"bf16", "quartet2", "nvidia"};
    try {
        nibble::run(recipes, rounds);
    } catch (const nibble::Error& error) {
        fmt::print(stderr, "bench_step: {}\n", error.what());
        return 1;
    }
    return 0;
}
