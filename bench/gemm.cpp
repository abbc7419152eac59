// Matrix products: the shapes of the demo model (2048 tokens), and squares for the machine's limit.
// The columns are those of the best call: GFLOP/s, and microseconds.
#include "best_time.h"
#include "gemm/matmul.h"
#include "numerics/numerics.h"

namespace nibble {
namespace {

// transposed: both operands are stored with the contraction first, as a weight gradient reads them.
void product(benchmark::State& state, int64_t m, int64_t n, int64_t k, DType operands, DType result,
             bool a_transposed, bool b_transposed) {
    const Buffer a(operands, a_transposed ? Shape{k, m} : Shape{m, k});
    const Buffer b(operands, b_transposed ? Shape{k, n} : Shape{n, k});
    const Buffer c(result, {m, n});
    for (const Buffer* x : {&a, &b}) {
        for (int64_t i = 0; i < x->tensor().count(); ++i) {
            const float value = static_cast<float>(i % 7 - 3);
            if (operands == DType::bf16) {
                x->tensor().as<Bf16>()[i] = bf16_encode(value);
            } else {
                x->tensor().as<float>()[i] = value;
            }
        }
    }
    const Tensor ta = a.tensor(), tb = b.tensor();
    const Operand operand_a = a_transposed ? Operand::transposed(ta) : Operand(ta);
    const Operand operand_b = b_transposed ? Operand::transposed(tb) : Operand(tb);
    MatmulOptions options;
    options.compute = operands;
    options.accumulate = result == DType::f32 && a_transposed;
    const BestTime best = best_time(
        state, [&](Context& context) { matmul(context, operand_a, operand_b, c.tensor(), options); });
    state.counters["best_us"] = best.wall * 1e6;
    state.counters["cpu_us"] = best.cpu * 1e6;
    state.counters["GFLOP/s"] = 2e-9 * static_cast<double>(m * n * k) / best.wall;
}

void add(const char* name, int64_t m, int64_t n, int64_t k, DType operands, DType result, bool a_transposed,
         bool b_transposed) {
    const std::string label =
        fmt::format("{}/{}x{}x{}/{}_to_{}", name, m, n, k, name_of(operands), name_of(result));
    const auto run = [=](benchmark::State& state) {
        product(state, m, n, k, operands, result, a_transposed, b_transposed);
    };
    benchmark::RegisterBenchmark(label.c_str(), run)->MinTime(0.2)->Unit(benchmark::kMicrosecond);
}

void add_all() {
    constexpr int64_t kTokens = 2048;
    struct Layer {
        const char* name;
        int64_t in, out;
    };
    constexpr Layer kLayers[] = {
        {"qkv", 128, 384}, {"out", 128, 128}, {"gate_up", 128, 768}, {"down", 384, 128}};
    for (const DType dtype : {DType::bf16, DType::f32}) {
        for (const Layer& l : kLayers) {
            const std::string name = l.name;
            add((name + "/fprop").c_str(), kTokens, l.out, l.in, dtype, dtype, false, false);
            add((name + "/dgrad").c_str(), kTokens, l.in, l.out, dtype, dtype, false, true);
            add((name + "/wgrad").c_str(), l.out, l.in, kTokens, dtype, DType::f32, true, true);
        }
        for (const int64_t n : {512, 1024, 2048, 4096})
            add("square", n, n, n, dtype, DType::f32, false, false);
    }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
    nibble::add_all();
    return nibble::run_benchmarks(argc, argv);
}
