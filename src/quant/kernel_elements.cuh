// Elements on a GPU: from scaled values to codes and what they are worth, and into memory.
#pragma once

#include "quant/kernel_job.cuh"

namespace nibble::cuda {

// --- elements ---

// 16 elements: what their codes are worth, and the codes themselves where those are not E2M1.
struct Codes {
    uint8_t of[kGroup];
    float value[kGroup];
};

// E2M1 is what FP32 would be with 2 bits of exponent: its numbers times 2^-126 have the code at bit 22.
__device__ inline uint8_t e2m1_code(float value) {
    const uint32_t bits = __float_as_uint(value * 0x1p-126f);
    return static_cast<uint8_t>((bits >> 22 & 7u) | (bits >> 28 & 8u));
}

// e2m1_nearest() and e2m1_stochastic() without comparisons, as values. The step of E2M1 in the binade of a
// magnitude up to 6, times 2^shift: exponents are the upper bits of a float, and the least step is 1/2.
__device__ inline float e2m1_step(float a, int shift) {
    const int up = (shift - 1) * (1 << 23);
    return __int_as_float(__viaddmax_s32(__float_as_int(a) & 0x7f800000, up, 0x3f800000 + up));
}
__device__ inline float with_sign_of(float v, float magnitude) {
    return __uint_as_float((__float_as_uint(v) & 0x80000000u) | __float_as_uint(magnitude));
}

__device__ inline float round_to_nearest(float v) {
    const float a = fminf(fabsf(v), kE2M1Max);
    // Numbers from here on are whole steps: adding it rounds, to even.
    const float whole = e2m1_step(a, 23);
    return with_sign_of(v, a + whole - whole);
}

// t = (coin + 1/2) / 65536 of one half of a random word.
__device__ inline float threshold(uint32_t word, int half) {
    const float from_128 = __uint_as_float(__byte_perm(word, 0x43000000u, half == 0 ? 0x7610 : 0x7632));
    return from_128 - (128.0f - 0x1p-17f);
}
// Rounds a >= 0 to multiples of a power of two: up where the rest is more than `threshold` of a step. That is
// the next multiple from a - threshold * step on; rounding upwards twice does not pass it.
__device__ inline float round_by_threshold(float a, float step, float threshold) {
    const float whole = step * 0x1.8p23f;
    return __fadd_ru(__fmaf_ru(-threshold, step, a), whole) - whole;
}
__device__ inline float round_by_coin(float v, uint32_t word, int half) {
    const float a = fminf(fabsf(v), kE2M1Max);
    return with_sign_of(v, round_by_threshold(a, e2m1_step(a, 0), threshold(word, half)));
}

// Log4's stochastic() as a value: the step in the binade of a magnitude is the power of two below it.
__device__ inline float log4_by_coin(float v, uint32_t word, int half) {
    const float a = fminf(fabsf(v), largest_of(Element::log4));
    const float step = fmaxf(__uint_as_float(__float_as_uint(a) & 0x7f800000u), 1.0f);
    return with_sign_of(v, round_by_threshold(a, step, threshold(word, half)));
}
// Of such a value, 0 or a power of two from 1 on.
__device__ inline uint8_t log4_code(float value) {
    const uint32_t bits = __float_as_uint(value);
    return static_cast<uint8_t>(max(static_cast<int>(bits >> 23 & 0xffu) - 126, 0) | (bits >> 28 & 8u));
}

// Whether the GPU converts to FP8, with the roundings of numerics/elements.h.
__device__ inline bool has_fp8_conversions() {
#if __CUDA_ARCH__ >= 890
    return true;
#else
    return false;
#endif
}
template <bool kIsE5M2>
__device__ inline void round_to_fp8(const float (&v)[kGroup], Codes& codes) {
#pragma unroll
    for (int i = 0; i < kGroup; i += 2) {
        float values[2];
        const uint16_t pair = fp8_pair<kIsE5M2>(v[i], v[i + 1], values);
        for (int j = 0; j < 2; ++j) {
            codes.of[i + j] = static_cast<uint8_t>(pair >> (8 * j));
            codes.value[i + j] = values[j];
        }
    }
}

// Of 16 scaled values, the first of which has this index in the operand.
__device__ __forceinline__ Codes round_group(const KernelSpec& s, const Job& job, int64_t first,
                                             const float (&v)[kGroup]) {
    Codes codes;
    const auto each = [&](auto element, auto round) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            codes.of[i] = round(i);
            codes.value[i] = element.decode(codes.of[i]);
        }
    };
    if (s.round == Rounding::stochastic) {
        Philox coins[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) coins[i] = job.coins.of_elements(static_cast<uint64_t>(first) / 8 + i);
        if (s.element == Element::e2m1) {
#pragma unroll
            for (int i = 0; i < kGroup; ++i)
                codes.value[i] = round_by_coin(v[i], coins[i / 8].word[i % 8 / 2], i % 2);
        } else if (s.element == Element::log4) {
#pragma unroll
            for (int i = 0; i < kGroup; ++i) {
                codes.value[i] = log4_by_coin(v[i], coins[i / 8].word[i % 8 / 2], i % 2);
                codes.of[i] = log4_code(codes.value[i]);
            }
        } else {
            with_element(s.element, [&](auto element) {
                each(element, [&](int i) { return element.stochastic(v[i], coins[i / 8].coin(i % 8)); });
            });
        }
    } else if (s.round == Rounding::nearest_away) {
        each(E2M1Element{}, [&](int i) { return e2m1_nearest_away(v[i]); });
    } else if (s.round == Rounding::nearest_down) {
        each(E2M1Element{}, [&](int i) { return e2m1_nearest_down(v[i]); });
    } else if (s.element == Element::e2m1) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) codes.value[i] = round_to_nearest(v[i]);
    } else if (has_fp8_conversions() && s.element == Element::e4m3) {
        round_to_fp8<false>(v, codes);
    } else if (has_fp8_conversions() && s.element == Element::e5m2) {
        round_to_fp8<true>(v, codes);
    } else {
        with_element(s.element,
                     [&](auto element) { each(element, [&](int i) { return element.nearest(v[i]); }); });
    }
    return codes;
}

