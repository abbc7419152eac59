// The fast kernels for F32: weights, once for each update of them, and what is made of FP32 scales or is the
// result of a product. Those that a recipe also quantises along their columns are few, for most recipes take
// the forward's bytes there.
#include "quant/quantize_hot.cuh"

namespace nibble::cuda {

namespace {

using namespace hot;

constexpr KernelSpec kOuterRotated = rotated(outer(stochastic(kNvfp4)), 16);

struct OfWeights {
    static constexpr std::array kSpecs = {
        kNvfp4,
        four_six(kNvfp4),
        square(kNvfp4),
        square(four_six(kNvfp4)),
        quest(kMxfp4),
        rounded_up(kMxfp4),
        mxfp8(Element::e4m3),
        fp8(Element::e4m3),
        by_row(Format::int4, Element::int4),
        by_row(Format::fp4, Element::e2m1),
        square(kFp4, 32),
        outer(kNvfp4),
        kOuterRotated,
    };
};

constexpr bool is_transposed_too(const KernelSpec& s) {
    return s == kNvfp4 || s == mxfp8(Element::e4m3) || s == by_row(Format::int4, Element::int4);
}

template <bool kHasRotation>
using Rows = RowStream<FloatPiece, kHasRotation>;
using Columns = ColumnStream<FloatPiece, false>;

}  // namespace

bool has_hot_kernels_of_weights(const KernelSpec& spec, bool transposed) {
    return place_of<OfWeights>(spec) < OfWeights::kSpecs.size() && (!transposed || is_transposed_too(spec));
}

void find_amax_of_weights_hot(const Context& context, const Job& job, bool transposed) {
    if (transposed) return launch_stream<Columns>(context, amax_stream_kernel<0, 0, Columns>, job);
    if (job.spec.rotation == 0)
        return launch_stream<Rows<false>>(context, amax_stream_kernel<0, 0, Rows<false>>, job);
    const auto launch_amax = [&]<int kRotation>() {
        if (job.spec.rotation == kRotation)
            launch_stream<Rows<true>>(context, amax_stream_kernel<kRotation, 1, Rows<true>>, job);
    };
    launch_amax.template operator()<quest(kMxfp4).rotation>();
    launch_amax.template operator()<kOuterRotated.rotation>();
}

void quantize_weights_hot(const Context& context, const Job& job, bool transposed) {
    with_place<OfWeights>(job, [&]<size_t kIndex>() {
        constexpr KernelSpec s = OfWeights::kSpecs[kIndex];
        if constexpr (is_transposed_too(s)) {
            if (transposed) {
                launch_quantizer<SpecOf<OfWeights, kIndex>, Columns>(context, job);
                return;
            }
        }
        launch_quantizer<SpecOf<OfWeights, kIndex>, Rows<s.rotation != 0>>(context, job);
    });
}

}  // namespace nibble::cuda
