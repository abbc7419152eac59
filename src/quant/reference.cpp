// quantize_reference(): the definition of every quantiser, as a composition of the scalar functions of
// numerics/. Nothing here is tuned. This file has NVFP4; reference_mx.cpp and reference_fp32.cpp the others.
#include "quant/reference_passes.h"

namespace nibble {
namespace reference {
namespace {

class Nvfp4 : public Passes {
  public:
    using Passes::Passes;

    void run() {
        const bool sets_scale = !spec_.outer_1x128 && (spec_.tensor == TensorScale::current ||
                                                       spec_.tensor == TensorScale::delayed);
        const float amax = find_amax(sets_scale);
        if (spec_.tensor == TensorScale::posthoc) {
            run_posthoc();
        } else if (spec_.outer_1x128) {
            run_outer();
        } else {
            const float tensor_amax = spec_.tensor == TensorScale::none ? rule().reach : scaling_amax(amax);
            const Nvfp4Tensor tensor =
                spec_.emulation ? emulated_tensor(rule(), tensor_amax) : nvfp4_tensor(rule(), tensor_amax);
            *out_.tensor_scale_ptr() = tensor.scale;  // with tensor=none, S = 1
            for_each_strip([&](const Strip& strip) {
                Encoded e;
                encode(strip, tensor, e);
                store(strip, e);
            });
        }
    }

  private:
    Nvfp4Rule rule() const { return nvfp4_rule(spec_.range.numerator, spec_.range.denominator, spec_.cap); }

    template <typename Body>
    void for_each_strip(Body&& body) const {
        Passes::for_each_strip(spec_.is_square() ? kNvfp4Group : 1, spec_.padding(), body);
    }

    // The byte of a scale that is rounded after its group's elements. `group` counts over [rows, groups in a
    // row].
    uint8_t round_scale(float target, int64_t group) const {
        if (spec_.scale_round == ScaleRounding::nearest) return e4m3_nearest(target);
        return e4m3_stochastic(target, scale_coins(key_, group / 8).coin(static_cast<int>(group % 8)));
    }

    int64_t group_index(const Strip& strip, int r, int k) const {
        return ((strip.row + r) * out_.padded_cols + strip.col + k) / kNvfp4Group;
    }

    // With outer=1x128 no scale is below 2^-9.
    uint8_t block_scale(uint8_t byte) const { return spec_.outer_1x128 && byte == 0 ? uint8_t{1} : byte; }

    // The codes of one group under one scale byte.
    void encode_group(const Strip& strip, int r, int k, const Nvfp4Tensor& tensor, uint8_t scale,
                      uint8_t* codes) const {
        if (scale == 0) {
            std::fill_n(codes, kNvfp4Group, uint8_t{0});
            return;
        }
        const float factor = nvfp4_element_factor(tensor, scale);
        float v[kNvfp4Group];
        for (int i = 0; i < kNvfp4Group; ++i) v[i] = clamp_to_e2m1(strip.values[r][k + i] * factor);
        round_elements(strip, r, k, v, kNvfp4Group, codes);
    }

    // The error of one group of a row under four-six, by the spec's measure.
    float group_error(const float* x, const Nvfp4Tensor& tensor, const uint8_t* codes, uint8_t scale) const {
        float sum = 0.0f;
        for (int i = 0; i < kNvfp4Group; ++i) {
            const float d = spec_.emulation ? emulated_error(tensor, x[i], codes[i], scale)
                                            : four_six_error(tensor, x[i], codes[i], scale);
            if (spec_.scale == ScaleRule::four_six_mse) sum += d * d;
            if (spec_.scale == ScaleRule::four_six_mae) sum += std::fabs(d);
            if (spec_.scale == ScaleRule::four_six_amax) sum = std::fmax(sum, std::fabs(d));
        }
        return sum;
    }

