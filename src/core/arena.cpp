#include "core/arena.h"

#include <algorithm>

namespace nibble {

Tensor Arena::allocate(DType dtype, Shape shape) {
    constexpr size_t kAlignment = 64;
    const size_t bytes = static_cast<size_t>(shape.count()) * size_of(dtype);
    const size_t begin = (used_ + kAlignment - 1) / kAlignment * kAlignment;
    used_ = begin + bytes;
    if (planning_) {
        peak_ = std::max(peak_, used_);
        return {nullptr, dtype, Device::cpu, shape};
    }
    require(used_ <= memory_.bytes(),
            "the arena of {} bytes has no room for {} {} (the memory plan missed it)", memory_.bytes(),
            name_of(dtype), shape.str());
    return {memory_.data() + begin, dtype, Device::cpu, shape};
}

void Arena::commit() {
    require(planning_, "an arena was committed twice");
    memory_ = Buffer(peak_);
    planning_ = false;
}

}  // namespace nibble
