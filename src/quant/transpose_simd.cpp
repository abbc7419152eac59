// Transposes of F32 and BF16 matrices, a block at a time through registers: every store is a vector of
// neighbouring rows.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/transpose_simd.cpp"
#include "quant/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
// clang-format on
#include <hwy/highway.h>

#include "quant/cuda_forms.h"
#include "quant/transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
#if NIBBLE_HAS_LANES
namespace {

constexpr int64_t kBandRows = 128;  // read again and again while they are in the cache

// Rows begin .. end - 1 of `to`.
template <typename T>
void transpose_range(const void* from, int64_t rows, int64_t cols, void* to, int64_t begin, int64_t end) {
    const T* x = static_cast<const T*>(from);
    T* y = static_cast<T*>(to);
    for (int64_t band = 0; band < rows; band += kBandRows) {
        const int64_t band_end = std::min(rows, band + kBandRows);
        for (int64_t c = begin; c < end; c += kBlockCols<T>) {
            const int64_t width = std::min<int64_t>(kBlockCols<T>, end - c);
            for (int64_t r = band; r < band_end; r += kBlockRows<T>) {
                const int64_t height = std::min<int64_t>(kBlockRows<T>, band_end - r);
                transpose_block(x + r * cols + c, cols, height, width, y + c * rows + r, rows);
            }
        }
    }
}

}  // namespace

TransposeKernel choose_transpose(size_t size) {
    return size == sizeof(uint32_t) ? transpose_range<uint32_t> : transpose_range<uint16_t>;
}

#else

TransposeKernel choose_transpose(size_t) { return nullptr; }

#endif  // NIBBLE_HAS_LANES
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {
namespace {

HWY_EXPORT(choose_transpose);

template <typename T>
void transpose_scalar(const void* from, int64_t rows, int64_t cols, void* to, int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
        for (int64_t r = 0; r < rows; ++r) {
            static_cast<T*>(to)[c * rows + r] = static_cast<const T*>(from)[r * cols + c];
        }
    }
}

}  // namespace

void transpose(Context& context, const Tensor& x, const Tensor& out) {
    const int64_t rows = x.rows(), cols = x.cols();
    const size_t size = size_of(x.dtype);
    require(size == 2 || size == 4, "cannot transpose {}; F32 and BF16 can be", name_of(x.dtype));
    require(out.dtype == x.dtype && out.count() == x.count() && (x.count() == 0 || out.cols() == rows),
            "the transpose of {} {} does not fit a {} tensor of shape {}", name_of(x.dtype), x.shape.str(),
            name_of(out.dtype), out.shape.str());
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, transpose(context, x, out));
    TransposeKernel kernel = HWY_DYNAMIC_DISPATCH(choose_transpose)(size);
    if (kernel == nullptr) kernel = size == 4 ? transpose_scalar<uint32_t> : transpose_scalar<uint16_t>;
    parallel_for(cols, 64,
                 [&](int64_t begin, int64_t end) { kernel(x.data, rows, cols, out.data, begin, end); });
}

}  // namespace nibble
#endif
