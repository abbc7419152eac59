// The fast kernels for activations and gradients, in BF16, and for the forward's packed bytes.
#include "quant/quantize_hot.cuh"

namespace nibble::cuda {

namespace {

using namespace hot;

struct OfActivations {
    static constexpr std::array kSpecs = {
        kNvfp4,
        stochastic(kNvfp4),
        rotated(kNvfp4, 16),
        rotated(stochastic(kNvfp4), 16),
        four_six(kNvfp4),
        four_six(stochastic(kNvfp4)),
        rotated(four_six(kNvfp4), 16),
        rotated(four_six(stochastic(kNvfp4)), 16),
        eden(kNvfp4),
        twice(eden(kNvfp4)),
        rotated(kMxfp4, 32),
        rotated(stochastic(kMxfp4), 32),
        quest(kMxfp4),
        rounded_up(kMxfp4),
        rounded_up(stochastic(kMxfp4)),
        fp8(Element::e4m3),
        fp8(Element::e5m2),
    };
};

template <bool kRotates, typename Body>
void with_stream(const Job& job, bool transposed, Body&& body) {
    if (!transposed) return body.template operator()<RowStream<PlainPiece, kRotates>>();
    if (job.x != nullptr) return body.template operator()<ColumnStream<PlainPiece, kRotates>>();
    body.template operator()<ColumnStream<PackedPiece, kRotates>>();
}

}  // namespace

bool has_hot_kernels(const Job& job, bool transposed) {
    return job.is_bf16 ? place_of<OfActivations>(job) < OfActivations::kSpecs.size()
                       : has_hot_kernels_of_weights(job, transposed);
}

void find_amax_hot(const Context& context, const Job& job, bool transposed) {
    if (!job.is_bf16) return find_amax_of_weights_hot(context, job, transposed);
    const auto launch_amax = [&]<int kRotation, int kRounds>() {
        if (job.spec.rotation != kRotation || job.spec.rounds != kRounds) return;
        with_stream<kRotation != 0>(job, transposed, [&]<typename Stream>() {
            launch_stream<Stream>(context, amax_stream_kernel<kRotation, kRounds, Stream>, job);
        });
    };
    launch_amax.template operator()<0, 0>();
    launch_amax.template operator()<16, 1>();
    launch_amax.template operator()<32, 1>();
    launch_amax.template operator()<128, 1>();
    launch_amax.template operator()<128, 2>();
}

void quantize_hot(const Context& context, const Job& job, bool transposed) {
    if (!job.is_bf16) return quantize_weights_hot(context, job, transposed);
    with_place<OfActivations>(job, [&]<size_t kIndex>() {
        with_stream<OfActivations::kSpecs[kIndex].rotation != 0>(job, transposed, [&]<typename Stream>() {
            launch_quantizer<SpecOf<OfActivations, kIndex>, Stream>(context, job);
        });
    });
}

}  // namespace nibble::cuda
