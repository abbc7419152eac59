// Every layer of the demo model (4 layers, width 128, 4 heads of 32, feed-forward 384, vocabulary 2048) on a
// micro-batch of 8 sequences of 256 tokens. "ns/token" is of the best call, one layer's worth; "total" is
// what a training step spends on it: times the number of its calls.
#include <functional>

#include "best_time.h"
#include "gemm/matmul.h"
#include "nn/nn.h"
#include "numerics/numerics.h"

namespace nibble {
namespace {

constexpr int64_t kLayers = 4, kWidth = 128, kFeedForward = 384, kVocabulary = 2048, kSequence = 256;
constexpr int kHeads = 4, kHeadDim = 32;
constexpr int64_t kTokens = 8 * kSequence;
constexpr int64_t kQkv = 3 * kWidth;

Buffer values(DType dtype, Shape shape, float scale = 1.0f) {
    Buffer buffer(dtype, shape);
    for (int64_t i = 0; i < shape.count(); ++i) {
        const Philox draw = philox_draw(1, Purpose::sampling, static_cast<uint64_t>(i));
        const float value = scale * (static_cast<float>(draw.word[0]) * 0x1p-31f - 1.0f);
        if (dtype == DType::bf16) {
            buffer.tensor().as<Bf16>()[i] = bf16_encode(value);
        } else {
            buffer.tensor().as<float>()[i] = value;
        }
    }
    return buffer;
}

Buffer tokens() {
    Buffer buffer(DType::i32, {kTokens});
    for (int64_t i = 0; i < kTokens; ++i) {
        const Philox draw = philox_draw(2, Purpose::sampling, static_cast<uint64_t>(i));
        buffer.tensor().as<int32_t>()[i] = static_cast<int32_t>(draw.word[0] % kVocabulary);
    }
    return buffer;
}

// What the functions read and write.
struct Bench {
    DType dtype;
    Buffer x{values(dtype, {kTokens, kWidth})}, y{values(dtype, {kTokens, kWidth})};
    Buffer z{values(dtype, {kTokens, kWidth})};
    Buffer qkv{values(dtype, {kTokens, kQkv})}, dqkv{values(dtype, {kTokens, kQkv})};
    Buffer gate_up{values(dtype, {kTokens, 2 * kFeedForward})},
        dgate_up{values(dtype, {kTokens, 2 * kFeedForward})};
    Buffer h{values(dtype, {kTokens, kFeedForward})};
    Buffer weight{values(DType::f32, {kWidth})}, dweight{DType::f32, {kWidth}}, rstd{DType::f32, {kTokens}};
    Buffer embedding{values(DType::f32, {kVocabulary, kWidth}, 0.1f)},
        dembedding{DType::f32, {kVocabulary, kWidth}};
    Buffer logsumexp{DType::f32, {kTokens, kHeads}};
    Buffer cos{DType::f32, {kSequence, kHeadDim / 2}}, sin{DType::f32, {kSequence, kHeadDim / 2}};
    Buffer token{tokens()};
    AttentionShape attention{kSequence, kHeads, kHeads, kHeadDim};

