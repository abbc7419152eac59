// What the definitions of the quantisers share: how the input is read, and how codes are rounded and stored.
// A strip is as many columns as share a rotation or a scale, and as many rows as share a scale. Rotation is
// done again in every pass, so that no scratch memory is needed. Not for other rooms.
#pragma once

#include <algorithm>
#include <cmath>

#include "quant/internal.h"

namespace nibble::reference {

inline constexpr int kMaxRows = 128, kMaxWidth = 128;

struct Strip {
    int64_t row = 0, col = 0;  // of its first element
    int rows = 1, width = 0;
    float values[kMaxRows][kMaxWidth];

    float amax(int first_col, int cols) const {
        float largest = 0.0f;
        for (int r = 0; r < rows; ++r) {
            for (int k = first_col; k < first_col + cols; ++k)
                largest = std::max(largest, std::fabs(values[r][k]));
        }
        return largest;
    }
};

// What becomes of a strip; the encode functions fill as much of it as the strip and the spec have.
struct Encoded {
    uint8_t codes[kMaxRows][kMaxWidth];
    uint8_t scales[kMaxRows][kMaxWidth / kNvfp4Group];
    float wide[kMaxRows][kMaxWidth / kNvfp4Group];  // FP32 scales; with tensor=posthoc those before bytes
    bool inside[kMaxRows][kMaxWidth];               // mask=clip
};

// One call of quantize_reference().
class Passes {
  public:
    Passes(const QuantSpec& spec, const Tensor& x, const RandomKey& key, QuantizedMatrix& out,
           const QuantizeOptions& options)
        : spec_(spec), x_(x), key_(key), out_(out), options_(options), signs_(signs_of(spec, key, options)) {}

  protected:
    // Calls body(strip) for all strips of `height` rows and `width` columns, in parallel over rows of strips.
    template <typename Body>
    void for_each_strip(int height, int64_t width, Body&& body) const {
        for_each_strip(height, width, rotation_factor(), body);
    }
    // The same after a rotation whose sums are multiplied by `factor`.
    template <typename Body>
    void for_each_strip(int height, int64_t width, float factor, Body&& body) const {
        for_each_band(height, [&](Strip& strip) { for_each_strip_of_band(strip, width, factor, body); });
    }
    // Calls body(strip) for every `height` rows, in parallel; the strip has its rows, but no columns yet.
    template <typename Body>
    void for_each_band(int height, Body&& body) const {
        const int64_t grain = rows_per_task(height * out_.padded_cols);
        parallel_for((out_.rows + height - 1) / height, grain, [&](int64_t begin, int64_t end) {
            Strip strip;
            for (int64_t band = begin; band < end; ++band) {
                strip.row = band * height;
                strip.rows = static_cast<int>(std::min<int64_t>(height, out_.rows - strip.row));
                body(strip);
            }
        });
    }
    // The strips of the band that `strip` is of.
    template <typename Body>
    void for_each_strip_of_band(Strip& strip, int64_t width, Body&& body) const {
        for_each_strip_of_band(strip, width, rotation_factor(), body);
    }
    template <typename Body>
    void for_each_strip_of_band(Strip& strip, int64_t width, float factor, Body&& body) const {
        for (strip.col = 0; strip.col < out_.padded_cols; strip.col += width) {
            strip.width = static_cast<int>(std::min(width, out_.padded_cols - strip.col));
            for (int r = 0; r < strip.rows; ++r) {
                load(strip.row + r, strip.col, strip.width, factor, strip.values[r]);
            }
            body(std::as_const(strip));
        }
    }

    // The largest magnitude after rotation, if the tensor scale is made of it or the caller asks for it;
    // reported to the caller. (Quartet II's emulation takes it of an exact rotation.)
    float find_amax(bool sets_scale) const {
        const bool is_needed = options_.amax != nullptr || (sets_scale && !uses_previous_amax());
        float amax = 0.0f;
        if (is_needed && options_.known_amax != nullptr) {
            amax = *options_.known_amax;
        } else if (is_needed) {
            SharedMaximum largest;
            for_each_strip(1, kMaxWidth, hadamard_factor(spec_.rotation_size),
                           [&](const Strip& strip) { largest.raise(strip.amax(0, strip.width)); });
            amax = largest.value();
        }
        if (options_.amax != nullptr) *options_.amax = amax;
        return amax;
    }
    bool uses_previous_amax() const {
        return spec_.tensor == TensorScale::delayed && options_.previous_amax != nullptr &&
               *options_.previous_amax > 0.0f;
    }
    // The amax that a tensor scale is made of, given this tensor's.
    float scaling_amax(float amax) const { return uses_previous_amax() ? *options_.previous_amax : amax; }