    // The error of a block: its rows' errors by a binary tree, r with r + 8, + 4, + 2, + 1. Missing rows
    // count 0.
    float block_error(const Strip& strip, int k, const Nvfp4Tensor& tensor, const Encoded& e,
                      uint8_t scale) const {
        float rows[kNvfp4Group] = {};
        for (int r = 0; r < strip.rows; ++r) {
            rows[r] = group_error(&strip.values[r][k], tensor, &e.codes[r][k], scale);
        }
        for (int half = spec_.is_square() ? 8 : 0; half > 0; half /= 2) {
            for (int r = 0; r < half; ++r) {
                rows[r] = spec_.scale == ScaleRule::four_six_amax ? std::fmax(rows[r], rows[r + half])
                                                                  : rows[r] + rows[r + half];
            }
        }
        return rows[0];
    }

    void encode_block(const Strip& strip, int k, const Nvfp4Tensor& tensor, uint8_t scale, Encoded& e) const {
        for (int r = 0; r < strip.rows; ++r) {
            e.scales[r][k / kNvfp4Group] = scale;
            encode_group(strip, r, k, tensor, scale, &e.codes[r][k]);
        }
    }

    void zero_block(const Strip& strip, int k, Encoded& e) const {
        for (int r = 0; r < strip.rows; ++r) {
            e.scales[r][k / kNvfp4Group] = block_scale(0);
            std::fill_n(&e.codes[r][k], kNvfp4Group, uint8_t{0});
        }
    }

    // The scale byte that maps a block's maximum to 6R, and the other candidate of four-six.
    uint8_t scale_to_6(const Nvfp4Tensor& tensor, float amax) const {
        if (spec_.emulation) return emulated_scale(tensor, amax, 1.0f);
        return block_scale(is_four_six(spec_.scale) ? four_six_scale_6(tensor, amax)
                                                    : nvfp4_scale(tensor, amax));
    }
    uint8_t scale_to_4(const Nvfp4Tensor& tensor, float amax) const {
        return spec_.emulation ? emulated_scale(tensor, amax, 1.5f)
                               : block_scale(four_six_scale_4(tensor, amax));
    }

    void encode(const Strip& strip, const Nvfp4Tensor& tensor, Encoded& e) const {
        for (int k = 0; k < strip.width; k += kNvfp4Group) {
            const float amax = strip.amax(k, kNvfp4Group);
            if (amax == 0.0f) {
                zero_block(strip, k, e);
                continue;
            }
            const uint8_t six = scale_to_6(tensor, amax);
            encode_block(strip, k, tensor, six, e);
            if (!is_four_six(spec_.scale)) continue;
            const uint8_t four = scale_to_4(tensor, amax);
            const float error_six = block_error(strip, k, tensor, e, six);
            encode_block(strip, k, tensor, four, e);
            const float error_four = block_error(strip, k, tensor, e, four);
            if (!(error_four < error_six)) encode_block(strip, k, tensor, six, e);
        }
        if (spec_.correct == Correction::eden) correct_groups(strip, tensor, e);
        if (spec_.correct == Correction::eden_block) correct_rotation_blocks(strip, tensor, e);
    }

    void correct_scale(const Strip& strip, int r, int k, float factor, Encoded& e) const {
        uint8_t& scale = e.scales[r][k / kNvfp4Group];
        if (scale != 0) scale = round_scale(factor * e4m3_decode(scale), group_index(strip, r, k));
    }

    void correct_groups(const Strip& strip, const Nvfp4Tensor& tensor, Encoded& e) const {
        const float unit = eden_unit(tensor.amax);
        for (int r = 0; r < strip.rows; ++r) {
            for (int k = 0; k < strip.width; k += kNvfp4Group) {
                const uint8_t scale = e.scales[r][k / kNvfp4Group];
                if (scale == 0) continue;
                correct_scale(strip, r, k,
                              eden_factor(&strip.values[r][k], &e.codes[r][k], scale, tensor.scale, unit), e);
            }
        }
    }

