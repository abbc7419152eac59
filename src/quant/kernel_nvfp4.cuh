// NVFP4 on a GPU, a group of 16 by one thread: scales, Four Over Six, MS-EDEN, tensor=posthoc. The order of
// roundings is that of reference.cpp.
#pragma once

#include "quant/kernel_elements.cuh"

namespace nibble::cuda {

// --- NVFP4 ---

// e4m3_nearest() of a number that is not negative: one instruction from sm_89 on.
__device__ inline uint8_t nearest_scale(float v) {
#if __CUDA_ARCH__ >= 890
    float unused[2];
    return static_cast<uint8_t>(fp8_pair<false>(v, 0.0f, unused));
#else
    return e4m3_nearest(v);
#endif
}

// x / c, correctly rounded, where neither it nor the remainder leaves the normal numbers. inverse: fl(1 / c).
// (Markstein, Computation of elementary functions on the IBM RISC System/6000, 1990.)
__device__ inline float quotient(float x, float c, float inverse) {
    const float q = x * inverse;
    return __fmaf_rn(__fmaf_rn(-q, c, x), inverse, q);
}

// x / c where quotient() does not do. Out of line: hardly any tensor comes here.
static __device__ __attribute__((noinline)) float divided(float x, float c) { return x / c; }

// Coins of scales: a draw has those of eight groups. Where the eight threads of 128 columns share one, each
// of them makes that of one of eight steps.
class ScaleCoins {
  public:
    // The threshold of a group's coin.
    static __device__ float of_group(const Job& job, int64_t group) {
        const Philox draw = job.coins.of_scales(static_cast<uint64_t>(group) / 8);
        return threshold(draw.word[group % 8 / 2] >> (group % 2 * 16), 0);
    }
    // The same. Called by all threads; `group` is that of this thread in this step.
    template <int kRows>
    __device__ __forceinline__ float of_step(const Job& job, int64_t group, int step) {
        const int thread = static_cast<int>(threadIdx.x) % kGroups;
        if (step % kGroups == 0) {
            const int64_t groups_between_steps = kRows * (job.padded_cols / kGroup);
            draw_ = job.coins.of_scales(static_cast<uint64_t>(group + thread * groups_between_steps) / 8);
        }
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            words[i] = __shfl_sync(0xffffffffu, draw_.word[i], step % kGroups, kGroups);
        const uint32_t low = (thread & 2) != 0 ? words[1] : words[0],
                       high = (thread & 2) != 0 ? words[3] : words[2];
        const uint32_t word = (thread & 4) != 0 ? high : low;
        return threshold((thread & 1) != 0 ? word >> 16 : word, 0);
    }

  private:
    Philox draw_;
};

// e4m3_stochastic(), as a number; `threshold` is that of the coin.
__device__ inline float round_scale_to_e4m3(float target, float threshold) {
    const float v = fminf(target, kE4M3Max);
    const int step = __viaddmax_s32(__float_as_int(v) & 0x7f800000, -(3 << 23), 0x3b000000);  // least: 2^-9
    return round_by_threshold(v, __int_as_float(step), threshold);
}
// The byte of a number of E4M3 that is not negative.
__device__ inline uint8_t e4m3_of_number(float value) {
    return static_cast<uint8_t>(__float_as_uint(value * 0x1p-120f) >> 20);
}
__device__ inline uint8_t round_scale_by_threshold(float target, float threshold) {
    return e4m3_of_number(round_scale_to_e4m3(target, threshold));
}

__device__ inline uint8_t round_scale(const KernelSpec& s, const Job& job, float target, int64_t group) {
    if (s.scale_round == ScaleRounding::nearest) return nearest_scale(target);
    return round_scale_by_threshold(target, ScaleCoins::of_group(job, group));
}

__device__ __forceinline__ Codes encode_group(const KernelSpec& s, const Job& job, const Nvfp4Tensor& tensor,
                                              uint8_t scale, const Group& g) {
    if (scale == 0) return {};
    const float factor = nvfp4_element_factor(tensor, scale);
    float v[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) v[i] = g.x[i] * factor;  // rounding saturates
    return round_group(s, job, g.row * job.padded_cols + g.col, v);
}

// The error of a group in one of three measures; error(i): of an element.
template <typename Error>
__device__ __forceinline__ float sum_of_errors(ScaleRule measure, Error&& error) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
        const float d = error(i);
        if (measure == ScaleRule::four_six_mse) sum += d * d;
        if (measure == ScaleRule::four_six_mae) sum += fabsf(d);
        if (measure == ScaleRule::four_six_amax) sum = fmaxf(sum, fabsf(d));
    }
    return sum;
}

__device__ __forceinline__ float group_error(const KernelSpec& s, const Nvfp4Tensor& tensor, const Group& g,
                                             const Codes& codes, uint8_t scale) {
    if (s.emulation) {
        return sum_of_errors(
            s.scale, [&](int i) { return emulated_error(tensor, g.x[i], e2m1_code(codes.value[i]), scale); });
    }
    // four_six_error(); of a tensor with ordinary numbers without a division.
    const float byte = scale_value(scale);
    if (tensor.amax >= 0x1p-60f && tensor.amax <= 0x1p60f) {
        const float inverse = 1.0f / tensor.rule.reach;
        return sum_of_errors(s.scale, [&](int i) {
            return quotient(codes.value[i] * byte * tensor.amax, tensor.rule.reach, inverse) - g.x[i];
        });
    }
    return sum_of_errors(s.scale, [&](int i) {
        return divided(codes.value[i] * byte * tensor.amax, tensor.rule.reach) - g.x[i];
    });
}

