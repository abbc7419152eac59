#include "core/tensor.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/cuda.h"

namespace nibble {

Shape::Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
    require(dims.size() <= kMaxRank, "a tensor has at most {} dimensions, not {}", int{kMaxRank},
            dims.size());
    std::copy(dims.begin(), dims.end(), dims_.begin());
}

int64_t Shape::count() const {
    int64_t count = 1;
    for (int64_t dim : dims()) count *= dim;
    return count;
}

std::string Shape::str() const { return fmt::format("[{}]", fmt::join(dims(), ", ")); }

Tensor Tensor::reshaped(Shape new_shape) const {
    require(new_shape.count() == count(), "shape {} cannot be seen as {}", shape.str(), new_shape.str());
    return {data, dtype, device, new_shape};
}

Tensor Tensor::slice(int64_t begin, int64_t end) const {
    require(shape.rank() > 0 && 0 <= begin && begin <= end && end <= shape[0],
            "rows {}..{} are not in shape {}", begin, end, shape.str());
    std::array<int64_t, Shape::kMaxRank> dims{};
    std::copy(shape.dims().begin(), shape.dims().end(), dims.begin());
    dims[0] = end - begin;
    const Shape sliced(std::span<const int64_t>(dims.data(), shape.dims().size()));
    const int64_t row_elements = shape[0] == 0 ? 0 : count() / shape[0];
    auto* start = static_cast<std::byte*>(data);
    if (start != nullptr) start += static_cast<size_t>(begin * row_elements) * size_of(dtype);
    return {start, dtype, device, sliced};
}

Buffer::Buffer(size_t bytes, Device device) : bytes_(bytes), shape_{static_cast<int64_t>(bytes)} {
    const size_t alignment = alignment_of(device);
    const size_t rounded = (std::max<size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
    if (device == Device::cuda) {
        require_cuda();
        if constexpr (kHasCuda) data_ = {cuda::allocate_zeroed(rounded), Free{device}};
        return;
    }
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(alignment, rounded));
    if (memory == nullptr) fail("no memory for {} bytes; make the batch or the model smaller", bytes);
    std::memset(memory, 0, rounded);
    data_.reset(memory);
}

Buffer::Buffer(DType dtype, Shape shape, Device device)
    : Buffer(static_cast<size_t>(shape.count()) * size_of(dtype), device) {
    dtype_ = dtype;
    shape_ = shape;
}

void Buffer::Free::operator()(std::byte* p) const {
    if constexpr (kHasCuda) {
        if (device == Device::cuda) return cuda::free(p);
    }
    std::free(p);
}

}  // namespace nibble
