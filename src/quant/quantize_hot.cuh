// Kernels for the quantisers in which training spends its time: each is compiled for one spec, so that
// nothing else is left in it. For quantize_hot*.cu, and for fp8_codes.cu, whose own kernels read alike.
#pragma once

#include <array>
#include <utility>

#include "quant/kernel_far_stages.cuh"
#include "quant/kernel_hot.cuh"

namespace nibble::cuda::hot {

inline constexpr KernelSpec kNvfp4 = {.format = Format::nvfp4,
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
                                      .rounds = 0,
                                      .rotation_of_rows = 0};
inline constexpr KernelSpec kMxfp4 = [] {
    KernelSpec s = kNvfp4;
    s.format = Format::mxfp4;
    s.scale = ScaleRule::three_quarters;
    s.block_cols = 32;
    return s;
}();

// One scale for the tensor.
constexpr KernelSpec by_tensor(Format format, Element element) {
    KernelSpec s = kNvfp4;
    s.format = format;
    s.element = element;
    return s;
}
constexpr KernelSpec fp8(Element element) { return by_tensor(Format::fp8, element); }
// One for each row.
constexpr KernelSpec by_row(Format format, Element element) {
    KernelSpec s = by_tensor(format, element);
    s.is_row = true;
    return s;
}
inline constexpr KernelSpec kFp4 = by_tensor(Format::fp4, Element::e2m1);
inline constexpr KernelSpec kLog4 = by_tensor(Format::log4, Element::log4);

constexpr KernelSpec mxfp8(Element element) {
    KernelSpec s = kMxfp4;
    s.format = Format::mxfp8;
    s.element = element;
    s.scale = ScaleRule::rceil;
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

constexpr KernelSpec four_six(KernelSpec s) {  // scale=four-six:mse
    s.scale = ScaleRule::four_six_mse;
    return s;
}
constexpr KernelSpec square(KernelSpec s, int size = 16) {  // 16x16
    s.block_cols = s.block_rows = size;
    return s;
}
constexpr KernelSpec outer(KernelSpec s) {  // outer=1x128
    s.outer = true;
    return s;
}
constexpr KernelSpec eden(KernelSpec s) {  // scale=eden rotate=rht:128
    s = rotated(s, 128);
    s.correct = Correction::eden;
    s.scale_round = ScaleRounding::stochastic;
    return s;
}
constexpr KernelSpec twice(KernelSpec s) {  // rotate=rht2:...
    s.rounds = 2;
    return s;
}
constexpr KernelSpec rounded_up(KernelSpec s) {  // scale=rceil
    s.scale = ScaleRule::rceil;
    return s;
}
constexpr KernelSpec quest(KernelSpec s) {  // scale=quest:std rotate=hadamard:32 mask=clip
    s = rotated(s, 32);
    s.scale = ScaleRule::quest_std;
    s.mask = true;
    return s;
}

// Of activations and gradients, in BF16.
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
        mxfp8(Element::e4m3),
        fp8(Element::e4m3),
        fp8(Element::e5m2),
        kFp4,
        rotated(kFp4, 128),
        stochastic(kLog4),
        by_row(Format::fp4, Element::e2m1),
        by_row(Format::int4, Element::int4),
        square(kFp4, 32),
        outer(kNvfp4),
        rotated(outer(stochastic(kNvfp4)), 16),
    };
};

// Shared memory for the last stages of a rotation; at least one element.
template <int kRotation>
inline constexpr size_t kVectorsOfRotation = kRotation == kTileCols ? FarStages::kBytes / sizeof(uint4) : 1;

// Between two rounds of a rotation of 128: the factor of the first, the signs of the second.
__device__ __forceinline__ void begin_second_round(const Job& job, float factor, Group& g) {
    const int place = static_cast<int>(threadIdx.x) % kGroups * kGroup;
    const uint32_t signs = job.signs(1, place / 32) >> (place % 32);
#pragma unroll
    for (int i = 0; i < kGroup; ++i)
        g.x[i] = __uint_as_float(__float_as_uint(g.x[i] * factor) ^ (signs >> i & 1u) << 31);
}

// The bits of a thread's largest magnitude after a rotation without its last factor. far: of
// kVectorsOfRotation.
template <int kRotation, int kRounds>
__device__ __forceinline__ uint32_t amax_of_group(const Job& job, Group& g, uint4* far) {
    static_assert(kRounds < 2 || kRotation == kTileCols);
    if constexpr (kRounds == 2) {
        __syncwarp();  // all have read what max_after() left
        FarStages(far).transform(g.x);
        begin_second_round(job, job.amax_factor, g);
    }
    if constexpr (kRotation == kTileCols) return __float_as_uint(FarStages(far).max_after(g.x));
    if constexpr (kRotation == kGroup) {
        stages<1, kGroup / 2>(g.x);
        return __float_as_uint(max_after_last_stage(g.x));
    }
    if constexpr (kRotation != 0) butterfly(kRotation, g.x);
    return bits_of_largest(g.x);
}
// largest: of amax_of_group().
template <int kRotation>
__device__ __forceinline__ void give_rotated_amax(const Job& job, uint32_t* amax, uint32_t largest) {
    // Rounding keeps the order: the largest product is that of the largest.
    if constexpr (kRotation != 0) largest = __float_as_uint(__uint_as_float(largest) * job.amax_factor);
    give_amax(amax, largest);
}

