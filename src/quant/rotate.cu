// Rotations of whole F32 tensors, and transposes: passes of their own, where nothing fuses them.
#include "quant/cuda_forms.h"
#include "quant/kernel_far_stages.cuh"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 256;

// One rotation: signs of each round as bits, in front of the transform or (inverse) behind it.
struct Turn {
    int size, rounds;
    bool is_inverse;
    uint32_t signs[2][kMaxRotation / 32];

    Turn(int size_, const SignBits& bits, int rounds_, bool is_inverse_)
        : size(size_), rounds(rounds_), is_inverse(is_inverse_), signs{} {
        for (int i = 0; i < 2 * kMaxRotation; ++i) {
            signs[i / kMaxRotation][i % kMaxRotation / 32] |= uint32_t{bits[static_cast<size_t>(i)]}
                                                              << (i % 32);
        }
    }
    template <int kSize>
    __device__ __forceinline__ void flip(float (&x)[kSize], int round) const {
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
            const uint32_t sign = signs[round][j / 32] >> (j % 32) & 1u;
            x[j] = __uint_as_float(__float_as_uint(x[j]) ^ sign << 31);
        }
    }
};

// kSize elements, `stride` apart, by one thread, which holds them all.
template <int kSize>
__global__ void __launch_bounds__(kThreads, 1)  // with the registers that it takes
    turn_kernel(const __grid_constant__ Turn turn, float* x, int64_t cols, int stride, int64_t count) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float* const first = stride == 1 ? x + i * kSize  // neighbours in a row
                                     : x + i / cols * kSize * cols + i % cols;
    const float factor = hadamard_factor(kSize);
    float v[kSize];
#pragma unroll
    for (int j = 0; j < kSize; ++j) v[j] = first[int64_t{j} * stride];
    keep(stride);  // or the addresses are kept
#pragma unroll 1
    for (int n = 0; n < turn.rounds; ++n) {
        const int round = turn.is_inverse ? turn.rounds - 1 - n : n;
        if (!turn.is_inverse) turn.flip(v, round);
        stages<1, kSize>(v);
#pragma unroll
        for (int j = 0; j < kSize; ++j) v[j] *= factor;
        if (turn.is_inverse) turn.flip(v, round);
    }
#pragma unroll
    for (int j = 0; j < kSize; ++j) first[int64_t{j} * stride] = v[j];
}

void launch_turn(const Context& context, const Turn& turn, const Tensor& x, int64_t stride) {
    const int64_t count = x.count() / turn.size;
    const auto of_size = [&]<int kSize>() {
        if (turn.size != kSize) return;
        launch(context, turn_kernel<kSize>, dim3(static_cast<unsigned>(divide_up<int64_t>(count, kThreads))),
               dim3(kThreads), 0, turn, x.as<float>(), x.cols(), static_cast<int>(stride), count);
    };
    of_size.template operator()<16>();
    of_size.template operator()<32>();
    of_size.template operator()<64>();
    of_size.template operator()<128>();
}

template <typename T>
__global__ void widen_kernel(const T* x, int64_t x_rows, int64_t x_cols, float* out, int64_t rows,
                             int64_t cols) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= rows * cols) return;
    const int64_t row = i / cols, col = i % cols;
    out[i] = row < x_rows && col < x_cols ? to_float(x[row * x_cols + col]) : 0.0f;
}

__global__ void round_kernel(float* x, int64_t count) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < count) x[i] = nibble::round_to_bf16(x[i]);
}

dim3 blocks_of(int64_t count) { return dim3(static_cast<unsigned>(divide_up<int64_t>(count, kThreads))); }

constexpr int kTile = 32;

template <typename T>
__global__ void transpose_kernel(const T* x, int64_t rows, int64_t cols, T* out) {
    __shared__ T tile[kTile][kTile + 1];
    const int64_t col_tiles = divide_up<int64_t>(cols, kTile);
    const int64_t row = blockIdx.x / col_tiles * kTile, col = blockIdx.x % col_tiles * kTile;
    for (int r = static_cast<int>(threadIdx.y); r < kTile; r += static_cast<int>(blockDim.y)) {
        if (row + r < rows && col + threadIdx.x < cols)
            tile[r][threadIdx.x] = x[(row + r) * cols + col + threadIdx.x];
    }
    __syncthreads();
    for (int c = static_cast<int>(threadIdx.y); c < kTile; c += static_cast<int>(blockDim.y)) {
        if (col + c < cols && row + threadIdx.x < rows)
            out[(col + c) * rows + row + threadIdx.x] = tile[threadIdx.x][c];
    }
}

}  // namespace

void rotate(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds) {
    launch_turn(context, Turn(size, signs, rounds, false), x, 1);
}
void unrotate(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds) {
    launch_turn(context, Turn(size, signs, rounds, true), x, 1);
}
void rotate_rows(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds) {
    launch_turn(context, Turn(size, signs, rounds, false), x, x.cols());
}
void unrotate_rows(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds) {
    launch_turn(context, Turn(size, signs, rounds, true), x, x.cols());
}

void widen(Context& context, const Tensor& x, const Tensor& out) {
    with_elements(x, [&]<typename T>(T* from) {
        launch(context, widen_kernel<T>, blocks_of(out.count()), dim3(kThreads), 0,
               static_cast<const T*>(from), x.rows(), x.cols(), out.as<float>(), out.rows(), out.cols());
    });
}

void round_to_bf16(Context& context, const Tensor& x) {
    launch(context, round_kernel, blocks_of(x.count()), dim3(kThreads), 0, x.as<float>(), x.count());
}

void transpose(Context& context, const Tensor& x, const Tensor& out) {
    const int64_t tiles = divide_up<int64_t>(x.rows(), kTile) * divide_up<int64_t>(x.cols(), kTile);
    with_elements(x, [&]<typename T>(T* from) {
        launch(context, transpose_kernel<T>, dim3(static_cast<unsigned>(tiles)), dim3(kTile, 8), 0,
               static_cast<const T*>(from), x.rows(), x.cols(), out.as<T>());
    });
}

}  // namespace nibble::cuda
