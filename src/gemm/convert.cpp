#include "gemm/convert.h"

#include <cstring>

#include "gemm/row_kernels.h"

namespace nibble {

void convert(const Tensor& from, const Tensor& to, bool round_bf16) {
    require(from.count() == to.count(), "shape {} cannot be converted to shape {}", from.shape.str(),
            to.shape.str());
    for (const Tensor* t : {&from, &to}) {
        require(t->dtype == DType::f32 || t->dtype == DType::bf16, "{} is neither F32 nor BF16",
                name_of(t->dtype));
    }
    constexpr int64_t kGrain = 1 << 14;
    parallel_for(from.count(), kGrain, [&](int64_t begin, int64_t end) {
        const int64_t count = end - begin;
        if (from.dtype == DType::bf16 && to.dtype == DType::f32) {
            to_f32(static_cast<const Bf16*>(from.data) + begin, static_cast<float*>(to.data) + begin, count);
        } else if (from.dtype == DType::f32 && to.dtype == DType::bf16) {
            to_bf16(static_cast<const float*>(from.data) + begin, static_cast<Bf16*>(to.data) + begin, count);
        } else if (from.dtype == DType::f32 && round_bf16) {
            round_to_bf16(static_cast<const float*>(from.data) + begin, static_cast<float*>(to.data) + begin,
                          count);
        } else {
            const size_t size = size_of(from.dtype), offset = static_cast<size_t>(begin) * size;
            std::memcpy(static_cast<std::byte*>(to.data) + offset,
                        static_cast<const std::byte*>(from.data) + offset, static_cast<size_t>(count) * size);
        }
    });
}

}  // namespace nibble
