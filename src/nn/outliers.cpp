#include "nn/outliers.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "gemm/row_kernels.h"
#include "nn/element.h"

namespace nibble {

namespace {

// --- quantiles: a radix selection, 16 bits of the ordered elements at a time ---

constexpr int64_t kBins = 1 << 16;
constexpr int64_t kChunk = 1 << 18;  // elements that are worth a histogram of their own
constexpr int64_t kMostChunks = 8;

// Unsigned numbers in the order of the floats that they stand for. The upper half says all of a BF16.
uint32_t ordered(uint32_t bits) { return bits & 0x80000000u ? ~bits : bits | 0x80000000u; }
float from_ordered(uint32_t key) {
    return std::bit_cast<float>(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
uint32_t key_of(float x) { return ordered(std::bit_cast<uint32_t>(x)); }
uint32_t key_of(Bf16 x) { return ordered(uint32_t{x.bits} << 16); }

// counts[bin_of(element)] for all elements for which it is not negative. histograms: U32 [chunks, kBins], the
// sum is left in the first.
template <typename Element, typename BinOf>
void count_bins(std::span<const Element> x, const Tensor& histograms, BinOf&& bin_of) {
    const int64_t chunks = histograms.rows(), count = static_cast<int64_t>(x.size());
    auto* const all = histograms.as<uint32_t>();
    parallel_for(chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            uint32_t* const counts = all + chunk * kBins;
            std::fill_n(counts, kBins, 0u);
            for (int64_t i = count * chunk / chunks; i < count * (chunk + 1) / chunks; ++i) {
                const int64_t bin = bin_of(key_of(x[static_cast<size_t>(i)]));
                if (bin >= 0) ++counts[bin];
            }
        }
    });
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        for (int64_t bin = 0; bin < kBins; ++bin) all[bin] += all[chunk * kBins + bin];
    }
}

// The bin that holds `rank`, which becomes the rank inside of it.
uint32_t find_bin(const uint32_t* counts, int64_t& rank) {
    int64_t bin = 0;
    for (; bin < kBins - 1 && rank >= counts[bin]; ++bin) rank -= counts[bin];
    return static_cast<uint32_t>(bin);
}

template <typename Element>
float select(std::span<const Element> x, int64_t rank, uint32_t high, const Tensor& histograms) {
    // The lower half of a negative number is stored inverted.
    if constexpr (sizeof(Element) == 2) return from_ordered(high << 16 | 0xffffu * (high < kBins / 2));
    count_bins(x, histograms, [&](uint32_t key) -> int64_t {
        return key >> 16 == high ? static_cast<int64_t>(key & 0xffffu) : -1;
    });
    const uint32_t low = find_bin(histograms.as<uint32_t>(), rank);
    return from_ordered(high << 16 | low);
}

template <typename Element>
ClampRange range_of(std::span<const Element> x, double q, const Tensor& histograms) {
    const auto count = static_cast<int64_t>(x.size());
    const auto cut = std::min<int64_t>(std::llround((1 - q) * static_cast<double>(count)), (count - 1) / 2);
    int64_t first = cut, last = count - 1 - cut;
    count_bins(x, histograms, [](uint32_t key) { return static_cast<int64_t>(key >> 16); });
    const uint32_t low = find_bin(histograms.as<uint32_t>(), first);
    const uint32_t high = find_bin(histograms.as<uint32_t>(), last);
    return {select(x, first, low, histograms), select(x, last, high, histograms)};
}

// --- the split ---

// Nearly every element is inside, so loops ask this first.
bool is_inside(float x, ClampRange range) { return x >= range.low && x <= range.high; }

float clamped(float x, ClampRange range) {
    return std::isfinite(x) ? std::clamp(x, range.low, range.high) : x;
}

void store_row(const float* from, Bf16* to, int64_t count) { to_bf16(from, to, count); }
void store_row(const float* from, float* to, int64_t count) {
    if (from != to) std::copy_n(from, count, to);
}

// row <- row + r w
template <typename Element>
void add_scaled(float r, const Element* w, float* row, int64_t count) {
    for (int64_t n = 0; n < count; ++n) row[n] += r * to_float(w[n]);
}

}  // namespace

ClampRange quantile_range(Context& context, const Tensor& x, double q) {
    require_activations({&x}, "quantile_range");
    require(q > 0.5 && q < 1, "a quantile of {} is not between 1/2 and 1", q);
    const ArenaScope scope(context.arena);
    const int64_t chunks = std::clamp<int64_t>(x.count() / kChunk, 1, kMostChunks);
    const Tensor histograms = context.arena.allocate(DType::u32, {chunks, kBins});
    ClampRange range;
    if (context.planning() || x.count() == 0) return range;
    with_elements(x, [&]<typename Element>(const Element* values) {
        range = range_of(std::span(values, static_cast<size_t>(x.count())), q, histograms);
    });
    return range;
}

void clamp(Context& context, const Tensor& x, ClampRange range, const Tensor& out) {
    require_activations({&x, &out}, "clamp");
    require(x.count() == out.count(), "clamp: {} is not {}", x.shape.str(), out.shape.str());
    if (context.planning()) return;
    with_elements(x, [&]<typename Element>(const Element* from) {
        auto* const to = static_cast<Element*>(out.data);
        parallel_for(x.count(), 1 << 14, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const float v = to_float(from[i]);
                to[i] = is_inside(v, range) ? from[i] : store_as<Element>(clamped(v, range));
            }
        });
    });
}

void add_outlier_product(Context& context, const Tensor& x, ClampRange range, const Tensor& w_transposed,
                         const Tensor& product, const Tensor& y) {
    const int64_t rows = x.rows(), inner = x.cols(), cols = y.cols();
    require(product.dtype == DType::f32 && product.rows() == rows && product.cols() == cols &&
                y.rows() == rows && w_transposed.rows() == inner && w_transposed.cols() == cols,
            "the outliers of {} times {} do not fit {} and {}", x.shape.str(), w_transposed.shape.str(),
            product.shape.str(), y.shape.str());
    if (context.planning()) return;
    with_elements(x, [&](const auto* values) {
        with_elements(w_transposed, [&](const auto* weights) {
            with_elements(y, [&](auto* out) {
                parallel_for(rows, rows_per_task(cols), [&](int64_t begin, int64_t end) {
                    for (int64_t t = begin; t < end; ++t) {
                        float* const row = product.as<float>() + t * cols;
                        for (int64_t k = 0; k < inner; ++k) {
                            const float v = to_float(values[t * inner + k]);
                            if (is_inside(v, range)) continue;
                            add_scaled(v - clamped(v, range), weights + k * cols, row, cols);
                        }
                        store_row(row, out + t * cols, cols);
                    }
                });
            });
        });
    });
}

}  // namespace nibble
