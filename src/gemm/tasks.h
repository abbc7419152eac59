// Tasks that need scratch memory of their own.
#pragma once

#include <algorithm>
#include <atomic>

#include "core/core.h"

namespace nibble {

// Adds up the pieces of a task's scratch, each aligned to 64 bytes.
class ScratchLayout {
  public:
    // The offset of a new piece.
    size_t add(size_t bytes) {
        const size_t offset = bytes_;
        bytes_ += (bytes + 63) / 64 * 64;
        return offset;
    }
    template <typename T>
    size_t add(int64_t count) {
        return add(static_cast<size_t>(count) * sizeof(T));
    }
    size_t bytes() const { return bytes_; }

  private:
    size_t bytes_ = 0;
};

// Calls task(index, scratch) for every index in [0, count), in parallel. `scratch` has `scratch_bytes` and
// belongs to one running task. Which thread takes which task is left open: tasks write to places of their
// own.
template <typename Task>
void parallel_tasks(Context& context, int64_t count, size_t scratch_bytes, Task&& task) {
    const ArenaScope scope(context.arena);
    const int64_t threads = std::clamp<int64_t>(thread_count(), 1, std::max<int64_t>(count, 1));
    const auto bytes = static_cast<int64_t>((scratch_bytes + 63) / 64 * 64);
    const Tensor scratch = context.arena.allocate(DType::u8, {threads, bytes});
    if (context.planning()) return;
    std::atomic<int64_t> next{0};
    parallel_for(threads, 1, [&](int64_t begin, int64_t) {
        std::byte* own = static_cast<std::byte*>(scratch.data) + begin * bytes;
        for (int64_t index = next++; index < count; index = next++) task(index, own);
    });
}

}  // namespace nibble
