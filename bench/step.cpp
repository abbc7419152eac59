// Whole training steps of the demo model (configs/models/llama-1m.json: 16 sequences of 256 tokens, one
// micro-batch): weights quantised, forward and backward, norm of the gradients, AdamW. "tokens/s" is of the
// best step; "cpu ns/token" is its processor time, of all threads.
#include <string>

#include "best_time.h"
#include "nn/nn.h"
#include "numerics/philox.h"
#include "optim/optim.h"

namespace nibble {
namespace {

constexpr int64_t kSequences = 16, kLength = 256, kTokens = kSequences * kLength;

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

void step(benchmark::State& state, const std::string& recipe) {
    Transformer model(demo_model(), find_recipe(recipe), {});
    model.initialize(1);
    std::vector<OptimizedTensor> tensors;
    std::vector<Tensor> gradients;
    for (const Parameter& p : model.parameters()) {
        tensors.push_back({p.name, p.master, p.gradient, p.kind == ParameterKind::matrix});
        gradients.push_back(p.gradient);
    }
    AdamW optimizer(std::move(tensors), {});
    const Buffer tokens = random_tokens(2048, 1), targets = random_tokens(2048, 2);
    int64_t update = 0;
    const BestTime best = best_time(state, [&](Context& context) {
        const ArenaScope scope(context.arena);
        context.step = static_cast<uint32_t>(update);
        model.zero_gradients();
        model.begin_step(context);
        model.forward_backward(context, tokens.tensor(), targets.tensor(), 1.0f / kTokens);
        const GradientNorm norm = global_norm(context, gradients);
        optimizer.update(context, ++update, 1e-3, clip_factor(norm.norm, 1.0));
    });
    state.counters["tokens/s"] = kTokens / best.wall;
    state.counters["cpu ns/token"] = best.cpu * 1e9 / kTokens;
}

BENCHMARK_CAPTURE(step, bf16, "bf16")->MinTime(1)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, quartet2, "quartet2")->MinTime(1)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(step, nvidia, "nvidia")->MinTime(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace nibble

BENCHMARK_MAIN();