    void correct_rotation_blocks(const Strip& strip, const Nvfp4Tensor& tensor, Encoded& e) const {
        for (int r = 0; r < strip.rows; ++r) {
            for (int block = 0; block < strip.width; block += spec_.rotation_size) {
                const int end = block + spec_.rotation_size;
                float v[kMaxRotation] = {};  // groups of byte 0 add nothing
                for (int k = block; k < end; k += kNvfp4Group) {
                    const uint8_t scale = e.scales[r][k / kNvfp4Group];
                    if (scale == 0) continue;
                    const float factor = nvfp4_element_factor(tensor, scale);
                    for (int i = k; i < k + kNvfp4Group; ++i) v[i - block] = strip.values[r][i] * factor;
                }
                const float factor = eden_factor_scaled(v, &e.codes[r][block], spec_.rotation_size);
                for (int k = block; k < end; k += kNvfp4Group) correct_scale(strip, r, k, factor, e);
            }
        }
    }

    // --- tensor=posthoc ---

    // Codes and wide scales of a strip; neither depends on the rest of the tensor.
    void encode_posthoc(const Strip& strip, Encoded& e) const {
        for (int k = 0; k < strip.width; k += kNvfp4Group) {
            const float scale = posthoc_scale(rule(), strip.amax(k, kNvfp4Group));
            const float factor = posthoc_element_factor(scale);
            for (int r = 0; r < strip.rows; ++r) {
                uint8_t* codes = &e.codes[r][k];
                float& wide = e.wide[r][k / kNvfp4Group];
                wide = 0.0f;
                std::fill_n(codes, kNvfp4Group, uint8_t{0});
                if (scale == 0.0f) continue;
                float v[kNvfp4Group], clamped[kNvfp4Group];
                for (int i = 0; i < kNvfp4Group; ++i) {
                    v[i] = strip.values[r][k + i] * factor;
                    clamped[i] = clamp_to_e2m1(v[i]);
                }
                round_elements(strip, r, k, clamped, kNvfp4Group, codes);
                const bool eden = spec_.correct == Correction::eden;
                wide = posthoc_wide_scale(scale, eden ? eden_factor_scaled(v, codes, kNvfp4Group) : 1.0f);
            }
        }
    }

    void run_posthoc() const {
        SharedMaximum largest;
        for_each_strip([&](const Strip& strip) {
            Encoded e;
            encode_posthoc(strip, e);
            for (int r = 0; r < strip.rows; ++r) {
                for (int g = 0; g < strip.width / kNvfp4Group; ++g) largest.raise(e.wide[r][g]);
            }
        });
        const float tensor_scale = posthoc_tensor_scale(rule(), largest.value());
        *out_.tensor_scale_ptr() = tensor_scale;
        for_each_strip([&](const Strip& strip) {
            Encoded e;
            encode_posthoc(strip, e);
            for (int r = 0; r < strip.rows; ++r) {
                const int row =
                    spec_.is_square() ? 0 : r;  // rows of a tile share a byte, so they share a coin
                for (int g = 0; g < strip.width / kNvfp4Group; ++g) {
                    const float target = e.wide[r][g] / tensor_scale;
                    e.scales[r][g] = round_scale(target, group_index(strip, row, g * kNvfp4Group));
                }
            }
            store(strip, e);
        });
    }

    // --- outer=1x128 ---

    // Every 128 columns of a row are a tensor of their own, whose scale is kept beside the bytes. Its blocks
    // keep a scale of at least 2^-9.
    void run_outer() const {
        *out_.tensor_scale_ptr() = 1.0f;
        for_each_strip([&](const Strip& strip) {
            Encoded e;
            const Nvfp4Tensor tensor = nvfp4_tensor(rule(), strip.amax(0, strip.width));
            e.wide[0][0] = tensor.scale;
            encode(strip, tensor, e);
            store(strip, e);
        });
    }
};

}  // namespace
}  // namespace reference

void quantize_reference(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                        QuantizedMatrix& out, const QuantizeOptions& options) {
    check_quantize_arguments(spec, x, out, options);
    if (spec.rotates_rows()) return quantize_rotated_rows(context, spec, x, key, out, options, true);
    if (context.planning()) return;
    if (spec.format == Format::nvfp4) {
        reference::Nvfp4(spec, x, key, out, options).run();
    } else if (spec.is_mx()) {
        reference::quantize_mx(spec, x, key, out, options);
    } else {
        reference::quantize_with_fp32_scales(spec, x, key, out, options);
    }
    apply_scale(out, options);
}

}  // namespace nibble
