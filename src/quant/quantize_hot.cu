// Kernels for the quantisers in which training spends its time: each is compiled for one spec, so that
// nothing else is left in it.
#include <array>
#include <utility>

#include "quant/quantize_kernel.cuh"

namespace nibble::cuda {

namespace {

constexpr KernelSpec kNvfp4 = {.format = Format::nvfp4,
                               .element = Element::e2m1,
                               .scale = ScaleRule::amax,
                               .round = Rounding::nearest,
                               .correct = Correction::none,
                               .scale_round = ScaleRounding::nearest,
                               .tensor = TensorScale::current,
                               .block_cols = 16,
                               .block_rows = 1,
                               .is_row = false,
                               .outer = false,
                               .out_bf16 = false,
                               .mask = false,
                               .emulation = false,
                               .rotation = 0,
                               .rounds = 0};
constexpr KernelSpec kMxfp4 = [] {
    KernelSpec s = kNvfp4;
    s.format = Format::mxfp4;
    s.scale = ScaleRule::three_quarters;
    s.block_cols = 32;
    return s;
}();

// One scale for the tensor.
constexpr KernelSpec fp8(Element element) {
    KernelSpec s = kNvfp4;
    s.format = Format::fp8;
    s.element = element;
    return s;
}

constexpr KernelSpec rotated(KernelSpec s, int size) {
    s.rotation = size;
    s.rounds = 1;
    return s;
}
constexpr KernelSpec stochastic(KernelSpec s) {
    s.round = Rounding::stochastic;
    return s;
}

constexpr std::array kHot = {
    kNvfp4,
    stochastic(kNvfp4),
    rotated(kNvfp4, 16),
    rotated(stochastic(kNvfp4), 16),
    [] {  // scale=four-six:mse
        KernelSpec s = kNvfp4;
        s.scale = ScaleRule::four_six_mse;
        return s;
    }(),
    [] {  // scale=eden rotate=rht:128
        KernelSpec s = rotated(kNvfp4, 128);
        s.correct = Correction::eden;
        s.scale_round = ScaleRounding::stochastic;
        return s;
    }(),
    rotated(kMxfp4, 32),
    [] {  // scale=quest:std rotate=hadamard:32 mask=clip
        KernelSpec s = rotated(kMxfp4, 32);
        s.scale = ScaleRule::quest_std;
        s.mask = true;
        return s;
    }(),
    fp8(Element::e4m3),
    fp8(Element::e5m2),
};

template <size_t kIndex>
struct HotSpec {
    static constexpr int kBlocks = is_four_six(kHot[kIndex].scale) ? 2 : 3;
    static __device__ constexpr KernelSpec of(const Job&) { return kHot[kIndex]; }
};

template <size_t kIndex>
bool launch_if_this(const Context& context, const Job& job, bool transposed) {
    if (!(job.spec == kHot[kIndex])) return false;
    const auto with = [&]<bool kTransposed>() {
        launch_tiles<Bf16, kTransposed, kFewRows>(
            context, quantize_kernel<HotSpec<kIndex>, Bf16, kTransposed, kFewRows>, job);
    };
    transposed ? with.template operator()<true>() : with.template operator()<false>();
    return true;
}

}  // namespace

bool quantize_hot(const Context& context, const Job& job, bool transposed) {
    if (!job.is_bf16) return false;
    return [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
        return (launch_if_this<kIndex>(context, job, transposed) || ...);
    }
    (std::make_index_sequence<kHot.size()>());
}

}  // namespace nibble::cuda
