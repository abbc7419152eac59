// NVFP4 in blocks of 1x16 and MXFP4 in blocks of 1x32 for the kernels of quantize_hot.cuh: the numbers of
// kernel_nvfp4.cuh and quantize_mx() in fewer instructions. What groups of a tensor share is made once, signs
// stay those of x, and places advance.
#pragma once

#include <cuda_bf16.h>

#include "quant/kernel_stream.cuh"
#include "quant/quantize_kernel.cuh"

namespace nibble::cuda {

// --- elements ---

// Of values v whose magnitude is below 7, which E2M1 rounds to 6 or less: |v| rounded to nearest.
__device__ __forceinline__ float magnitude_to_nearest(float v) {
    const float whole = e2m1_step(v, 23);
    return fabsf(v) + whole - whole;
}
__device__ __forceinline__ float magnitude_by_coin(float v, uint32_t word, int half) {
    const float a = fminf(fabsf(v), kE2M1Max);
    return round_by_threshold(a, e2m1_step(a, 0), threshold(word, half));
}

// The coins of a group's elements; those of a nearest rounding are none.
template <Rounding kRound>
struct ElementCoins {
    __device__ ElementCoins(const Job&, const Places&) {}
};
template <>
struct ElementCoins<Rounding::stochastic> {
    Philox of_eight[2];

    __device__ __forceinline__ ElementCoins(const Job& job, const Places& places) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            of_eight[i] = job.coins.of_elements(static_cast<uint64_t>(places.first()) / 8 + i);
    }
    // Of the i-th value v.
    __device__ __forceinline__ float magnitude(float v, int i) const {
        return magnitude_by_coin(v, of_eight[i / 8].word[i % 8 / 2], i % 2);
    }
};

// As a pair of BF16 that holds both exactly.
__device__ __forceinline__ uint32_t upper_halves(float first, float second) {
    return __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x7632);
}
__device__ __forceinline__ uint32_t product_of_pairs(uint32_t a, uint32_t b) {
    const __nv_bfloat162 product =
        __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
    return *reinterpret_cast<const uint32_t*>(&product);
}

// A group's elements: magnitudes in E2M1, with the signs of x where `signs` is all ones; 0 where a block's
// scale is 0, whose codes are 0.
struct Elements {
    float magnitude[kGroup];
    uint32_t signs;

    // Times `scale`, a number of E4M3 or E8M0: exact in BF16.
    __device__ __forceinline__ void pairs(const Group& g, float scale, uint32_t (&to)[kGroup / 2]) const {
        const uint32_t factor = upper_halves(scale, scale), mask = signs & 0x80008000u;
#pragma unroll
        for (int i = 0; i < kGroup / 2; ++i) {
            const uint32_t pair = (upper_halves(g.x[2 * i], g.x[2 * i + 1]) & mask) |
                                  upper_halves(magnitude[2 * i], magnitude[2 * i + 1]);
            to[i] = product_of_pairs(pair, factor);
        }
    }
    // As codes: the first in the lowest bits.
    __device__ __forceinline__ uint2 codes(const Group& g) const {
        return {codes_of_eight(g, 0), codes_of_eight(g, 8)};
    }

  private:
    __device__ __forceinline__ uint32_t codes_of_eight(const Group& g, int first) const {
        uint32_t magnitudes = 0, upper = 0;  // the upper four bits of each x
#pragma unroll
        for (int i = 7; i >= 0; --i) upper = __funnelshift_l(__float_as_uint(g.x[first + i]), upper, 4);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            // As e2m1_code(): the code is at bit 22.
            const uint32_t bits = __float_as_uint(magnitude[first + i] * 0x1p-126f);
            magnitudes += 4 * i <= 22 ? bits >> (22 - 4 * i) : bits << (4 * i - 22);
        }
        return (upper & signs & 0x88888888u) | magnitudes;
    }
};

// Where a group's results go; `byte` is its scale, and worth `scale`. kOperandOnly: no bytes are wanted.
template <bool kOperandOnly>
__device__ __forceinline__ void store_elements(const KernelSpec& s, const Job& job, const Group& g,
                                               const Elements& elements, uint8_t byte, float scale,
                                               const Places& places) {
    if (!kOperandOnly && job.codes != nullptr) {
        *reinterpret_cast<uint2*>(job.codes + places.first() / 2) = elements.codes(g);
        const bool is_first = s.block_cols == kGroup || threadIdx.x % 2 == 0;
        if (is_first) job.scales[places.first() / s.block_cols] = byte;
    }
    if (kOperandOnly || job.operand != nullptr) {
        uint32_t pairs[kGroup / 2];
        elements.pairs(g, scale, pairs);
        places.store_operand(pairs);
    }
}

// --- what the groups of a tensor share ---

// nvfp4_element_factor() of every scale byte times `share`; 0 of those that have no elements.
struct FactorTable {
    float of[128];

