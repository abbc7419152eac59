#include "core/cuda_vector.cuh"
#include "nn/cuda_forms.h"
#include "nn/outliers.h"
#include "nn/outliers_reference.h"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kInFlight = 4;  // accesses of a thread
constexpr int kWide = 8;      // columns of y of a thread, where rows are multiples of them

// --- quantiles: a radix selection of both ends at once, 11 bits of the ordered elements at a time ---

constexpr int kPasses = 3, kBits = 11, kBins = 1 << kBits;
constexpr int kBinsOfPass = 2 * kBins;  // of the low and of the high end
constexpr int bits_of(int pass) { return pass == 2 ? 10 : kBits; }
constexpr int shift_of(int pass) { return pass == 0 ? 21 : pass == 1 ? 10 : 0; }

// What the passes so far have found of each end.
struct Selection {
    int64_t rank[2];     // among the elements that begin with:
    uint32_t prefix[2];  // the bits above shift_of(pass)
};

// counts[end][bin] <- how many elements begin with the end's prefix and have these bits next. In the first
// pass both ends have no prefix, and count alike.
template <int kPass, int kWidth, typename Element>
__global__ void __launch_bounds__(kThreads)
    count_kernel(const Element* x, int64_t count, const Selection* selection, uint32_t* counts) {
    constexpr int kEnds = kPass == 0 ? 1 : 2, kShift = shift_of(kPass), kPassBits = bits_of(kPass);
    __shared__ uint32_t bins[kEnds][kBins];
    for (int i = static_cast<int>(threadIdx.x); i < kEnds * kBins; i += kThreads)
        bins[i / kBins][i % kBins] = 0;
    uint32_t prefix[kEnds] = {};
    if constexpr (kPass > 0)
        for (int end = 0; end < kEnds; ++end) prefix[end] = selection->prefix[end];
    __syncthreads();

    const auto add = [&](float value) {
        const uint32_t key = ordered_key(value), bin = key >> kShift & ((1u << kPassBits) - 1);
        for (int end = 0; end < kEnds; ++end) {
            if constexpr (kPass > 0)
                if (key >> (kShift + kPassBits) != prefix[end]) continue;
            atomicAdd(&bins[end][bin], 1u);
        }
    };
    const int64_t whole = count / kWidth * kWidth, stride = int64_t{gridDim.x} * kThreads * kWidth;
    const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
    for (int64_t i = first; i < whole; i += kInFlight * stride) {
        Piece<Element, kWidth> held[kInFlight];
#pragma unroll
        for (int p = 0; p < kInFlight; ++p)
            if (i + p * stride < whole) held[p] = Piece<Element, kWidth>::load(x + i + p * stride);
#pragma unroll
        for (int p = 0; p < kInFlight; ++p) {
            if (i + p * stride >= whole) break;
            for (int j = 0; j < kWidth; ++j) add(held[p][j]);
        }
    }
    if (first < kWidth)
        for (int64_t i = whole; i < count; ++i) add(to_float(x[i]));
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kEnds * kBins; i += kThreads) {
        const uint32_t found = bins[i / kBins][i % kBins];
        if (found != 0) atomicAdd(counts + i, found);
    }
}

// A warp for each end: the bin that holds its rank. After the last pass the element is known.
template <int kPass, bool kIsLast>
__global__ void __launch_bounds__(2 * kWarp)
    find_kernel(const uint32_t* counts, int64_t first_rank, int64_t last_rank, Selection* selection,
                float* range) {
    constexpr int kPerLane = kBins / kWarp;
    const int end = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
    const uint32_t* const bins = counts + (kPass == 0 ? 0 : end * kBins) + lane * kPerLane;
    const int64_t rank = kPass > 0 ? selection->rank[end] : end == 0 ? first_rank : last_rank;
    int64_t mine = 0;
    for (int b = 0; b < kPerLane; ++b) mine += bins[b];
    int64_t until = mine;  // in the bins of this lane and of those before
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const int64_t before = __shfl_up_sync(0xffffffffu, until, distance);
        if (lane >= distance) until += before;
    }
    int64_t left = rank - (until - mine);
    if (left < 0 || left >= mine) return;
    int bin = 0;
    for (; left >= bins[bin]; ++bin) left -= bins[bin];
    uint32_t prefix = static_cast<uint32_t>(lane * kPerLane + bin);
    if constexpr (kPass > 0) prefix |= selection->prefix[end] << bits_of(kPass);
    selection->rank[end] = left;
    selection->prefix[end] = prefix;
    if constexpr (kIsLast) {
        constexpr int kRest = shift_of(kPass);  // bits that follow from the others, in a BF16
        const bool is_negative = prefix >> (31 - kRest) == 0;
        range[end] = from_ordered_key(prefix << kRest | (is_negative ? (1u << kRest) - 1 : 0u));
    }
}

// --- the split ---

template <int kWidth, typename Element>
__global__ void __launch_bounds__(kThreads)
    clamp_kernel(const Element* x, int64_t count, const float* range, Element* out) {
    const float low = range[0], high = range[1];
    const int64_t stride = int64_t{gridDim.x} * kThreads * kWidth;
    for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth; i < count; i += stride) {
        float v[kWidth];
        load_floats(x + i, v);
        for (float& value : v)
            if (!is_inside(value, low, high)) value = clamped(value, low, high);
        store_floats(v, out + i);
    }
}

