#include "core/cuda_vector.cuh"
#include "nn/cuda_forms.h"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 256;

template <typename Element>
__global__ void __launch_bounds__(kThreads) search_kernel(int64_t count, const Element* x, int32_t* found) {
    for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
         i += int64_t{gridDim.x} * kThreads) {
        float value[1];
        load_floats(x + i, value);
        if (!isfinite(value[0])) *found = 1;
    }
}

}  // namespace

bool is_finite(const Context& context, const Tensor& x) {
    const Buffer flag(DType::i32, {1}, Device::cuda);  // not the arena's: the search is not in its plan
    auto* const found = flag.tensor().as<int32_t>();
    with_elements(x, [&]<typename Element>(const Element* values) {
        launch(context, search_kernel<Element>,
               resident_blocks(divide_up<int64_t>(x.count(), kThreads), kThreads), kThreads, 0, x.count(),
               values, found);
    });
    std::vector<int32_t> result(1);
    cuda::copy(context, flag.tensor(), view_of(result, {1}));
    return result[0] == 0;
}

}  // namespace nibble::cuda
