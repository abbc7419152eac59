// The definition of the formats whose scales are FP32 numbers: fp8, fp4, int4 and log4, with one scale for
// the tensor, for a row, or for a block.
#include "quant/reference_passes.h"

namespace nibble::reference {
namespace {

class Fp32Scaled : public Passes {
  public:
    using Passes::Passes;

    void run() {
        const bool is_one_block = spec_.block == Block::tensor;
        const float own_amax = find_amax(is_one_block), amax = is_one_block ? scaling_amax(own_amax) : 0.0f;
        const Fp32Scale tensor = scale_of(amax);
        *out_.tensor_scale_ptr() = tensor.scale;  // S = 1 where blocks are smaller
        if (is_one_block) {
            for_each_strip(1, kMaxWidth, [&](const Strip& strip) { encode_strip(strip, tensor, amax); });
        } else if (spec_.block == Block::row) {
            run_rows();
        } else {
            run_blocks();
        }
    }

  private:
    Fp32Scale scale_of(float amax) const { return fp32_scale(largest_of(spec_.element), amax); }

    void run_rows() const {
        for_each_band(1, [&](Strip& strip) {
            float amax = 0.0f;
            for_each_strip_of_band(strip, kMaxWidth, [&](const Strip& part) {
                amax = std::max(amax, part.amax(0, part.width));
            });
            const Fp32Scale row = scale_of(amax);
            out_.fp32_scales.as<float>()[strip.row] = row.scale;
            for_each_strip_of_band(strip, kMaxWidth,
                                   [&](const Strip& part) { encode_strip(part, row, amax); });
        });
    }

    void run_blocks() const {
        const int block = spec_.block_size();
        for_each_strip(spec_.is_square() ? block : 1, spec_.padding(), [&](const Strip& strip) {
            Encoded e;
            for (int k = 0; k < strip.width; k += block) {
                const float amax = strip.amax(k, block);
                const Fp32Scale scale = scale_of(amax);
                for (int r = 0; r < strip.rows; ++r) e.wide[r][k / block] = scale.scale;
                encode(strip, k, block, scale, amax, e);
            }
            store(strip, e);
        });
    }

    void encode_strip(const Strip& strip, const Fp32Scale& scale, float amax) const {
        Encoded e;
        encode(strip, 0, strip.width, scale, amax, e);
        store(strip, e);
    }

    // `count` columns from k on; amax 0: they are zeros, and have codes 0.
    void encode(const Strip& strip, int k, int count, const Fp32Scale& scale, float amax, Encoded& e) const {
        for (int r = 0; r < strip.rows; ++r) {
            float v[kMaxWidth];
            for (int i = 0; i < count; ++i)
                v[i] = amax == 0.0f ? 0.0f : strip.values[r][k + i] * scale.encode;
            round_elements(strip, r, k, v, count, &e.codes[r][k]);
        }
    }
};

}  // namespace

void quantize_with_fp32_scales(const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                               QuantizedMatrix& out, const QuantizeOptions& options) {
    Fp32Scaled(spec, x, key, out, options).run();
}

}  // namespace nibble::reference
