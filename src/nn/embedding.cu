#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "core/cuda_vector.cuh"
#include "core/has_gpu.h"
#include "nn/cuda_forms.h"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 256;

__device__ bool is_token(int32_t token, int64_t vocabulary) { return 0 <= token && token < vocabulary; }

template <int kWidth, typename Element>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(int64_t tokens_count, int64_t vocabulary, int64_t cols, const int32_t* tokens,
                   const float* weight, Element* y) {
    const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, pieces = cols / kWidth;
    const int64_t t = i / pieces, c = (i - t * pieces) * kWidth;
    if (t >= tokens_count) return;
    const int32_t token = tokens[t];
    float values[kWidth];
    for (float& v : values) v = __int_as_float(0x7fffffff);  // NaN
    if (is_token(token, vocabulary)) load_floats(weight + token * cols + c, values);
    store_floats(values, y + t * cols + c);
}

// Tokens as keys that sort, those outside the vocabulary last; and where each stands.
__global__ void __launch_bounds__(kThreads)
    keys_kernel(int64_t count, int64_t vocabulary, const int32_t* tokens, uint32_t* keys, int32_t* places) {
    const int64_t t = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (t >= count) return;
    keys[t] = static_cast<uint32_t>(is_token(tokens[t], vocabulary) ? tokens[t] : vocabulary);
    places[t] = static_cast<int32_t>(t);
}

// keys: sorted, equal ones in the order of their places. A warp has 32 keys and some columns: it adds all
// rows of the runs that begin among its keys.
template <int kWidth, typename Element>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(int64_t count, int64_t vocabulary, int64_t cols, const uint32_t* keys,
                    const int32_t* places, const Element* dy, float* dweight) {
    const int64_t slices = divide_up<int64_t>(cols, kWarp * kWidth);
    const int64_t warp = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp, segment = warp / slices;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t first = segment * kWarp, c = ((warp - segment * slices) * kWarp + lane) * kWidth;
    if (first >= count) return;
    const auto none = static_cast<uint32_t>(vocabulary);
    const auto key_at = [&](int64_t i) { return i < count ? keys[i] : none; };
    const auto place_at = [&](int64_t i) { return i < count ? places[i] : 0; };
    const uint32_t key = key_at(first + lane);
    const int32_t place = place_at(first + lane);
    const bool is_first = key != none && (first + lane == 0 || keys[first + lane - 1] != key);
    for (unsigned begins = __ballot_sync(0xffffffffu, is_first); begins != 0; begins &= begins - 1) {
        int from = __ffs(static_cast<int>(begins)) - 1;  // lane of the run's next row
        const uint32_t token = __shfl_sync(0xffffffffu, key, from);
        float* const to = dweight + token * cols + c;
        float sums[kWidth] = {};
        if (c < cols) load_floats(to, sums);
        uint32_t run_key = key;
        int32_t run_place = place;
        for (int64_t next = first + kWarp;; next += kWarp, from = 0) {
            const uint32_t later_key = key_at(next + lane);
            const int32_t later_place = place_at(next + lane);
            const int end = from + __popc(__ballot_sync(0xffffffffu, run_key == token));
            const auto add = [&](auto in_flight) {
                constexpr int kCount = in_flight();
                for (; from + kCount <= end; from += kCount) {
                    Piece<Element, kWidth> held[kCount];
#pragma unroll
                    for (int i = 0; i < kCount; ++i) {
                        const int64_t t = __shfl_sync(0xffffffffu, run_place, from + i);
                        held[i] = Piece<Element, kWidth>::load(dy + t * cols + (c < cols ? c : 0));
                    }
#pragma unroll
                    for (int i = 0; i < kCount; ++i)
                        for (int j = 0; j < kWidth; ++j) sums[j] += held[i][j];
                }
            };
            add(Constant<64 / static_cast<int>(sizeof(Element))>());
            add(Constant<4>());
            add(Constant<1>());
            if (end < kWarp) break;  // uniform: another key follows
            run_key = later_key;
            run_place = later_place;
        }
        if (c < cols) store_floats(sums, to);
    }
}

}  // namespace

void embedding_forward(Context& context, const Tensor& tokens, const Tensor& weight, const Tensor& y) {
    const int64_t cols = weight.cols();
    const auto* from = weight.as<float>();
    with_elements(y, [&]<typename Element>(Element* out) {
        const bool wide =
            fits_width<Element>(kPerAccess<Element>, cols, {out}) && fits_width<float>(4, cols, {from});
        with_width<Element>(wide, [&](auto width) {
            const int64_t threads = tokens.count() * (cols / width());
            launch(context, forward_kernel<width(), Element>,
                   static_cast<unsigned>(divide_up<int64_t>(threads, kThreads)), kThreads, 0, tokens.count(),
                   weight.rows(), cols, tokens.as<int32_t>(), from, out);
        });
    });
}

void embedding_backward(Context& context, const Tensor& dy, const Tensor& tokens, const Tensor& dweight) {
    const int64_t count = tokens.count(), cols = dweight.cols(), vocabulary = dweight.rows();
    require(count < (int64_t{1} << 31), "embedding_backward: {} tokens are too many for one call", count);
    const int key_bits = std::bit_width(static_cast<uint64_t>(vocabulary));  // holds `vocabulary` itself
    const ArenaScope scope(context.arena);
    const auto allocate = [&](DType dtype) { return context.arena.allocate(dtype, {count}); };
    const Tensor keys = allocate(DType::u32), sorted_keys = allocate(DType::u32);
    const Tensor places = allocate(DType::i32), sorted_places = allocate(DType::i32);
    const auto sort = [&](void* scratch, size_t& bytes) {
        check(cub::DeviceRadixSort::SortPairs(
                  scratch, bytes, static_cast<const uint32_t*>(keys.data),
                  static_cast<uint32_t*>(sorted_keys.data), static_cast<const int32_t*>(places.data),
                  static_cast<int32_t*>(sorted_places.data), count, 0, key_bits, context.stream),
              "sort of the tokens on the GPU");
    };
    size_t bytes = static_cast<size_t>(count) * 16;  // about, for a plan where there is no GPU
    if (has_gpu()) sort(nullptr, bytes);
    const Tensor scratch =
        context.arena.allocate(DType::u8, {static_cast<int64_t>(std::max<size_t>(bytes, 1))});
    if (context.planning()) return;
    launch(context, keys_kernel, static_cast<unsigned>(divide_up<int64_t>(count, kThreads)), kThreads, 0,
           count, vocabulary, tokens.as<int32_t>(), keys.as<uint32_t>(), places.as<int32_t>());
    sort(scratch.data, bytes);
    auto* const to = dweight.as<float>();
    with_elements(dy, [&]<typename Element>(Element* gradients) {
        const auto run = [&](auto width) {
            const int64_t warps =
                divide_up<int64_t>(count, kWarp) * divide_up<int64_t>(cols, kWarp * width());
            launch(context, backward_kernel<width(), Element>,
                   static_cast<unsigned>(divide_up<int64_t>(warps, kThreads / kWarp)), kThreads, 0, count,
                   vocabulary, cols, sorted_keys.as<uint32_t>(), sorted_places.as<int32_t>(), gradients, to);
        };
        // Narrower than an access can be: the rows of a frequent token are added one after the other, so that
        // their columns are spread over as many warps as there can be.
        if (fits_width<Element>(2, cols, {gradients}) && fits_width<float>(2, cols, {to})) {
            run(Constant<2>());
        } else {
            run(Constant<1>());
        }
    });
}

}  // namespace nibble::cuda
