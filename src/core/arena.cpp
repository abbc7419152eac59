#include "core/arena.h"

#include <algorithm>

namespace nibble {

Tensor Arena::allocate(DType dtype, Shape shape) {
    const size_t alignment = alignment_of(device_);
    const size_t bytes = static_cast<size_t>(shape.count()) * size_of(dtype);
    const size_t begin = (used_ + alignment - 1) / alignment * alignment;
    used_ = begin + bytes;
    if (planning_) {
        peak_ = std::max(peak_, used_);
        return {nullptr, dtype, device_, shape};
    }
    require(used_ <= memory_.bytes(),
            "the arena of {} bytes has no room for {} {} (the memory plan missed it)", memory_.bytes(),
            name_of(dtype), shape.str());
    return {memory_.data() + begin, dtype, device_, shape};
}

void Arena::commit() {
    require(planning_, "an arena was committed twice");
    memory_ = Buffer(peak_, device_);
    planning_ = false;
}

}  // namespace nibble