// A block has kWidth columns of one row of y for each of its threads, at most kThreads: it lists the outliers
// of as many elements of x as it has threads, in their order, and adds their rows of w.
template <int kWidth, typename X, typename W, typename Y>
__global__ void __launch_bounds__(kThreads)
    outliers_kernel(const X* x, int64_t inner, int64_t cols, const float* range, const W* w,
                    const float* product, Y* y) {
    __shared__ int in_warp[kThreads / kWarp];
    __shared__ int places[kThreads];
    __shared__ float rests[kThreads];
    const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    const int warp = thread / kWarp, lane = thread % kWarp;
    const float low = range[0], high = range[1];
    const int64_t row = blockIdx.x;
    const int64_t col = (int64_t{blockIdx.y} * threads + thread) * kWidth;
    float sums[kWidth] = {};
    if (col < cols) load_floats(product + row * cols + col, sums);
    for (int64_t first = 0; first < inner; first += threads) {
        const int64_t k = first + thread;
        const float v = k < inner ? to_float(x[row * inner + k]) : low;
        const bool is_outlier = k < inner && !is_inside(v, low, high);
        const unsigned outliers = __ballot_sync(0xffffffffu, is_outlier);
        if (lane == 0) in_warp[warp] = __popc(outliers);
        __syncthreads();
        int place = __popc(outliers & ((1u << lane) - 1)), count = 0;
        for (int i = 0; i < threads / kWarp; ++i) {
            if (i < warp) place += in_warp[i];
            count += in_warp[i];
        }
        if (is_outlier) {
            places[place] = static_cast<int>(k);
            rests[place] = v - clamped(v, low, high);
        }
        __syncthreads();
        if (col >= cols) continue;
#pragma unroll 4
        for (int i = 0; i < count; ++i) {
            float weights[kWidth];
            load_floats(w + places[i] * cols + col, weights);
            for (int j = 0; j < kWidth; ++j) sums[j] += rests[i] * weights[j];
        }
    }
    if (col < cols) store_floats(sums, y + row * cols + col);
}

}  // namespace

void select_range(Context& context, const Tensor& x, int64_t cut, const Tensor& range) {
    const ArenaScope scope(context.arena);
    const Tensor memory = context.arena.allocate(DType::u8, {sizeof(Selection)});
    const Tensor counts = context.arena.allocate(DType::u32, {kPasses, kBinsOfPass});
    if (context.planning()) return;
    cuda::fill_zero(context, counts);
    const int64_t count = x.count();
    auto* const selection = static_cast<Selection*>(memory.data);
    with_elements(x, [&]<typename Element>(const Element* values) {
        constexpr int kLast = sizeof(Element) == 2 ? 1 : 2;
        const bool wide = fits_width<Element>(kPerAccess<Element>, 0, {values});
        with_width<Element>(wide, [&](auto width) {
            const int64_t pieces = divide_up<int64_t>(count, kThreads * kInFlight * width());
            const unsigned blocks = resident_blocks(pieces, kThreads);
            const auto pass = [&]<int kPass>() {
                uint32_t* const bins = counts.as<uint32_t>() + kPass * kBinsOfPass;
                launch(context, count_kernel<kPass, width(), Element>, blocks, kThreads, 0, values, count,
                       static_cast<const Selection*>(selection), bins);
                launch(context, find_kernel<kPass, kPass == kLast>, 1, 2 * kWarp, 0,
                       static_cast<const uint32_t*>(bins), cut, count - 1 - cut, selection,
                       range.as<float>());
            };
            pass.template operator()<0>();
            pass.template operator()<1>();
            if constexpr (kLast == 2) pass.template operator()<2>();
        });
    });
}

void clamp(Context& context, const Tensor& x, const Tensor& range, const Tensor& out) {
    with_elements(x, [&]<typename Element>(const Element* from) {
        auto* const to = out.as<Element>();
        const int64_t count = x.count();
        with_width<Element>(fits_width<Element>(kPerAccess<Element>, count, {from, to}), [&](auto width) {
            const unsigned blocks = resident_blocks(divide_up<int64_t>(count, kThreads * width()), kThreads);
            launch(context, clamp_kernel<width(), Element>, blocks, kThreads, 0, from, count,
                   static_cast<const float*>(range.as<float>()), to);
        });
    });
}

void add_outlier_product(Context& context, const Tensor& x, const Tensor& range, const Tensor& w_transposed,
                         const Tensor& product, const Tensor& y) {
    const int64_t cols = y.cols();
    const auto* const sums = product.as<float>();
    const auto* const ends = range.as<float>();
    with_elements(x, [&]<typename X>(const X* values) {
        with_elements(w_transposed, [&]<typename W>(const W* weights) {
            with_elements(y, [&]<typename Y>(Y* out) {
                const bool wide = cols % kWide == 0 && fits_width<W>(kPerAccess<W>, cols, {weights}) &&
                                  fits_width<Y>(kPerAccess<Y>, cols, {out}) &&
                                  fits_width<float>(kPerAccess<float>, cols, {sums});
                const auto with = [&](auto width) {
                    const int64_t blocks = divide_up<int64_t>(cols, kThreads * width()),
                                  threads = divide_up<int64_t>(cols, blocks * width() * kWarp) * kWarp;
                    launch(context, outliers_kernel<width(), X, W, Y>,
                           dim3(static_cast<unsigned>(x.rows()), static_cast<unsigned>(blocks)),
                           dim3(static_cast<unsigned>(threads)), 0, values, x.cols(), cols, ends, weights,
                           sums, out);
                };
                wide ? with(Constant<kWide>()) : with(Constant<1>());
            });
        });
    });
}

}  // namespace nibble::cuda