// Shared memory of a stream; at least one element.
template <typename Stream>
inline constexpr size_t kVectorsOf = std::max<size_t>(Stream::kShared / sizeof(uint4), 1);

// The amax after rotation by blocks of this size, once or twice; 0: as it is.
template <int kRotation, int kRounds, typename Stream>
__global__ void __launch_bounds__(kStreamThreads) amax_stream_kernel(const __grid_constant__ Job job) {
    __shared__ uint4 shared[kVectorsOf<Stream>], far[kVectorsOfRotation<kRotation>];
    Walk<Stream> walk(job, shared);
    uint32_t largest = 0;
    walk.each([&](Group& g, int) { largest = max(largest, amax_of_group<kRotation, kRounds>(job, g, far)); });
    give_rotated_amax<kRotation>(job, &job.scalars->amax, largest);
}

// That of each row, as it is.
template <typename Stream>
__global__ void __launch_bounds__(kStreamThreads) row_amaxes_stream_kernel(const __grid_constant__ Job job) {
    __shared__ uint4 shared[kVectorsOf<Stream>];
    Walk<Stream> walk(job, shared);
    walk.each([&](Group& g, int) { give_amax_of_row(job, g); });
}

// For how many thread blocks a multiprocessor's registers are divided.
constexpr int blocks_of_multiprocessor(const KernelSpec& s, bool transposed) {
    return is_four_six(s.scale) || (transposed && s.correct == Correction::eden) ? 2 : 3;
}

// List::kSpecs: an array of specs, of which this is one.
template <typename List, size_t kIndex>
struct SpecOf {
    static constexpr KernelSpec kSpec = List::kSpecs[kIndex];
};

// Whether kernels for operands alone are compiled: of E2M1 in the small blocks.
constexpr bool has_operand_kernel(const KernelSpec& s) {
    return (s.format == Format::nvfp4 || s.format == Format::mxfp4) && s.block_rows == 1 && !s.outer;
}

// The rotation of a thread's group, whose signs are applied, without the factor at its end.
template <int kRotation, int kRounds>
__device__ __forceinline__ void rotate_signed(const Job& job, const FarStages& far, Group& g) {
    if constexpr (kRotation == 0) return;
    if constexpr (kRounds == 2) {
        far.transform(g.x);
        begin_second_round(job, job.factor, g);
    }
    if constexpr (kRotation == kTileCols)
        far.transform(g.x);
    else
        butterfly(kRotation, g.x);
}
__device__ __forceinline__ void multiply_by_factor(const Job& job, Group& g) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
        g.x[i] *= job.factor;
        keep(g.x[i]);
    }
}

// Rotates and quantises a thread's groups, whose signs are applied, of specs that have_operand_kernel().
// kOperandOnly: no bytes are wanted.
template <typename Spec, bool kOperandOnly>
class Quantiser {
    static constexpr bool kIsNvfp4 = Spec::kSpec.format == Format::nvfp4;
    using OfNvfp4 = Nvfp4Groups<Spec, kOperandOnly>;
    struct Nothing {};

  public:
    struct Shared {
        TensorValues tensor;
        std::conditional_t<kIsNvfp4, typename OfNvfp4::Shared, Nothing> groups;
    };
    static constexpr size_t kVectorsOfFar = kVectorsOfRotation<Spec::kSpec.rotation>;

    // Called by all threads. far: of kVectorsOfFar.
    __device__ Quantiser(const Job& job, Shared& shared, uint4* far)
        : job_(job), far_stages_(far), spares_factor_(prepare(job, shared)), groups_(groups(shared)) {}

    // The next group of a thread; index: its number. Called by all threads of a warp.
    __device__ __forceinline__ void quantize(Group& g, Places& places, int index) {
        constexpr KernelSpec s = Spec::kSpec;
        rotate_signed<s.rotation, s.rounds>(job_, far_stages_, g);
        if (s.rotation != 0 && !spares_factor_) multiply_by_factor(job_, g);
        const float amax = max_of(g.x);
        largest_ = max(largest_, __float_as_uint(amax));
        if constexpr (kIsNvfp4)
            groups_.quantize(g, amax, places, index);
        else
            Mxfp4Groups<Spec, kOperandOnly>::quantize(job_, g, amax, places);
        places.advance();
    }
    // After the last.
    __device__ void finish() const {
        if (largest_ >= 0x7f800000u) *job_.fault = 1;
    }

