#include "core/parallel.h"

#include <omp.h>

#include <algorithm>

#include "core/error.h"

namespace nibble {

int thread_count() { return omp_get_max_threads(); }

void set_thread_count(int threads) {
    require(threads >= 1, "the number of threads must be at least 1, not {}", threads);
    omp_set_num_threads(threads);
}

namespace detail {

void run_ranges(int64_t count, int64_t grain, void* closure, RangeFunction function) {
    if (count <= 0) return;
    grain = std::max<int64_t>(grain, 1);
    const int64_t chunks = (count + grain - 1) / grain;
    const int64_t threads = std::min<int64_t>(thread_count(), chunks);
    if (threads <= 1 || omp_in_parallel()) {
        function(closure, 0, count);
        return;
    }
    std::exception_ptr error;
#pragma omp parallel num_threads(static_cast <int>(threads))
    {
        const int64_t id = omp_get_thread_num();
        const int64_t begin = std::min(count, chunks * id / threads * grain);
        const int64_t end = std::min(count, chunks * (id + 1) / threads * grain);
        try {
            if (begin < end) function(closure, begin, end);
        } catch (...) {
#pragma omp critical(nibble_parallel_error)
            if (!error) error = std::current_exception();
        }
    }
    if (error) std::rethrow_exception(error);
}

}  // namespace detail
}  // namespace nibble
