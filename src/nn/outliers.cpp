#include "nn/outliers.h"

#include <algorithm>
#include <cmath>

#include "core/cuda.h"
#include "gemm/row_kernels.h"
#include "nn/cuda_forms.h"
#include "nn/element.h"
#include "nn/outliers_reference.h"

namespace nibble {

namespace {

// --- quantiles: a radix selection, 16 bits of the ordered elements at a time ---

constexpr int64_t kBins = 1 << 16;
constexpr int64_t kChunk = 1 << 18;  // elements that are worth a histogram of their own
constexpr int64_t kMostChunks = 8;

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
                const int64_t bin = bin_of(ordered_key(x[static_cast<size_t>(i)]));
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
    if constexpr (sizeof(Element) == 2) return from_ordered_key(high << 16 | 0xffffu * (high < kBins / 2));
    count_bins(x, histograms, [&](uint32_t key) -> int64_t {
        return key >> 16 == high ? static_cast<int64_t>(key & 0xffffu) : -1;
    });
    const uint32_t low = find_bin(histograms.as<uint32_t>(), rank);
    return from_ordered_key(high << 16 | low);
}

template <typename Element>
void find_range(std::span<const Element> x, int64_t cut, const Tensor& histograms, float* range) {
    int64_t first = cut, last = static_cast<int64_t>(x.size()) - 1 - cut;
    count_bins(x, histograms, [](uint32_t key) { return static_cast<int64_t>(key >> 16); });
    const uint32_t low = find_bin(histograms.as<uint32_t>(), first);
    const uint32_t high = find_bin(histograms.as<uint32_t>(), last);
    range[0] = select(x, first, low, histograms);
    range[1] = select(x, last, high, histograms);
}

// --- the split ---

void store_row(const float* from, Bf16* to, int64_t count) { to_bf16(from, to, count); }
void store_row(const float* from, float* to, int64_t count) {
    if (from != to) std::copy_n(from, count, to);
}

// row <- row + r w
template <typename Element>
void add_scaled(float r, const Element* w, float* row, int64_t count) {
    for (int64_t n = 0; n < count; ++n) row[n] += r * to_float(w[n]);
}

void check_range(const Tensor& range, std::string_view function) {
    require(range.dtype == DType::f32 && range.count() == 2, "{}: a range is F32 [2], not {} {}", function,
            name_of(range.dtype), range.shape.str());
}

}  // namespace

void quantile_range(Context& context, const Tensor& x, double q, const Tensor& range) {
    require_activations({&x}, "quantile_range");
    check_range(range, "quantile_range");
    require(q > 0.5 && q < 1, "a quantile of {} is not between 1/2 and 1", q);
    const int64_t count = x.count();
    require(count > 0, "quantile_range: {} has no elements", x.shape.str());
    const auto cut = std::min<int64_t>(std::llround((1 - q) * static_cast<double>(count)), (count - 1) / 2);
    NIBBLE_ON_CUDA(context, select_range(context, x, cut, range));
    const ArenaScope scope(context.arena);
    const int64_t chunks = std::clamp<int64_t>(count / kChunk, 1, kMostChunks);
    const Tensor histograms = context.arena.allocate(DType::u32, {chunks, kBins});
    if (context.planning()) return;
    with_elements(x, [&]<typename Element>(const Element* values) {
        find_range(std::span(values, static_cast<size_t>(count)), cut, histograms, range.as<float>());
    });
}

void clamp(Context& context, const Tensor& x, const Tensor& range, const Tensor& out) {
    require_activations({&x, &out}, "clamp");
    check_range(range, "clamp");
    require(x.count() == out.count(), "clamp: {} is not {}", x.shape.str(), out.shape.str());
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, clamp(context, x, range, out));
    const float low = range.as<float>()[0], high = range.as<float>()[1];
    with_elements(x, [&]<typename Element>(const Element* from) {
        auto* const to = static_cast<Element*>(out.data);
        parallel_for(x.count(), 1 << 14, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const float v = to_float(from[i]);
                to[i] = is_inside(v, low, high) ? from[i] : store_as<Element>(clamped(v, low, high));
            }
        });
    });
}

void add_outlier_product(Context& context, const Tensor& x, const Tensor& range, const Tensor& w_transposed,
                         const Tensor& product, const Tensor& y) {
    const int64_t rows = x.rows(), inner = x.cols(), cols = y.cols();
    check_range(range, "add_outlier_product");
    require(product.dtype == DType::f32 && product.rows() == rows && product.cols() == cols &&
                y.rows() == rows && w_transposed.rows() == inner && w_transposed.cols() == cols,
            "the outliers of {} times {} do not fit {} and {}", x.shape.str(), w_transposed.shape.str(),
            product.shape.str(), y.shape.str());
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, add_outlier_product(context, x, range, w_transposed, product, y));
    const float low = range.as<float>()[0], high = range.as<float>()[1];
    with_elements(x, [&](const auto* values) {
        with_elements(w_transposed, [&](const auto* weights) {
            with_elements(y, [&](auto* out) {
                parallel_for(rows, rows_per_task(cols), [&](int64_t begin, int64_t end) {
                    for (int64_t t = begin; t < end; ++t) {
                        float* const row = product.as<float>() + t * cols;
                        for (int64_t k = 0; k < inner; ++k) {
                            const float v = to_float(values[t * inner + k]);
                            if (is_inside(v, low, high)) continue;
                            add_scaled(v - clamped(v, low, high), weights + k * cols, row, cols);
                        }
                        store_row(row, out + t * cols, cols);
                    }
                });
            });
        });
    });
}

}  // namespace nibble
