#include "gemm/pack.cuh"
#include "nn/cuda_forms.h"

namespace nibble::cuda {

namespace {

// out <- x [rows, cols], zero where its mask is, or out + that. `cols` may be fewer than the stride of x, and
// `out` may be x itself.
struct Masked {
    const float* x;
    int64_t rows, cols, stride;
    const uint8_t* mask;  // or null
    int64_t mask_stride;
    bool accumulate;
};

template <typename Element, int kPack>
__global__ void store_masked(Masked m, Element* out) {
    const int64_t packs = m.cols / kPack;
    for (int64_t r = blockIdx.y * int64_t{blockDim.y} + threadIdx.y; r < m.rows;
         r += int64_t{gridDim.y} * blockDim.y) {
        for (int64_t p = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; p < packs;
             p += int64_t{gridDim.x} * blockDim.x) {
            const int64_t at = p * kPack;
            const auto values = *reinterpret_cast<const Pack<float, kPack>*>(m.x + r * m.stride + at);
            const unsigned bits =
                m.mask == nullptr ? ~0u : unsigned{m.mask[r * m.mask_stride + at / 8]} >> (at % 8);
            auto& to = *reinterpret_cast<Pack<Element, kPack>*>(out + r * m.cols + at);
            Pack<Element, kPack> result;
            if (m.accumulate) result = to;
            for (int j = 0; j < kPack; ++j) {
                float value = bits >> j & 1 ? values.v[j] : 0.0f;
                if (m.accumulate) value = to_float(result.v[j]) + value;
                result.v[j] = store_as<Element>(value);
            }
            to = result;
        }
    }
}

void store_masked(const Context& context, const Tensor& x, const Tensor& mask, const Tensor& out,
                  bool accumulate) {
    constexpr int kPack = 8;
    const Masked m{.x = x.as<float>(),
                   .rows = x.rows(),
                   .cols = out.cols(),
                   .stride = x.cols(),
                   .mask = static_cast<const uint8_t*>(mask.data),
                   .mask_stride = mask.cols(),
                   .accumulate = accumulate};
    with_elements(out, [&]<typename Element>(Element* to) {
        const bool is_packed =
            fits_packs<float, kPack>(m.x, m.stride) && fits_packs<Element, kPack>(to, m.cols);
        launch(context, is_packed ? store_masked<Element, kPack> : store_masked<Element, 1>,
               grid_of_rows(m.rows, is_packed ? m.cols / kPack : m.cols), kRowsBlock, 0, m, to);
    });
}

}  // namespace

void finish_gradient(Context& context, const Tensor& gradient, const Tensor& mask, const QuantSpec* rotation,
                     const SignBits& signs, const Tensor& out, bool accumulate) {
    if (rotation == nullptr) return store_masked(context, gradient, mask, out, accumulate);
    if (mask.shape.rank() > 0) store_masked(context, gradient, mask, gradient, false);
    unrotate(context, rotation->rotation_size, signs, gradient, rotation->rotation_rounds());
    store_masked(context, gradient, {}, out, accumulate);
}

}  // namespace nibble::cuda