__device__ __forceinline__ float eden_factor_of_group(const Group& g, const Codes& codes, uint8_t scale,
                                                      float tensor_scale, float unit) {
    const float byte = scale_value(scale);
    const auto ratio = [&](auto in_units) {
        float num[kGroup], den[kGroup];
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            const float x = in_units(g.x[i]);
            num[i] = x * x;
            den[i] = x * in_units(codes.value[i] * byte * tensor_scale);
        }
        return eden_ratio(tree_sum_of_group(num), tree_sum_of_group(den));
    };
    return unit == 1.0f ? ratio([](float x) { return x; }) : ratio([&](float x) { return x * unit; });
}

// The same over `cols` columns on scaled values.
__device__ __forceinline__ float eden_factor_of_scaled(const float (&v)[kGroup], const Codes& codes,
                                                       int cols) {
    float num[kGroup], den[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
        num[i] = v[i] * v[i];
        den[i] = v[i] * codes.value[i];
    }
    return eden_ratio(sum_of_threads(tree_sum_of_group(num), cols),
                      sum_of_threads(tree_sum_of_group(den), cols));
}

// Called by all threads; `is_there` where the group lies in the operand.
template <int kRows>
__device__ __forceinline__ void quantize_nvfp4(const KernelSpec& s, const Job& job,
                                               const Nvfp4Tensor& of_tensor, Group& g, bool is_there,
                                               PerThread<kRows>& shared, ScaleCoins& coins, int step) {
    const Nvfp4Tensor tensor =
        s.outer ? nvfp4_tensor(job.rule, max_of_threads(max_of(g.x), kTileCols)) : of_tensor;
    const auto block_scale = [&](uint8_t byte) {
        return s.outer && byte == 0 ? uint8_t{1} : byte;  // with outer=1x128 no scale is below 2^-9
    };
    const float amax = shared.max_of_block(max_of(g.x), s);
    uint8_t scale = block_scale(0);
    Codes codes{};
    if (amax != 0.0f) {
        scale = s.emulation            ? emulated_scale(tensor, amax, 1.0f)
                : is_four_six(s.scale) ? block_scale(nearest_scale(amax / tensor.rule.top * tensor.encode))
                                       : block_scale(nearest_scale(amax * tensor.block_factor));
        codes = encode_group(s, job, tensor, scale, g);
    }
    if (is_four_six(s.scale)) {
        const uint8_t four = s.emulation
                                 ? emulated_scale(tensor, amax, 1.5f)
                                 : block_scale(nearest_scale(amax / tensor.rule.top * tensor.encode * 1.5f));
        const Codes other = encode_group(s, job, tensor, four, g);
        // Rows beyond the operand count 0.
        const float error_six =
            shared.error_of_block(g.row < job.rows ? group_error(s, tensor, g, codes, scale) : 0.0f, s);
        const float error_four =
            shared.error_of_block(g.row < job.rows ? group_error(s, tensor, g, other, four) : 0.0f, s);
        if (amax != 0.0f && error_four < error_six) {
            scale = four;
            codes = other;
        }
    }
    const int64_t group = (g.row * job.padded_cols + g.col) / kNvfp4Group;
    if (s.correct == Correction::eden) {
        const float factor = eden_factor_of_group(g, codes, scale, tensor.scale, eden_unit(tensor.amax));
        const float target = factor * scale_value(scale);
        if (s.scale_round == ScaleRounding::stochastic && s.rotation == kTileCols) {
            const float of_coin = coins.of_step<kRows>(job, group, step);
            if (scale != 0) scale = round_scale_by_threshold(target, of_coin);
        } else if (scale != 0) {
            scale = round_scale(s, job, target, group);
        }
    }
    if (s.correct == Correction::eden_block) {
        const float factor = scale == 0 ? 0.0f : nvfp4_element_factor(tensor, scale);
        float v[kGroup];
#pragma unroll
        for (int i = 0; i < kGroup; ++i) v[i] = scale == 0 ? 0.0f : g.x[i] * factor;
        const float correction = eden_factor_of_scaled(v, codes, s.rotation);
        if (scale != 0) scale = round_scale(s, job, correction * scale_value(scale), group);
    }
    if (!is_there) return;
    store_group(s, job, g, codes, scale, scale_value(scale));
    if (s.outer && g.col % kTileCols == 0) {
        job.fp32_scales[(g.row * job.padded_cols + g.col) / kTileCols] = tensor.scale;
    }
}

// tensor=posthoc: codes and wide scales; the bytes are made of those when the largest is known.
template <int kRows>
__device__ __forceinline__ float quantize_posthoc(const KernelSpec& s, const Job& job, Group& g,
                                                  bool is_there, PerThread<kRows>& shared) {
    const float scale = posthoc_scale(job.rule, shared.max_of_block(max_of(g.x), s));
    Codes codes{};
    float wide = 0.0f;
    if (scale != 0.0f) {
        const float factor = posthoc_element_factor(scale);
        float v[kGroup];
#pragma unroll
        for (int i = 0; i < kGroup; ++i) v[i] = g.x[i] * factor;
        codes = round_group(s, job, g.row * job.padded_cols + g.col, v);
        const bool eden = s.correct == Correction::eden;
        wide = posthoc_wide_scale(scale, eden ? eden_factor_of_scaled(v, codes, kGroup) : 1.0f);
    }
    if (!is_there) return 0.0f;
    store_codes(s, job, g.row * job.padded_cols + g.col, codes);
    job.wide[(g.row * job.padded_cols + g.col) / kNvfp4Group] = bf16_encode(wide);
    return wide;
}

}  // namespace nibble::cuda
