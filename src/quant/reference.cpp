// quantize_reference(): the definition of every quantiser, as a composition of the scalar functions of
// numerics/. Nothing here is tuned. The input is read a strip at a time: as many columns as share a rotation
// or a block, and 1 row (16 for square blocks). Rotation is done again in every pass, so that no scratch
// memory is needed.
#include <algorithm>
#include <cmath>

#include "quant/internal.h"

namespace nibble {
namespace {

constexpr int kMaxRows = 16, kMaxWidth = kMaxRotation;

struct Strip {
    int64_t row = 0, col = 0;  // of its first element
    int rows = 1, width = 0;
    float values[kMaxRows][kMaxWidth];

    float amax(int first_col, int cols) const {
        float largest = 0.0f;
        for (int r = 0; r < rows; ++r) {
            for (int k = first_col; k < first_col + cols; ++k)
                largest = std::fmax(largest, std::fabs(values[r][k]));
        }
        return largest;
    }
};

// What becomes of a strip; the encode functions below fill as much of it as the strip has.
struct Encoded {
    uint8_t codes[kMaxRows][kMaxWidth];
    uint8_t scales[kMaxRows][kMaxWidth / kNvfp4Group];
    float wide[kMaxRows][kMaxWidth / kNvfp4Group];  // tensor=posthoc: scales before the tensor scale is known
    bool inside[kMaxRows][kMaxWidth];               // mask=clip
};

class Reference {
  public:
    Reference(const QuantSpec& spec, const Tensor& x, const RandomKey& key, QuantizedMatrix& out,
              const QuantizeOptions& options)
        : spec_(spec), x_(x), key_(key), out_(out), options_(options), signs_(signs_of(spec, key, options)) {}

    void run() {
        const bool posthoc = spec_.format == Format::nvfp4 && spec_.tensor == TensorScale::posthoc;
        const float amax = find_amax();
        if (options_.amax != nullptr) *options_.amax = amax;
        if (spec_.format == Format::mxfp4) {
            *out_.tensor_scale_ptr() = spec_.scale == ScaleRule::three_quarters ? kFourThirds : 1.0f;
            for_each_strip([&](const Strip& strip) {
                Encoded e;
                encode_mxfp4(strip, e);
                store(strip, e);
            });
        } else if (posthoc) {
            run_posthoc();
        } else {
            const Nvfp4Tensor tensor = spec_.emulation ? emulated_tensor(rule(), scaling_amax(amax))
                                                       : nvfp4_tensor(rule(), scaling_amax(amax));
            *out_.tensor_scale_ptr() = tensor.scale;
            for_each_strip([&](const Strip& strip) {
                Encoded e;
                encode_nvfp4(strip, tensor, e);
                store(strip, e);
            });
        }
    }

  private:
    Nvfp4Rule rule() const { return nvfp4_rule(spec_.range.numerator, spec_.range.denominator, spec_.cap); }

    // --- input ---

    void load(int64_t row, int64_t col, Strip& strip, float factor) const {
        strip.row = row;
        strip.col = col;
        for (int r = 0; r < strip.rows; ++r) {
            for (int k = 0; k < strip.width; ++k) {
                strip.values[r][k] = input(row + r, col + k);
            }
            if (spec_.rotation != Rotation::none) rotate_row(strip.values[r], strip.width, factor);
        }
    }

    float input(int64_t row, int64_t col) const {
        if (col >= (options_.transposed ? x_.rows() : out_.cols)) return 0.0f;
        const int64_t index = options_.transposed ? col * x_.cols() + row : row * out_.cols + col;
        const float value = x_.dtype == DType::bf16 ? bf16_decode(static_cast<const Bf16*>(x_.data)[index])
                                                    : static_cast<const float*>(x_.data)[index];
        if (!std::isfinite(value)) fail_not_finite(x_, options_.name);
        return value;
    }

    // What the sums of a rotation are multiplied by. The emulations multiply by a matrix in BF16 or TF32.
    float rotation_factor() const {
        const float factor = hadamard_factor(spec_.rotation_size);
        return spec_.emulation ? round_to_bf16(factor) : factor;
    }

