// Rotations of whole F32 tensors, and transposes: passes of their own, where nothing fuses them.
#include "quant/cuda_forms.h"
#include "quant/tiles.cuh"

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
    __device__ float flipped(float x, int round, int place) const {
        const uint32_t sign = signs[round][place / 32] >> (place % 32) & 1u;
        return __uint_as_float(__float_as_uint(x) ^ sign << 31);
    }
};

// `size` elements, `stride` apart, by one thread.
__global__ void turn_kernel(const __grid_constant__ Turn turn, float* x, int64_t cols, int64_t stride,
                            int64_t count) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float* const first = stride == 1 ? x + i * turn.size  // neighbours in a row
                                     : x + i / cols * turn.size * cols + i % cols;
    float v[kMaxRotation];
    for (int j = 0; j < turn.size; ++j) v[j] = first[j * stride];
    for (int n = 0; n < turn.rounds; ++n) {
        const int round = turn.is_inverse ? turn.rounds - 1 - n : n;
        for (int j = 0; j < turn.size && !turn.is_inverse; ++j) v[j] = turn.flipped(v[j], round, j);
        hadamard_transform(v, turn.size);
        for (int j = 0; j < turn.size && turn.is_inverse; ++j) v[j] = turn.flipped(v[j], round, j);
    }
    for (int j = 0; j < turn.size; ++j) first[j * stride] = v[j];
}

void turn_columns(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds,
                  bool is_inverse) {
    const int64_t count = x.count() / size;
    launch(context, turn_kernel, dim3(static_cast<unsigned>(divide_up<int64_t>(count, kThreads))),
           dim3(kThreads), 0, Turn(size, signs, rounds, is_inverse), x.as<float>(), x.cols(), int64_t{1},
           count);
}

void turn_rows(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds,
               bool is_inverse) {
    const int64_t count = x.count() / size;
    launch(context, turn_kernel, dim3(static_cast<unsigned>(divide_up<int64_t>(count, kThreads))),
           dim3(kThreads), 0, Turn(size, signs, rounds, is_inverse), x.as<float>(), x.cols(), x.cols(),
           count);
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
    turn_columns(context, size, signs, x, rounds, false);
}
void unrotate(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds) {
    turn_columns(context, size, signs, x, rounds, true);
}
void rotate_rows(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds) {
    turn_rows(context, size, signs, x, rounds, false);
}
void unrotate_rows(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds) {
    turn_rows(context, size, signs, x, rounds, true);
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
