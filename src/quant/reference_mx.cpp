// The definition of MXFP4 and MXFP8: scales that are powers of two.
#include "quant/reference_passes.h"

namespace nibble::reference {
namespace {

class Mx : public Passes {
  public:
    using Passes::Passes;

    void run() {
        find_amax(false);
        *out_.tensor_scale_ptr() = spec_.scale == ScaleRule::three_quarters ? kFourThirds : 1.0f;
        for_each_strip(spec_.is_square() ? kMxfp4Block : 1, spec_.padding(), [&](const Strip& strip) {
            Encoded e;
            for (int k = 0; k < strip.width; k += kMxfp4Block) encode(strip, k, e);
            store(strip, e);
        });
    }

  private:
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
    uint8_t mxfp8_scale(float amax) const {
        const Mxfp8Rule rule = mxfp8_rule(spec_.element);
        switch (spec_.scale) {
            case ScaleRule::ceil:
                return mxfp8_ceil(rule, amax);
            case ScaleRule::rceil:
                return mxfp8_rceil(rule, amax);
            case ScaleRule::even:
                return mxfp8_even(rule, amax);
            default:
                return mxfp8_floor(rule, amax);
        }
    }

    // The block that begins in column k of the strip.
    void encode(const Strip& strip, int k, Encoded& e) const {
        const float amax = strip.amax(k, kMxfp4Block);
        const uint8_t byte =
            spec_.format == Format::mxfp8 ? mxfp8_scale(amax) : mxfp4_scale(&strip.values[0][k], amax);
        const float factor = mxfp4_element_factor(byte);
        for (int r = 0; r < strip.rows; ++r) {
            const float* x = &strip.values[r][k];
            e.scales[r][k / kMxfp4Block] = byte;
            float v[kMxfp4Block];
            for (int i = 0; i < kMxfp4Block; ++i) {
                v[i] = (spec_.scale == ScaleRule::three_quarters ? kThreeQuarters * x[i] : x[i]) * factor;
                e.inside[r][k + i] = std::fabs(v[i]) < kE2M1Max;
            }
            if (amax > 0.0f) {
                round_elements(strip, r, k, v, kMxfp4Block, &e.codes[r][k]);
            } else {
                std::fill_n(&e.codes[r][k], kMxfp4Block, uint8_t{0});
            }
        }
    }
};

}  // namespace

void quantize_mx(const QuantSpec& spec, const Tensor& x, const RandomKey& key, QuantizedMatrix& out,
                 const QuantizeOptions& options) {
    Mx(spec, x, key, out, options).run();
}

}  // namespace nibble::reference