    // Called by all threads of a block, of which there are at least 128.
    __device__ void prepare(const Nvfp4Tensor& tensor, float share) {
        const auto byte = threadIdx.x;
        if (byte < 128) {
            const bool has_elements = byte != 0 && byte != 127;
            of[byte] = has_elements ? share * nvfp4_element_factor(tensor, static_cast<uint8_t>(byte)) : 0.0f;
        }
        __syncthreads();
    }
};

// The coins of the scales of rotation blocks of 128, whose eight groups share a draw: each of their threads
// makes that of one of eight steps.
struct CoinTable {
    static constexpr int kPitch = kGroups + 1;  // draws; in different banks
    uint4 of[kStreamThreads / kGroups * kPitch];

    // The threshold of a group's coin. Called by all threads of a warp, for each of their groups.
    __device__ __forceinline__ float threshold_of(const Job& job, const Places& places, int step) {
        const int thread = static_cast<int>(threadIdx.x) % kGroups;
        uint4* const of_block = of + static_cast<int>(threadIdx.x) / kGroups * kPitch;
        if (step % kGroups == 0) {
            const Philox draw =
                job.coins.of_scales(static_cast<uint64_t>(places.first_of(step + thread)) / (8 * kGroup));
            __syncwarp();
            of_block[thread] = {draw.word[0], draw.word[1], draw.word[2], draw.word[3]};
            __syncwarp();
        }
        return threshold(reinterpret_cast<const uint16_t*>(of_block + step % kGroups)[thread], 0);
    }
};
struct NoCoinTable {};

// --- groups ---

// Quantises a thread's groups, rotated already, one after the other. Spec::kSpec: what is compiled for.
// kOperandOnly: no bytes are wanted.
template <typename Spec, bool kOperandOnly>
class Nvfp4Groups {
    static constexpr KernelSpec s = Spec::kSpec;
    static constexpr bool kHasCoins = s.correct == Correction::eden;

  public:
    struct Shared {
        FactorTable factors;
        std::conditional_t<kHasCoins, CoinTable, NoCoinTable> coins;
    };

    // Called by all threads. share: what x is to be multiplied by; 1, or a power of two where that is exact
    // or what remains is far below the least step.
    __device__ Nvfp4Groups(const Job& job, const Nvfp4Tensor& tensor, float share, Shared& shared)
        : job_(job),
          tensor_(tensor),
          share_(share),
          inverse_top_(1.0f / tensor.rule.top),
          inverse_reach_(1.0f / tensor.rule.reach),
          unit_(eden_unit(tensor.amax)),
          shared_(shared) {
        if constexpr (kHasCoins) keep(unit_);
        shared.factors.prepare(tensor, share);
    }

    // amax: of the group. step: its number.
    __device__ __forceinline__ void quantize(Group& g, float amax, const Places& places, int step) {
        if constexpr (is_four_six(s.scale)) {
            store_four_six(g, amax, places);
        } else {
            const uint8_t byte = nearest_scale(amax * share_ * tensor_.block_factor);
            const Elements elements = encode(g, amax, byte, Coins(job_, places));
            if constexpr (s.correct == Correction::eden) {
                store_corrected(g, elements, scale_value(byte), places, step);
            } else {
                store(g, elements, byte, scale_value(byte), places);
            }
        }
    }

  private:
    using Coins = ElementCoins<s.round>;

    __device__ __forceinline__ Elements encode(const Group& g, float amax, uint8_t byte,
                                               const Coins& coins) const {
        const float factor = shared_.factors.of[byte];
        Elements elements;
        elements.signs = byte != 0 ? ~0u : 0u;
        float v[kGroup];
#pragma unroll
        for (int i = 0; i < kGroup; ++i) v[i] = g.x[i] * factor;
        if constexpr (s.round == Rounding::stochastic) {
#pragma unroll
            for (int i = 0; i < kGroup; ++i) elements.magnitude[i] = coins.magnitude(v[i], i);
        } else {
            // Only scales that are rounded far down, to small multiples of 2^-9, let elements pass 7.
            if (amax * factor >= 7.0f) {
#pragma unroll
                for (int i = 0; i < kGroup; ++i) v[i] = clamp_to_e2m1(v[i]);
            }
#pragma unroll
            for (int i = 0; i < kGroup; ++i) elements.magnitude[i] = magnitude_to_nearest(v[i]);
        }
        return elements;
    }