  private:
    // Blocks of 16 end with a factor of 1/4. In a tensor with ordinary numbers what elements are multiplied
    // by next has it: an element whose quarter would be rounded becomes 0 in either case. Four Over Six reads
    // the elements themselves.
    static __device__ bool prepare(const Job& job, Shared& shared) {
        constexpr KernelSpec s = Spec::kSpec;
        shared.tensor.prepare(s, job);
        return kIsNvfp4 && !is_four_six(s.scale) && s.rotation == kGroup && shared.tensor.amax >= 0x1p-32f &&
               shared.tensor.amax <= 0x1p60f;
    }
    __device__ auto groups(Shared& shared) const {
        if constexpr (kIsNvfp4)
            return OfNvfp4(job_, shared.tensor.nvfp4, spares_factor_ ? job_.factor : 1.0f, shared.groups);
        else
            return Nothing{};
    }

    const Job& job_;
    const FarStages far_stages_;
    const bool spares_factor_;
    std::conditional_t<kIsNvfp4, OfNvfp4, Nothing> groups_;
    uint32_t largest_ = 0;
};

// The same for other specs, by quantize_group(), of which the compiler keeps what the spec has.
template <typename Spec>
class GroupQuantiser {
  public:
    struct Shared {
        TensorValues tensor;
        PerThread<kRowsOfPart> threads;
    };
    static constexpr size_t kVectorsOfFar = kVectorsOfRotation<Spec::kSpec.rotation>;

    __device__ GroupQuantiser(const Job& job, Shared& shared, uint4* far)
        : job_(job), far_stages_(far), shared_(shared) {
        constexpr KernelSpec s = Spec::kSpec;
        shared.tensor.prepare(s, job);
    }
    __device__ __forceinline__ void quantize(Group& g, Places&, int index) {
        constexpr KernelSpec s = Spec::kSpec;
        static_assert(s.tensor == TensorScale::current && !s.out_bf16 && s.block_rows <= kRowsOfPart);
        rotate_signed<s.rotation, s.rounds>(job_, far_stages_, g);
        if (s.rotation != 0) multiply_by_factor(job_, g);
        largest_ = max(largest_, bits_of_largest(g.x));
        float no_posthoc_scale = 0.0f;
        quantize_group(s, job_, shared_.tensor, g, shared_.threads, coins_, index, no_posthoc_scale);
    }
    __device__ void finish() const {
        constexpr KernelSpec s = Spec::kSpec;
        finish_quantising(s, job_, largest_, 0.0f);
    }

  private:
    const Job& job_;
    const FarStages far_stages_;
    Shared& shared_;
    ScaleCoins coins_;
    uint32_t largest_ = 0;
};

template <typename Spec, bool kOperandOnly>
using QuantiserOf =
    std::conditional_t<has_operand_kernel(Spec::kSpec), Quantiser<Spec, kOperandOnly>, GroupQuantiser<Spec>>;

template <typename Spec, typename Stream, bool kOperandOnly>
__global__ void __launch_bounds__(kStreamThreads, blocks_of_multiprocessor(Spec::kSpec, Stream::kTransposed))
    quantize_stream_kernel(const __grid_constant__ Job job) {
    using OfGroups = QuantiserOf<Spec, kOperandOnly>;
    __shared__ uint4 shared[kVectorsOf<Stream>], far[OfGroups::kVectorsOfFar];
    __shared__ typename OfGroups::Shared of_groups;
    Walk<Stream> walk(job, shared);
    OfGroups quantiser(job, of_groups, far);
    Places places = walk.places(job);
    walk.each([&](Group& g, int index) { quantiser.quantize(g, places, index); });
    quantiser.finish();
}

template <typename Stream>
void launch_stream(const Context& context, void (*kernel)(Job), Job job) {
    const dim3 blocks = divide_tiles(job, Stream::kRows);
    launch(context, kernel, blocks, dim3(kStreamThreads), 0, job);
}

template <typename Spec, typename Stream>
void launch_quantizer(const Context& context, const Job& job) {
    if constexpr (has_operand_kernel(Spec::kSpec)) {
        if (job.codes == nullptr) {
            launch_stream<Stream>(context, quantize_stream_kernel<Spec, Stream, true>, job);
            return;
        }
    }
    launch_stream<Stream>(context, quantize_stream_kernel<Spec, Stream, false>, job);
}

// List::kSpecs.size(): none of them.
template <typename List>
size_t place_of(const KernelSpec& spec) {
    return static_cast<size_t>(std::ranges::find(List::kSpecs, spec) - List::kSpecs.begin());
}
// Calls body<kIndex>() for the place of the job's spec.
template <typename List, typename Body>
void with_place(const Job& job, Body&& body) {
    const size_t place = place_of<List>(job.spec);
    const auto of = [&]<size_t kIndex>() {
        if (place == kIndex) body.template operator()<kIndex>();
    };
    [&]<size_t... kIndex>(std::index_sequence<kIndex...>) { (of.template operator()<kIndex>(), ...); }
    (std::make_index_sequence<List::kSpecs.size()>());
}

}  // namespace nibble::cuda::hot
