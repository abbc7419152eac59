#include "core/cuda_vector.cuh"
#include "nn/cuda_forms.h"
#include "quant/kernel_butterfly.cuh"

namespace nibble::cuda::detail {

namespace {

constexpr int kThreads = 256;
constexpr int kInFlight = 4;  // pieces of a thread
constexpr int kWide = 8;      // columns of a piece, where rows are multiples of them

struct Finish {
    int64_t rows, cols, wanted;
    const float* gradient;
    const uint8_t* mask;  // or null
    int64_t mask_stride;
    int size, rounds;  // of the rotation; 0: none
    uint32_t signs[2 * kMaxRotation / 32];
    bool accumulate, wide_out;
};

// The inverse rotation of kWide neighbours a lane.
__device__ __forceinline__ void unrotate(const Finish& f, float (&x)[kWide]) {
    const unsigned lane = threadIdx.x % kWarp;
    const float factor = hadamard_factor(f.size);
    for (int round = f.rounds - 1; round >= 0; --round) {
        butterfly(f.size, x);
        const unsigned j =
            static_cast<unsigned>(round) * kMaxRotation + lane * kWide % static_cast<unsigned>(f.size);
        const uint32_t negated = f.signs[j / 32] >> (j % 32);
#pragma unroll
        for (int i = 0; i < kWide; ++i)
            x[i] *= __uint_as_float(__float_as_uint(factor) ^ (negated << (31 - i) & 0x80000000u));
    }
}

// A warp takes pieces of rows of 32 * kWidth columns, in which rotated blocks do not straddle.
template <int kWidth, typename Element>
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ Finish f, Element* out) {
    constexpr unsigned kWarps = kThreads / kWarp;
    constexpr int kSegment = kWarp * kWidth;
    const auto segments = static_cast<unsigned>(divide_up<int64_t>(f.cols, kSegment));  // of a row
    const unsigned first = blockIdx.x * kWarps * kInFlight + threadIdx.x / kWarp;
    unsigned row = first / segments, segment = first % segments;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    Piece<float, kWidth> held[kInFlight];
    int64_t rows[kInFlight], columns[kInFlight];
#pragma unroll
    for (int p = 0; p < kInFlight; ++p) {
        rows[p] = row;
        columns[p] = int64_t{segment} * kSegment + lane * kWidth;
        for (segment += kWarps; segment >= segments; segment -= segments) ++row;
        if (rows[p] < f.rows && columns[p] < f.cols) {
            held[p] = Piece<float, kWidth>::load(f.gradient + rows[p] * f.cols + columns[p]);
        } else {
            held[p] = {};
        }
    }
#pragma unroll
    for (int p = 0; p < kInFlight; ++p) {
        const int64_t r = rows[p], c = columns[p];
        float x[kWidth];
        for (int i = 0; i < kWidth; ++i) x[i] = held[p][i];
        const bool inside = r < f.rows && c < f.cols;
        if (f.mask != nullptr && inside) {
            const unsigned bits = f.mask[r * f.mask_stride + c / 8] >> (c % 8);
            for (int i = 0; i < kWidth; ++i)
                if ((bits >> i & 1u) == 0) x[i] = 0.0f;
        }
        if constexpr (kWidth == kWide)
            if (f.size > 0) unrotate(f, x);
        if (!inside) continue;
        Element* const to = out + r * f.wanted + c;
        if (f.wide_out) {
            if (c >= f.wanted) continue;
            if (f.accumulate) {
                const auto before = Piece<Element, kWidth>::load(to);
                for (int i = 0; i < kWidth; ++i) x[i] = before[i] + x[i];
            }
            store_floats(x, to);
        } else {
            for (int i = 0; i < kWidth && c + i < f.wanted; ++i) {
                float before[1] = {0.0f}, value[1] = {x[i]};
                if (f.accumulate) {
                    load_floats(to + i, before);
                    value[0] = before[0] + x[i];
                }
                store_floats(value, to + i);
            }
        }
    }
}

}  // namespace

void finish_gradient(Context& context, const Tensor& gradient, const Tensor& mask, const QuantSpec* rotation,
                     const SignBits& signs, const Tensor& out, bool accumulate) {
    Finish finish{};
    finish.rows = gradient.rows();
    finish.cols = gradient.cols();
    finish.wanted = out.cols();
    finish.gradient = gradient.as<float>();
    if (mask.shape.rank() > 0) {
        finish.mask = mask.as<uint8_t>();
        finish.mask_stride = mask.cols();
    }
    if (rotation != nullptr) {
        finish.size = rotation->rotation_size;
        finish.rounds = rotation->rotation_rounds();
        for (size_t j = 0; j < signs.size(); ++j)
            if (signs[j]) finish.signs[j / 32] |= 1u << (j % 32);
        require(finish.cols % finish.size == 0, "{} columns are not a multiple of the rotation's {}",
                finish.cols, finish.size);
    }
    finish.accumulate = accumulate;
    with_elements(out, [&]<typename Element>(Element* to) {
        constexpr int kAccess = kPerAccess<Element>;
        const bool wide = finish.cols % kWide == 0 && fits_width<float>(4, finish.cols, {finish.gradient});
        require(wide || finish.size == 0, "finish_gradient: tensors begin at multiples of 16 bytes");
        finish.wide_out =
            wide && finish.wanted % kWide == 0 && fits_width<Element>(kAccess, finish.wanted, {to});
        const int64_t segments = finish.rows * divide_up<int64_t>(finish.cols, wide ? kWide * kWarp : kWarp);
        const auto blocks = static_cast<unsigned>(divide_up<int64_t>(segments, kThreads / kWarp * kInFlight));
        launch(context, wide ? finish_kernel<kWide, Element> : finish_kernel<1, Element>, blocks, kThreads, 0,
               finish, to);
    });
}

}  // namespace nibble::cuda::detail
