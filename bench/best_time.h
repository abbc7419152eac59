// The best time of one call, for machines whose timings are noisy. Where other programs run too, one thread
// (OMP_NUM_THREADS=1) and processor time tell most.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <string>

#include "core/core.h"
#include "gemm/matmul.h"

namespace nibble {

struct BestTime {
    double wall = 1e30, cpu = 1e30;  // seconds; cpu: of all threads
};

// Runs f(context) for as long as Google Benchmark wants, in memory that a first call planned.
template <typename F>
BestTime best_time(benchmark::State& state, F&& f) {
    using Clock = std::chrono::steady_clock;
    Arena arena;
    Context context{arena};
    f(context);
    arena.commit();
    f(context);
    BestTime best;
    for (auto _ : state) {
        const auto wall = Clock::now();
        const std::clock_t cpu = std::clock();
        f(context);
        best.cpu = std::min(best.cpu, static_cast<double>(std::clock() - cpu) / CLOCKS_PER_SEC);
        best.wall = std::min(best.wall, std::chrono::duration<double>(Clock::now() - wall).count());
    }
    return best;
}

// The end of main(): runs the benchmarks that were registered. Returns the exit code.
inline int run_benchmarks(int argc, char** argv) {
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::AddCustomContext("products", matmul_description());
    benchmark::AddCustomContext("threads", std::to_string(thread_count()));
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}

}  // namespace nibble
