// Quantisers on one tensor that no cache holds: million elements a second for each spec, input and
// instruction set, amax pass included, and the ratio to the rate at which memcpy copies the same tensor's
// elements in the same run. Run with OMP_NUM_THREADS=1 for the figures of docs/performance.md.
// NIBBLE_BENCH_ROWS (of 2,048 columns; 32,768) makes the tensor smaller: 128 rows stay in a cache.
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "best_time.h"
#include "numerics/numerics.h"
#include "quant/quant.h"
#include "quant/simd_targets.h"
// After the choice of targets.
#include <hwy/highway.h>
#include <hwy/targets.h>

namespace nibble {
namespace {

constexpr int64_t kCols = 2048;

int64_t rows() {
    const char* text = std::getenv("NIBBLE_BENCH_ROWS");
    return text != nullptr ? std::max<int64_t>(1, std::atoll(text)) : 32768;
}

// Near-normal values, the same in both types.
struct Inputs {
    Buffer f32{DType::f32, {rows(), kCols}}, bf16{DType::bf16, {rows(), kCols}};

    Inputs() {
        for (int64_t i = 0; i < rows() * kCols; i += 4) {
            const Philox draw = philox_draw(1, Purpose::sampling, static_cast<uint64_t>(i / 4));
            for (int j = 0; j < 4; ++j) {
                const int32_t low = static_cast<int16_t>(draw.word[j]);
                const int32_t high = static_cast<int16_t>(draw.word[j] >> 16);
                const float value = static_cast<float>(low + high) * 0x1p-15f;
                f32.tensor().as<float>()[i + j] = value;
                bf16.tensor().as<Bf16>()[i + j] = bf16_encode(value);
            }
        }
    }
    Tensor of(DType dtype) const { return dtype == DType::f32 ? f32.tensor() : bf16.tensor(); }
};
const Inputs& inputs() {
    static const Inputs all;
    return all;
}

double elements() { return static_cast<double>(rows() * kCols); }

// Seconds that memcpy takes for the F32 tensor: the best of a few.
double copy_seconds() {
    static const double seconds = [] {
        const Buffer to(DType::f32, {rows(), kCols});
        double best = 1e30;
        for (int i = 0; i < 10; ++i) {
            const std::clock_t begin = std::clock();
            std::memcpy(to.data(), inputs().f32.data(), to.bytes());
            benchmark::ClobberMemory();
            best = std::min(best, static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
        }
        return best;
    }();
    return seconds;
}

template <typename F>
void measure(benchmark::State& state, int64_t target, F&& f) {
    hwy::SetSupportedTargetsForTest(target);
    const BestTime best = best_time(state, f);
    hwy::SetSupportedTargetsForTest(0);
    state.counters["Melem/s"] = elements() * 1e-6 / best.cpu;
    state.counters["of_copy"] = copy_seconds() / best.cpu;
}

void add(const std::string& name, const std::function<void(benchmark::State&)>& run) {
    benchmark::RegisterBenchmark(name.c_str(), run)->Iterations(7)->Unit(benchmark::kMillisecond);
}

void add_target(int64_t target) {
    const std::string isa = hwy::TargetName(target);
    constexpr const char* kSpecs[] = {
        "nvfp4 1x16",
        "nvfp4 1x16 round=stochastic",
        "nvfp4 1x16 scale=four-six:mse",
        "nvfp4 1x16 scale=eden rotate=rht:128",
        "nvfp4 1x16 rotate=rht:16",
        "nvfp4 1x16 round=stochastic rotate=rht:16",
        "nvfp4 1x16 scale=four-six:mse range=16/17 round=stochastic rotate=rht:16",
        "nvfp4 16x16",
        "nvfp4 16x16 scale=four-six:mse",
        "mxfp4 1x32",
        "mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip",
        "mxfp4 1x32 scale=three-quarters rotate=rht:32",
        "mxfp4 1x32 scale=three-quarters round=stochastic rotate=rht:32",
        "nvfp4 1x16 outer=1x128",
        "fp8:e4m3 tensor",
        "fp4 row",
        "log4 tensor round=stochastic",
        "fp4 32x32",
    };
    for (const char* text : kSpecs) {
        const QuantSpec spec = parse_spec(text);
        for (const bool transposed : {false, true}) {
            if (transposed && spec.is_square()) continue;
            for (const DType dtype : {DType::f32, DType::bf16}) {
                const std::string name =
                    fmt::format("{}/{}{}/{}", isa, name_of(dtype), transposed ? " transposed" : "", text);
                add(name, [=](benchmark::State& state) {
                    measure(state, target, [&](Context& context) {
                        const ArenaScope scope(context.arena);
                        const Tensor x = inputs().of(dtype);
                        QuantizedMatrix q = transposed
                                                ? allocate_quantized(context.arena, spec, kCols, rows())
                                                : allocate_quantized(context.arena, spec, rows(), kCols);
                        QuantizeOptions options;
                        options.transposed = transposed;
                        quantize(context, spec, x, {}, q, options);
                    });
                });
            }
        }
    }
    for (const bool transposed : {false, true}) {
        add(isa + (transposed ? "/dequantize_operand_transposed" : "/dequantize_operand"),
            [=](benchmark::State& state) {
                measure(state, target, [&](Context& context) {
                    const ArenaScope scope(context.arena);
                    const QuantSpec spec = parse_spec("nvfp4 1x16");
                    const QuantizedMatrix q = allocate_quantized(context.arena, spec, rows(), kCols);
                    const Shape shape = transposed ? Shape{kCols, rows()} : Shape{rows(), kCols};
                    const Tensor out = context.arena.allocate(DType::bf16, shape);
                    (transposed ? dequantize_operand_transposed : dequantize_operand)(context, q, out);
                });
            });
    }
    for (const DType dtype : {DType::f32, DType::bf16}) {
        add(fmt::format("{}/{}/transpose", isa, name_of(dtype)), [=](benchmark::State& state) {
            measure(state, target, [&](Context& context) {
                const ArenaScope scope(context.arena);
                transpose(context, inputs().of(dtype), context.arena.allocate(dtype, {kCols, rows()}));
            });
        });
    }
}

void add_all() {
    add("memcpy", [](benchmark::State& state) {
        for (auto _ : state) benchmark::DoNotOptimize(copy_seconds());
        state.counters["Melem/s"] = elements() * 1e-6 / copy_seconds();
        state.counters["GB/s"] = elements() * sizeof(float) * 1e-9 / copy_seconds();
    });
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
        if (target != HWY_STATIC_TARGET || NIBBLE_HAS_LANES) add_target(target);
    }
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
    nibble::add_all();
    return nibble::run_benchmarks(argc, argv);
}