// Codes of 8 bits.
__device__ inline uint4 words_of_codes(const Codes& codes) {
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < kGroup; ++i) words[i / 4] |= static_cast<uint32_t>(codes.of[i]) << (i % 4 * 8);
    return {words[0], words[1], words[2], words[3]};
}

__device__ inline void store_codes(const KernelSpec& s, const Job& job, int64_t first, const Codes& codes) {
    if (bits_of(s.element) == 8) {
        *reinterpret_cast<uint4*>(job.codes + first) = words_of_codes(codes);
        return;
    }
    uint32_t words[2] = {};
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
        const uint32_t code = s.element == Element::e2m1 ? e2m1_code(codes.value[i]) : codes.of[i];
        words[i / 8] |= code << (i % 8 * 4);
    }
    *reinterpret_cast<uint2*>(job.codes + first / 2) = {words[0], words[1]};
}

// What products read, code * scale: exact in BF16.
__device__ inline void store_operand(const Job& job, int64_t first, const Codes& codes, float scale) {
    uint32_t words[kGroup / 2];
#pragma unroll
    for (int i = 0; i < kGroup / 2; ++i) {
        words[i] = __byte_perm(__float_as_uint(codes.value[2 * i] * scale),
                               __float_as_uint(codes.value[2 * i + 1] * scale), 0x7632);
    }
    auto* const to = reinterpret_cast<uint4*>(job.operand + first);
    to[0] = {words[0], words[1], words[2], words[3]};
    to[1] = {words[4], words[5], words[6], words[7]};
}

// The results of a group: its codes, its scale byte (where the format has one) and, `scale` being what that
// is worth, its part of the operand. Each where the caller wants it.
__device__ inline void store_group(const KernelSpec& s, const Job& job, const Group& g, const Codes& codes,
                                   uint8_t byte, float scale) {
    const int64_t first = g.row * job.padded_cols + g.col;
    if (job.codes != nullptr) {
        store_codes(s, job, first, codes);
        if (job.scales != nullptr && g.col % s.block_cols == 0) job.scales[first / s.block_cols] = byte;
    }
    if (job.operand != nullptr) store_operand(job, first, codes, scale);
}

}  // namespace nibble::cuda
