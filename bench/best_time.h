// The best time of one call, for machines whose timings are noisy.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>

#include "core/core.h"

namespace nibble {

// Runs f(context) for as long as Google Benchmark wants, in memory that a first call planned, and returns the
// shortest time in seconds.
template <typename F>
double best_time(benchmark::State& state, F&& f) {
    using Clock = std::chrono::steady_clock;
    Arena arena;
    Context context{arena};
    f(context);
    arena.commit();
    f(context);
    double best = 1e30;
    for (auto _ : state) {
        const auto begin = Clock::now();
        f(context);
        best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
    }
    return best;
}

}  // namespace nibble