    void rotate_row(float* values, int width, float factor) const {
        for (int block = 0; block < width; block += spec_.rotation_size) {
            float* v = values + block;
            for (int round = 0; round < spec_.rotation_rounds(); ++round) {
                for (int j = 0; j < spec_.rotation_size; ++j) {
                    if (signs_[round * kMaxRotation + j]) v[j] = -v[j];
                }
                hadamard_transform(v, spec_.rotation_size, 1, factor);
            }
        }
        for (int k = 0; k < width; ++k) {
            if (spec_.out_bf16) values[k] = round_to_bf16(values[k]);
            if (!std::isfinite(values[k])) fail_not_finite(x_, options_.name);
        }
    }

    // Calls body(strip) for all strips, in parallel over rows of strips.
    template <typename Body>
    void for_each_strip(Body&& body) const {
        for_each_strip(rotation_factor(), body);
    }
    template <typename Body>
    void for_each_strip(float factor, Body&& body) const {
        if (out_.cols == 0) return;
        const int height = spec_.is_square() ? kMaxRows : 1;
        const int width = static_cast<int>(spec_.padding());
        const int64_t grain = rows_per_task(height * out_.padded_cols);
        parallel_for((out_.rows + height - 1) / height, grain, [&](int64_t begin, int64_t end) {
            Strip strip;
            strip.width = width;
            for (int64_t row = begin * height; row < std::min(end * height, out_.rows); row += height) {
                strip.rows = static_cast<int>(std::min<int64_t>(height, out_.rows - row));
                for (int64_t col = 0; col < out_.padded_cols; col += width) {
                    load(row, col, strip, factor);
                    body(strip);
                }
            }
        });
    }

    // The largest magnitude after rotation, if anybody asks for it. (Quartet II's emulation takes it of an
    // exact one.)
    float find_amax() const {
        const bool sets_scale = spec_.format == Format::nvfp4 && (spec_.tensor == TensorScale::current ||
                                                                  spec_.tensor == TensorScale::delayed);
        const bool previous_serves = spec_.tensor == TensorScale::delayed && options_.previous_amax > 0.0f;
        if (options_.amax == nullptr && (!sets_scale || previous_serves)) return 0.0f;
        if (options_.known_amax != nullptr && spec_.rotation == Rotation::none) return *options_.known_amax;
        SharedMaximum largest;
        for_each_strip(hadamard_factor(spec_.rotation_size),
                       [&](const Strip& strip) { largest.raise(strip.amax(0, strip.width)); });
        return largest.value();
    }

    // The amax that the tensor scale is made of.
    float scaling_amax(float amax) const {
        if (spec_.tensor == TensorScale::none) return rule().reach;  // then S = 1
        const bool delayed = spec_.tensor == TensorScale::delayed && options_.previous_amax > 0.0f;
        return delayed ? options_.previous_amax : amax;
    }

    // --- elements and scales ---

    uint8_t round_element(float v, uint16_t coin) const {
        switch (spec_.round) {
            case Rounding::nearest_away:
                return e2m1_nearest_away(v);
            case Rounding::nearest_down:
                return e2m1_nearest_down(v);
            case Rounding::stochastic:
                return e2m1_stochastic(v, coin);
            case Rounding::nearest:
                break;
        }
        return e2m1_nearest(v);
    }

