// Threads. All loops go through OpenMP, whose pool the GEMM library shares.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <utility>

namespace nibble {

int thread_count();
void set_thread_count(int threads);  // for this process; at least 1

namespace detail {
using RangeFunction = void (*)(void* closure, int64_t begin, int64_t end);
void run_ranges(int64_t count, int64_t grain, void* closure, RangeFunction function);
}  // namespace detail

// Calls body(begin, end) for consecutive ranges that cover [0, count), in parallel. Ranges are multiples of
// `grain` long (but for the last), and depend only on count, grain and the number of threads. Whatever the
// ranges are, results must not depend on them: reduce per row, or per fixed chunk, never per thread.
// The first exception thrown by a body is thrown again here.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, Body&& body) {
    auto call = [](void* closure, int64_t begin, int64_t end) {
        (*static_cast<std::remove_reference_t<Body>*>(closure))(begin, end);
    };
    detail::run_ranges(count, grain, const_cast<void*>(static_cast<const void*>(&body)), call);
}

// The grain of a loop over rows of `cols` columns: as many rows as hold `elements`, which are worth a thread.
inline int64_t rows_per_task(int64_t cols, int64_t elements = 1 << 14) {
    return std::max<int64_t>(1, elements / std::max<int64_t>(cols, 1));
}

}  // namespace nibble