    explicit Bench(DType activations) : dtype(activations) {
        rope_table(10000.0, cos.tensor(), sin.tensor());
    }
};

using Layer = std::function<void(Context&, Bench&)>;

void measure(benchmark::State& state, DType dtype, int64_t calls, const Layer& layer) {
    Bench b(dtype);
    const BestTime best = best_time(state, [&](Context& context) { layer(context, b); });
    const double ns = 1e9 / static_cast<double>(kTokens);
    state.counters["ns/token"] = best.wall * ns;
    state.counters["total"] = best.wall * ns * static_cast<double>(calls);
    state.counters["cpu_ns/token"] = best.cpu * ns;
}

void add(const std::string& name, DType dtype, int64_t calls, Layer layer) {
    const std::string label = fmt::format("{}/{}", name, name_of(dtype));
    const auto run = [=](benchmark::State& state) { measure(state, dtype, calls, layer); };
    benchmark::RegisterBenchmark(label.c_str(), run)->MinTime(0.2)->Unit(benchmark::kMicrosecond);
}

// The three products of a linear layer, plain BF16 or F32 operands.
void add_linear(const std::string& name, DType dtype, int64_t in, int64_t out) {
    add("linear_" + name, dtype, kLayers, [=](Context& context, Bench& b) {
        const Tensor wide_in = in == kWidth ? b.x.tensor() : b.h.tensor();
        const Tensor wide_out = out == kWidth ? b.y.tensor()
                                : out == kQkv ? b.dqkv.tensor()
                                              : b.dgate_up.tensor();
        const Tensor dx = in == kWidth ? b.z.tensor() : b.h.tensor();
        const ArenaScope scope(context.arena);
        const Tensor w = context.arena.allocate(dtype, {out, in});
        const Tensor dw = context.arena.allocate(DType::f32, {out, in});
        if (!context.planning()) std::fill_n(static_cast<std::byte*>(w.data), w.bytes(), std::byte{0});
        MatmulOptions options;
        options.compute = dtype;
        matmul(context, wide_in, w, wide_out, options);
        matmul(context, wide_out, Operand::transposed(w), dx, options);
        options.accumulate = true;
        matmul(context, Operand::transposed(wide_out), Operand::transposed(wide_in), dw, options);
    });
}

void add_all(DType dtype) {
    add("rmsnorm_forward", dtype, 2 * kLayers + 1, [](Context& c, Bench& b) {
        rmsnorm_forward(c, b.x.tensor(), b.y.tensor(), b.weight.tensor(), 1e-5f, b.z.tensor(), b.y.tensor(),
                        b.rstd.tensor());
    });
    add("rmsnorm_backward", dtype, 2 * kLayers + 1, [](Context& c, Bench& b) {
        rmsnorm_backward(c, b.x.tensor(), b.y.tensor(), b.weight.tensor(), b.rstd.tensor(), b.z.tensor(),
                         b.z.tensor(), b.dweight.tensor());
    });
    add("rope_forward", dtype, kLayers, [](Context& c, Bench& b) {
        rope_forward(c, RopeLayout::half_split, b.qkv.tensor(), kSequence, kHeads, kHeads, b.cos.tensor(),
                     b.sin.tensor());
    });
    add("rope_backward", dtype, kLayers, [](Context& c, Bench& b) {
        rope_backward(c, RopeLayout::half_split, b.qkv.tensor(), kSequence, kHeads, kHeads, b.cos.tensor(),
                      b.sin.tensor());
    });
    add("attention_forward", dtype, kLayers, [](Context& c, Bench& b) {
        attention_forward(c, b.attention, b.qkv.tensor(), b.x.tensor(), b.logsumexp.tensor());
    });
    add("attention_backward", dtype, kLayers, [](Context& c, Bench& b) {
        attention_backward(c, b.attention, b.y.tensor(), b.qkv.tensor(), b.x.tensor(), b.logsumexp.tensor(),
                           b.dqkv.tensor());
    });
    add("swiglu_forward", dtype, kLayers,
        [](Context& c, Bench& b) { swiglu_forward(c, b.gate_up.tensor(), b.h.tensor()); });
    add("swiglu_backward", dtype, kLayers, [](Context& c, Bench& b) {
        swiglu_backward(c, b.h.tensor(), b.gate_up.tensor(), b.dgate_up.tensor());
    });
    add("embedding_forward", dtype, 1, [](Context& c, Bench& b) {
        embedding_forward(c, b.token.tensor(), b.embedding.tensor(), b.x.tensor());
    });
    add("embedding_backward", dtype, 1, [](Context& c, Bench& b) {
        embedding_backward(c, b.x.tensor(), b.token.tensor(), b.dembedding.tensor());
    });
    add("head_loss", dtype, 0,
        [](Context& c, Bench& b) { head_loss(c, b.x.tensor(), b.embedding.tensor(), b.token.tensor(), {}); });
    add("head_loss_backward", dtype, 1, [](Context& c, Bench& b) {
        head_loss_backward(c, b.x.tensor(), b.embedding.tensor(), b.token.tensor(), 1.0f / kTokens,
                           b.y.tensor(), b.dembedding.tensor());
    });
    add_linear("qkv", dtype, kWidth, kQkv);
    add_linear("out", dtype, kWidth, kWidth);
    add_linear("gate_up", dtype, kWidth, 2 * kFeedForward);
    add_linear("down", dtype, kFeedForward, kWidth);
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
    nibble::add_all(nibble::DType::bf16);
    nibble::add_all(nibble::DType::f32);
    return nibble::run_benchmarks(argc, argv);
}
