#include "gemm/cuda_forms.h"
#include "gemm/pack.cuh"

namespace nibble::cuda {

namespace {

// Elements that a thread reads and writes at once: neighbours write neighbouring 16 bytes.
template <typename To>
constexpr int kPackOf = 16 / sizeof(To);

template <typename To, typename From>
__device__ To converted(From x, bool round_bf16) {
    const float value = to_float(x);
    return store_as<To>(round_bf16 ? round_to_bf16(value) : value);
}

template <typename From, typename To, int kPack>
__global__ void convert_packs(const Pack<From, kPack>* from, Pack<To, kPack>* to, int64_t packs,
                              bool round_bf16) {
    for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < packs;
         i += int64_t{gridDim.x} * blockDim.x) {
        const Pack<From, kPack> in = from[i];
        Pack<To, kPack> out;
        for (int j = 0; j < kPack; ++j) out.v[j] = converted<To>(in.v[j], round_bf16);
        to[i] = out;
    }
}

// Rows of a block's y, columns of its x; what `from` lacks is zero.
template <typename From, typename To>
__global__ void convert_rows(const From* from, int64_t from_rows, int64_t from_cols, To* to, int64_t rows,
                             int64_t cols, bool round_bf16) {
    for (int64_t r = blockIdx.y * int64_t{blockDim.y} + threadIdx.y; r < rows;
         r += int64_t{gridDim.y} * blockDim.y) {
        for (int64_t c = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; c < cols;
             c += int64_t{gridDim.x} * blockDim.x) {
            const bool is_given = r < from_rows && c < from_cols;
            to[r * cols + c] =
                is_given ? converted<To>(from[r * from_cols + c], round_bf16) : store_as<To>(0.0f);
        }
    }
}

}  // namespace

void convert(const Context& context, const Tensor& from, const Tensor& to, bool round_bf16) {
    require(to.rows() >= from.rows() && to.cols() >= from.cols(), "shape {} cannot be converted to shape {}",
            from.shape.str(), to.shape.str());
    with_elements(from, [&]<typename From>(const From* values) {
        with_elements(to, [&]<typename To>(To* out) {
            const int64_t rows = to.rows(), cols = to.cols();
            constexpr int kPack = kPackOf<To>;
            const bool is_same = from.count() == to.count();
            if (is_same && fits_packs<From, kPack>(values, to.count()) &&
                fits_packs<To, kPack>(out, to.count())) {
                constexpr int kThreads = 256;
                const int64_t packs = to.count() / kPack;
                launch(context, convert_packs<From, To, kPack>, grid_for(packs, kThreads), kThreads, 0,
                       reinterpret_cast<const Pack<From, kPack>*>(values),
                       reinterpret_cast<Pack<To, kPack>*>(out), packs, round_bf16);
                return;
            }
            launch(context, convert_rows<From, To>, grid_of_rows(rows, cols), kRowsBlock, 0, values,
                   from.rows(), from.cols(), out, rows, cols, round_bf16);
        });
    });
}

}  // namespace nibble::cuda
