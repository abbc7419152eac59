// Arena: all memory of a training step. A stack of aligned pieces, sized by a dry run.
//
// The same code runs twice. In the planning pass the arena has no memory: allocate() hands out tensors with
// unusable addresses and records the high-water mark; functions return after their allocations. commit() then
// takes that much memory once, and nothing is allocated inside a step.
#pragma once

#include <cstddef>

#include "core/tensor.h"

namespace nibble {

class Arena {
  public:
    // A planning arena. commit() makes it usable.
    explicit Arena(Device device = Device::cpu) : device_(device) {}
    // An arena of a fixed size, usable at once (tests, tools).
    explicit Arena(size_t bytes, Device device = Device::cpu)
        : memory_(bytes, device), device_(device), planning_(false), peak_(bytes) {}

    bool planning() const { return planning_; }
    Device device() const { return device_; }
    // Uninitialised memory of the arena's device, aligned to alignment_of() it, valid until the enclosing
    // ArenaScope ends. Throws when a committed arena is too small: the plan then missed something.
    Tensor allocate(DType dtype, Shape shape);

    // Takes memory for the high-water mark of the planning pass and ends planning.
    void commit();

    size_t used() const { return used_; }
    size_t peak() const { return peak_; }

  private:
    friend class ArenaScope;
    Buffer memory_;
    Device device_;
    bool planning_ = true;
    size_t used_ = 0;
    size_t peak_ = 0;
};

// Gives back, at its end, everything allocated since its beginning.
class ArenaScope {
  public:
    explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.used_) {}
    ~ArenaScope() { arena_.used_ = mark_; }
    ArenaScope(const ArenaScope&) = delete;
    ArenaScope& operator=(const ArenaScope&) = delete;

  private:
    Arena& arena_;
    size_t mark_;
};

}  // namespace nibble
