// Kernels for the quantisers in which training spends its time: each is compiled for one spec, so that
// nothing else is left in it. For quantize_hot.cu and quantize_hot_weights.cu.
#pragma once

#include <array>
#include <utility>

#include "quant/kernel_stream.cuh"
#include "quant/quantize_kernel.cuh"

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
                                      .rounds = 0};
inline constexpr KernelSpec kMxfp4 = [] {
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

constexpr KernelSpec four_six(KernelSpec s) {  // scale=four-six:mse
    s.scale = ScaleRule::four_six_mse;
    return s;
}
constexpr KernelSpec square(KernelSpec s) {  // 16x16
    s.block_rows = 16;
    return s;
}
constexpr KernelSpec eden(KernelSpec s) {  // scale=eden rotate=rht:128
    s = rotated(s, 128);
    s.correct = Correction::eden;
    s.scale_round = ScaleRounding::stochastic;
    return s;
}
constexpr KernelSpec quest(KernelSpec s) {  // scale=quest:std rotate=hadamard:32 mask=clip
    s = rotated(s, 32);
    s.scale = ScaleRule::quest_std;
    s.mask = true;
    return s;
}

template <int kRotation>
__device__ __forceinline__ uint32_t amax_of_group(Group& g) {
    if constexpr (kRotation != 0) butterfly(kRotation, g);
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

// The amax after rotation by blocks of this size; 0: as it is.
template <int kRotation, typename Stream>
__global__ void __launch_bounds__(kStreamThreads) amax_stream_kernel(const __grid_constant__ Job job) {
    __shared__ uint4 shared[kVectorsOf<Stream>];
    Walk<Stream> walk(job, shared);
    uint32_t largest = 0;
    walk.each([&](Group& g, int) { largest = max(largest, amax_of_group<kRotation>(g)); });
    give_rotated_amax<kRotation>(job, &job.scalars->amax, largest);
}

constexpr int blocks_of_multiprocessor(const KernelSpec& s) { return is_four_six(s.scale) ? 2 : 3; }

// List::kSpecs: an array of specs, of which this is one.
template <typename List, size_t kIndex, typename Stream>
__global__ void __launch_bounds__(kStreamThreads, blocks_of_multiprocessor(List::kSpecs[kIndex]))
    quantize_stream_kernel(const __grid_constant__ Job job) {
    constexpr KernelSpec s = List::kSpecs[kIndex];
    __shared__ uint4 shared[kVectorsOf<Stream>];
    __shared__ PerThread<kRowsOfPart> of_threads;
    __shared__ TensorValues tensor;
    Walk<Stream> walk(job, shared);
    tensor.prepare(s, job);
    uint32_t largest_value = 0;
    float largest_scale = 0.0f;
    ScaleCoins coins;
    walk.each([&](Group& g, int index) {
        constexpr KernelSpec spec = List::kSpecs[kIndex];
        if constexpr (spec.rotation != 0) transform(spec.rotation, job.factor, g);
        largest_value = max(largest_value, bits_of_largest(g.x));
        quantize_group(spec, job, tensor, g, of_threads, coins, index, largest_scale);
    });
    if (largest_value >= 0x7f800000u) *job.fault = 1;
}

template <typename Stream>
void launch_stream(const Context& context, void (*kernel)(Job), Job job) {
    const dim3 blocks = divide_tiles(job, Stream::kRows);
    launch(context, kernel, blocks, dim3(kStreamThreads), 0, job);
}

// List::kSpecs.size(): none of them.
template <typename List>
size_t place_of(const Job& job) {
    return static_cast<size_t>(std::ranges::find(List::kSpecs, job.spec) - List::kSpecs.begin());
}
// Calls body<kIndex>() for the place of the job's spec.
template <typename List, typename Body>
void with_place(const Job& job, Body&& body) {
    const size_t place = place_of<List>(job);
    const auto of = [&]<size_t kIndex>() {
        if (place == kIndex) body.template operator()<kIndex>();
    };
    [&]<size_t... kIndex>(std::index_sequence<kIndex...>) { (of.template operator()<kIndex>(), ...); }
    (std::make_index_sequence<List::kSpecs.size()>());
}

}  // namespace nibble::cuda::hot