    // The codes of `count` (a multiple of 8) scaled values, the first of which is row r, column k of the
    // strip.
    void round_elements(const Strip& strip, int r, int k, const float* v, int count, uint8_t* codes) const {
        const int64_t first = (strip.row + r) * out_.padded_cols + strip.col + k;
        for (int i = 0; i < count; i += 8) {
            Philox coins{};
            if (spec_.round == Rounding::stochastic) coins = element_coins(key_, (first + i) / 8);
            for (int j = 0; j < 8; ++j) codes[i + j] = round_element(v[i + j], coins.coin(j));
        }
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

    // --- NVFP4 ---

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
        float rows[kMaxRows] = {};
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

    // The scale byte that maps a block's maximum to 6R, and the other candidate of four-six.
    uint8_t scale_to_6(const Nvfp4Tensor& tensor, float amax) const {
        if (spec_.emulation) return emulated_scale(tensor, amax, 1.0f);
        return is_four_six(spec_.scale) ? four_six_scale_6(tensor, amax) : nvfp4_scale(tensor, amax);
    }
    uint8_t scale_to_4(const Nvfp4Tensor& tensor, float amax) const {
        return spec_.emulation ? emulated_scale(tensor, amax, 1.5f) : four_six_scale_4(tensor, amax);
    }

    void encode_nvfp4(const Strip& strip, const Nvfp4Tensor& tensor, Encoded& e) const {
        for (int k = 0; k < strip.width; k += kNvfp4Group) {
            const float amax = strip.amax(k, kNvfp4Group);
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

    // --- MXFP4 ---

    uint8_t mxfp4_scale(const float* x, float amax) const {
        switch (spec_.scale) {
            case ScaleRule::ceil:
                return mxfp4_ceil(amax);
            case ScaleRule::rceil:
                return mxfp4_rceil(amax);
            case ScaleRule::even:
                return mxfp4_even(amax);
            case ScaleRule::quest_std:
                return mxfp4_quest(quest_spread(x, amax, true), spec_.mult);
            case ScaleRule::quest_rms:
                return mxfp4_quest(quest_spread(x, amax, false), spec_.mult);
            default:
                return mxfp4_floor(amax);  // floor and three-quarters
        }
    }

    void encode_mxfp4(const Strip& strip, Encoded& e) const {
        for (int k = 0; k < strip.width; k += kMxfp4Block) {
            const float* x = &strip.values[0][k];
            const float amax = strip.amax(k, kMxfp4Block);
            const uint8_t byte = mxfp4_scale(x, amax);
            e.scales[0][k / kMxfp4Block] = byte;
            const float factor = mxfp4_element_factor(byte);
            float v[kMxfp4Block];
            for (int i = 0; i < kMxfp4Block; ++i) {
                v[i] = (spec_.scale == ScaleRule::three_quarters ? kThreeQuarters * x[i] : x[i]) * factor;
                e.inside[0][k + i] = std::fabs(v[i]) < kE2M1Max;
            }
            if (amax > 0.0f) {
                round_elements(strip, 0, k, v, kMxfp4Block, &e.codes[0][k]);
            } else {
                std::fill_n(&e.codes[0][k], kMxfp4Block, uint8_t{0});
            }
        }
    }

    // --- output ---

    void store(const Strip& strip, const Encoded& e) const {
        const int block = spec_.block_size();
        for (int r = 0; r < strip.rows; ++r) {
            const int64_t first = (strip.row + r) * out_.padded_cols + strip.col;
            uint8_t* codes = out_.codes.as<uint8_t>() + first / 2;
            for (int k = 0; k < strip.width; k += 2) {
                codes[k / 2] = static_cast<uint8_t>(e.codes[r][k] | e.codes[r][k + 1] << 4);
            }
            std::copy_n(e.scales[r], strip.width / block, out_.scales.as<uint8_t>() + first / block);
            if (!spec_.mask_clip) continue;
            uint8_t* mask = out_.mask.as<uint8_t>() + first / 8;
            std::fill_n(mask, strip.width / 8, uint8_t{0});
            for (int k = 0; k < strip.width; ++k) {
                mask[k / 8] = static_cast<uint8_t>(mask[k / 8] | int{e.inside[r][k]} << (k % 8));
            }
        }
    }

    const QuantSpec& spec_;
    const Tensor& x_;
    const RandomKey& key_;
    QuantizedMatrix& out_;
    const QuantizeOptions& options_;
    const SignBits signs_;
};

}  // namespace

void quantize_reference(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                        QuantizedMatrix& out, const QuantizeOptions& options) {
    check_quantize_arguments(spec, x, out, options);
    if (context.planning()) return;
    Reference(spec, x, key, out, options).run();
}

}  // namespace nibble