    __device__ __forceinline__ void store_corrected(const Group& g, const Elements& elements, float scale,
                                                    const Places& places, int step) {
        const float unit = unit_;
        const float factor = unit == 1.0f
                                 ? eden_factor(g, elements, scale, [](float x) { return x; })
                                 : eden_factor(g, elements, scale, [&](float x) { return x * unit; });
        const float of_coin = shared_.coins.threshold_of(job_, places, step);
        // 0 stays 0.
        const float rounded = round_scale_to_e4m3(factor * scale, of_coin);
        store(g, elements, e4m3_of_number(rounded), rounded, places);
    }
    // eden_factor(); elements have the signs of x, so their products have none.
    template <typename InUnits>
    __device__ __forceinline__ float eden_factor(const Group& g, const Elements& elements, float scale,
                                                 InUnits&& in_units) const {
        float num[kGroup], den[kGroup];
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            const float x = in_units(fabsf(g.x[i]));
            num[i] = x * x;
            den[i] = x * in_units(elements.magnitude[i] * scale * tensor_.scale);
        }
        return eden_ratio(tree_sum_of_group(num), tree_sum_of_group(den));
    }

    // Of two candidates the one whose error is less; in a tensor with ordinary numbers without a division.
    __device__ __forceinline__ void store_four_six(const Group& g, float amax, const Places& places) {
        const float top = tensor_.rule.top;
        const bool is_ordinary = tensor_.amax >= 0x1p-60f && tensor_.amax <= 0x1p60f;
        // What quotient() may round wrongly is a scale far below 2^-10, of which nothing remains.
        const float share =
            (is_ordinary ? quotient(amax, top, inverse_top_) : divided(amax, top)) * tensor_.encode;
        uint8_t byte = nearest_scale(share);
        const uint8_t four = nearest_scale(share * 1.5f);
        const Coins coins(job_, places);  // the same for both
        Elements elements = encode(g, amax, byte, coins);
        const Elements other = encode(g, amax, four, coins);
        const float of_six = scale_value(byte), of_four = scale_value(four);
        const bool is_four = is_ordinary
                                 ? ordinary_error(g, other, of_four) < ordinary_error(g, elements, of_six)
                                 : divided_error(g, other, of_four) < divided_error(g, elements, of_six);
        if (is_four) {
            byte = four;
            elements = other;
        }
        store(g, elements, byte, is_four ? of_four : of_six, places);
    }
    // four_six_error(), but for the sign. E2M1 is 1 and 1.5 times powers of two: so is what they are worth,
    // with all roundings.
    __device__ __forceinline__ float ordinary_error(const Group& g, const Elements& elements,
                                                    float scale) const {
        const float one = quotient(scale * tensor_.amax, tensor_.rule.reach, inverse_reach_),
                    one_and_half = quotient(1.5f * scale * tensor_.amax, tensor_.rule.reach, inverse_reach_);
        return sum_of_errors(s.scale, [&](int i) {
            const uint32_t bits = __float_as_uint(elements.magnitude[i]);
            const float power = __uint_as_float(bits & 0x7f800000u);
            // The product is exact, so one rounding remains.
            return __fmaf_rn(power, (bits & 0x400000u) != 0 ? one_and_half : one, -fabsf(g.x[i]));
        });
    }
    __device__ __forceinline__ float divided_error(const Group& g, const Elements& elements,
                                                   float scale) const {
        return sum_of_errors(s.scale, [&](int i) {
            return divided(elements.magnitude[i] * scale * tensor_.amax, tensor_.rule.reach) - fabsf(g.x[i]);
        });
    }

    // scale: what the byte is worth.
    __device__ __forceinline__ void store(const Group& g, const Elements& elements, uint8_t byte, float scale,
                                          const Places& places) const {
        constexpr KernelSpec spec = Spec::kSpec;
        if (places.is_there()) store_elements<kOperandOnly>(spec, job_, g, elements, byte, scale, places);
    }

    const Job& job_;
    const Nvfp4Tensor tensor_;
    const float share_, inverse_top_, inverse_reach_;
    float unit_;  // of MS-EDEN's sums
    Shared& shared_;
};

// The same for MXFP4.
template <typename Spec, bool kOperandOnly>
struct Mxfp4Groups {
    static __device__ __forceinline__ void quantize(const Job& job, Group& g, float amax,
                                                    const Places& places) {
        constexpr KernelSpec s = Spec::kSpec;
        amax = max_of_threads(amax, kMxfp4Block);
        const uint8_t byte = mx_scale(s, job, g, amax);
        const float factor = mxfp4_element_factor(byte);
        Elements elements;
        elements.signs = amax > 0.0f ? ~0u : 0u;
        const ElementCoins<s.round> coins(job, places);
        uint32_t inside = 0;
#pragma unroll
        for (int i = kGroup - 1; i >= 0; --i) {
            // With three-quarters no element is beyond 6.
            constexpr bool kFits = s.scale == ScaleRule::three_quarters;
            const float v = (kFits ? kThreeQuarters * g.x[i] : g.x[i]) * factor;
            // The sign of the difference enters at bit 0.
            if constexpr (s.mask) inside = __funnelshift_l(__float_as_uint(fabsf(v) - kE2M1Max), inside, 1);
            if constexpr (s.round == Rounding::stochastic)
                elements.magnitude[i] = coins.magnitude(v, i);
            else
                elements.magnitude[i] = magnitude_to_nearest(kFits ? v : fminf(fabsf(v), kE2M1Max));
        }
        if (!places.is_there()) return;
        store_elements<kOperandOnly>(s, job, g, elements, byte, e8m0_decode(byte), places);
        if (s.mask)
            *reinterpret_cast<uint16_t*>(job.mask + places.first() / 8) = static_cast<uint16_t>(inside);
    }
};

}  // namespace nibble::cuda
