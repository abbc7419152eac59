// The fast kernels for activations and gradients, in BF16, and for the forward's packed bytes.
#include "quant/quantize_hot.cuh"

namespace nibble::cuda {

namespace {

using namespace hot;

// kOfBytes: also for the forward's bytes.
template <bool kRotates, bool kOfBytes, typename Body>
void with_stream(const Job& job, bool transposed, Body&& body) {
    if (!transposed) return body.template operator()<RowStream<PlainPiece, kRotates>>();
    if (job.x != nullptr) return body.template operator()<ColumnStream<PlainPiece, kRotates>>();
    if constexpr (kOfBytes) body.template operator()<ColumnStream<PackedPiece, kRotates>>();
}

}  // namespace

bool has_hot_kernels(const KernelSpec& spec, bool is_bf16, bool transposed) {
    return is_bf16 ? place_of<OfActivations>(spec) < OfActivations::kSpecs.size()
                   : has_hot_kernels_of_weights(spec, transposed);
}

void find_amax_hot(const Context& context, const Job& job, bool transposed) {
    if (!job.is_bf16) return find_amax_of_weights_hot(context, job, transposed);
    const auto launch_amax = [&]<int kRotation, int kRounds>() {
        if (job.spec.rotation != kRotation || job.spec.rounds != kRounds) return;
        with_stream<kRotation != 0, true>(job, transposed, [&]<typename Stream>() {
            launch_stream<Stream>(context, amax_stream_kernel<kRotation, kRounds, Stream>, job);
        });
    };
    launch_amax.template operator()<0, 0>();
    launch_amax.template operator()<16, 1>();
    launch_amax.template operator()<32, 1>();
    launch_amax.template operator()<128, 1>();
    launch_amax.template operator()<128, 2>();
}

void find_amaxes_of_rows_hot(const Context& context, const Job& job, bool transposed) {
    const auto launch_amaxes = [&]<typename Piece>() {
        if (transposed) {
            using Stream = ColumnStream<Piece, false>;
            return launch_stream<Stream>(context, row_amaxes_stream_kernel<Stream>, job);
        }
        using Stream = RowStream<Piece, false>;
        launch_stream<Stream>(context, row_amaxes_stream_kernel<Stream>, job);
    };
    job.is_bf16 ? launch_amaxes.template operator()<PlainPiece>()
                : launch_amaxes.template operator()<FloatPiece>();
}

void quantize_hot(const Context& context, const Job& job, bool transposed) {
    if (!job.is_bf16) return quantize_weights_hot(context, job, transposed);
    with_place<OfActivations>(job, [&]<size_t kIndex>() {
        constexpr KernelSpec s = OfActivations::kSpecs[kIndex];
        with_stream<s.rotation != 0, !s.is_row>(job, transposed, [&]<typename Stream>() {
            launch_quantizer<SpecOf<OfActivations, kIndex>, Stream>(context, job);
        });
    });
}

}  // namespace nibble::cuda