    // The codes of `count` (a multiple of 8) scaled values, the first of which is row r, column k of the
    // strip.
    void round_elements(const Strip& strip, int r, int k, const float* v, int count, uint8_t* codes) const {
        const int64_t first = (strip.row + r) * out_.padded_cols + strip.col + k;
        const auto each = [&](auto round) {
            for (int i = 0; i < count; ++i) codes[i] = round(v[i]);
        };
        switch (spec_.round) {
            case Rounding::nearest_away:
                return each([](float x) { return e2m1_nearest_away(x); });
            case Rounding::nearest_down:
                return each([](float x) { return e2m1_nearest_down(x); });
            case Rounding::nearest:
                return with_element(spec_.element, [&](auto element) {
                    each([](float x) { return decltype(element)::nearest(x); });
                });
            case Rounding::stochastic:
                break;
        }
        with_element(spec_.element, [&](auto element) {
            for (int i = 0; i < count; i += 8) {
                const Philox coins = element_coins(key_, (first + i) / 8);
                for (int j = 0; j < 8; ++j) codes[i + j] = element.stochastic(v[i + j], coins.coin(j));
            }
        });
    }

    void store(const Strip& strip, const Encoded& e) const {
        const int bits = spec_.code_bits();
        for (int r = 0; r < strip.rows; ++r) {
            const int64_t first = (strip.row + r) * out_.padded_cols + strip.col;
            uint8_t* codes = out_.codes.as<uint8_t>() + first * bits / 8;
            if (bits == 8) std::copy_n(e.codes[r], strip.width, codes);
            for (int k = 0; k < strip.width && bits == 4; k += 2) {
                codes[k / 2] = static_cast<uint8_t>(e.codes[r][k] | e.codes[r][k + 1] << 4);
            }
            if (spec_.has_scale_bytes()) {
                const int block = spec_.block_size();
                std::copy_n(e.scales[r], strip.width / block, out_.scales.as<uint8_t>() + first / block);
            }
            if (spec_.has_fp32_groups()) {
                const int block = spec_.fp32_block_size();
                std::copy_n(e.wide[r], strip.width / block, out_.fp32_scales.as<float>() + first / block);
            }
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

  private:
    // What the sums of a rotation are multiplied by. The authors' emulations multiply by a matrix in BF16 or
    // TF32.
    float rotation_factor() const {
        const float factor = hadamard_factor(spec_.rotation_size);
        return spec_.emulation ? round_to_bf16(factor) : factor;
    }

    // `width` values of a row, padded with zeros and rotated.
    void load(int64_t row, int64_t col, int width, float factor, float* values) const {
        const int64_t present = (options_.transposed ? x_.rows() : out_.cols) - col;
        const int count = static_cast<int>(std::clamp<int64_t>(present, 0, width));
        const int64_t step = options_.transposed ? x_.cols() : 1;
        const int64_t first = options_.transposed ? col * step + row : row * out_.cols + col;
        with_elements(x_, [&](const auto* x) {
            for (int k = 0; k < count; ++k) values[k] = to_float(x[first + k * step]);
        });
        std::fill(values + count, values + width, 0.0f);
        check_finite(values, width);
        if (spec_.rotation == Rotation::none) return;
        rotate_row(values, width, factor);
        check_finite(values, width);
    }

    void check_finite(const float* values, int count) const {
        bool is_finite = true;
        for (int k = 0; k < count; ++k) is_finite &= std::isfinite(values[k]);
        if (!is_finite) fail_not_finite(x_, options_.name);
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
        for (int k = 0; k < width && spec_.out_bf16; ++k) values[k] = round_to_bf16(values[k]);
    }
};

// The other definitions (reference.cpp has that of NVFP4).
void quantize_mx(const QuantSpec& spec, const Tensor& x, const RandomKey& key, QuantizedMatrix& out,
                 const QuantizeOptions& options);
void quantize_with_fp32_scales(const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                               QuantizedMatrix& out, const QuantizeOptions& options);

}  // namespace nibble::reference
