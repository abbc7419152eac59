// The driver of the fast quantisers: which kernel a spec has, the passes over the tensor, and what is left to
// the reference: rare combinations, and tensors so small or so large that shortcuts of the kernels would not
// be exact.
#include "quant/quantize_simd.h"

#include <algorithm>

#include "quant/kernels.h"

namespace nibble {

CoinStream::CoinStream(const RandomKey& key, Purpose purpose_of_draw)
    : purpose(static_cast<uint64_t>(purpose_of_draw) << 24),
      step(key.step),
      operand(static_cast<uint64_t>(key.layer) << 16 | static_cast<uint64_t>(key.micro_step) << 8 |
              operand_of(key)) {
    uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
        key0[round] = k0;
        key1[round] = k1;
    }
}

QuantizeJob::QuantizeJob(const QuantSpec& spec_, const Tensor& x_, const RandomKey& key_,
                         QuantizedMatrix& out, const QuantizeOptions& options)
    : spec(spec_),
      key(key_),
      x(x_.data),
      is_bf16(x_.dtype == DType::bf16),
      transposed(options.transposed),
      rows(out.rows),
      cols(transposed ? x_.rows() : out.cols),
      stride(x_.cols()),
      padded_cols(out.padded_cols),
      units(out.rows * out.padded_cols / spec_.padding()),
      lane_stride(transposed ? out.padded_cols / spec_.padding() : 1),
      unit(static_cast<int>(spec_.padding())),
      rotation(spec_.rotation == Rotation::none ? 0 : spec_.rotation_size),
      rounds(spec_.rotation_rounds()),
      out_bf16(rotation != 0 && spec_.out_bf16),
      factor(rotation == 0 ? 1.0f : hadamard_factor(rotation)),
      codes(out.codes.as<uint8_t>()),
      scales(spec_.has_scale_bytes() ? out.scales.as<uint8_t>() : nullptr),
      mask(spec_.mask_clip ? out.mask.as<uint8_t>() : nullptr),
      element_coins(key_, Purpose::elements),
      scale_coins(key_, Purpose::scales) {
    const SignBits sign_bits = signs_of(spec, key, options);
    for (int j = 0; j < kMaxUnit; ++j) {
        for (int round = 0; round < 2; ++round) {
            signs[round][j] = sign_bits[round * kMaxRotation + j] ? 0x80000000u : 0u;
        }
    }
    for (int lane = 0; lane < kMaxLanes; ++lane) {
        const int place = lane % 2 * (kMaxLanes / 2) + lane / 2;
        unit_offsets[place] = static_cast<uint64_t>(lane * lane_stride);
        element_offsets[place] = static_cast<uint64_t>(lane * lane_stride * unit / 8);
    }
}

namespace {

constexpr int64_t kGrain = 64;  // units
constexpr int64_t kBandRows = 16;

bool is_finite(float magnitude) { return std::bit_cast<uint32_t>(magnitude) < 0x7f800000u; }

// The kernels' shortcuts are exact while no intermediate value leaves the normal numbers.
bool is_exact_for(const QuantSpec& spec, const Nvfp4Tensor& tensor) {
    if (spec.correct == Correction::eden) return eden_unit(tensor.amax) == 1.0f;
    return spec.scale == ScaleRule::amax || (tensor.amax >= 0x1p-100f && tensor.amax <= 0x1p100f);
}

class Driver {
  public:
    Driver(const QuantSpec& spec, const Tensor& x, const RandomKey& key, QuantizedMatrix& out,
           const QuantizeOptions& options)
        : spec_(spec), x_(x), out_(out), options_(options), job_(spec, x, key, out, options) {}

    bool quantize(RangeKernel kernel) {
        if (spec_.is_mx()) return quantize_mx(kernel);
        if (!spec_.has_scale_bytes()) return quantize_with_fp32_scales(kernel);
        job_.tensor.rule = nvfp4_rule(spec_.range.numerator, spec_.range.denominator, spec_.cap);
        if (spec_.outer_1x128) return quantize_outer(kernel);
        if (spec_.tensor == TensorScale::posthoc) return quantize_posthoc(kernel);
        job_.tensor = nvfp4_tensor(job_.tensor.rule, scaling_amax());
        if (!is_exact_for(spec_, job_.tensor)) return false;
        *out_.tensor_scale_ptr() = job_.tensor.scale;
        report(run(kernel));
        return true;
    }

  private:
    // The largest magnitude that a kernel meets in `count` of its pieces.
    float run(RangeKernel kernel, int64_t count, int64_t grain) const {
        SharedMaximum largest;
        parallel_for(count, grain, [&](int64_t begin, int64_t end) {
            largest.raise(std::bit_cast<float>(kernel(job_, begin, end)));
        });
        return largest.value();
    }
    float run_units(RangeKernel kernel) const { return run(kernel, job_.units, kGrain); }
    float run(RangeKernel kernel) const {
        if (spec_.is_square()) return run(kernel, (job_.rows + kBandRows - 1) / kBandRows, 1);
        return run_units(kernel);
    }
    float find_amax() const {
        if (job_.rotation != 0) return run(amax_kernel(true));
        const int64_t rows = job_.transposed ? job_.cols : job_.rows;
        return run(amax_kernel(false), rows, std::max<int64_t>(1, kGrain * kMaxUnit / job_.stride));
    }

    void check(float largest) const {
        if (!is_finite(largest)) fail_not_finite(x_, options_.name);
    }

    float scaling_amax() const {
        if (spec_.tensor == TensorScale::none) return job_.tensor.rule.reach;
        const float* const previous = options_.previous_amax;
        if (spec_.tensor == TensorScale::delayed && previous != nullptr && *previous > 0.0f) return *previous;
        if (options_.known_amax != nullptr) return *options_.known_amax;
        const float amax = find_amax();
        check(amax);
        return amax;
    }

    void report(float largest) const {
        check(largest);
        if (options_.amax == nullptr) return;
        *options_.amax = options_.known_amax != nullptr ? *options_.known_amax : largest;
    }

    bool quantize_mx(RangeKernel kernel) const {
        const float largest = run(kernel);
        check(largest);
        const bool squares = spec_.scale == ScaleRule::quest_std || spec_.scale == ScaleRule::quest_rms;
        if (squares && largest >= 0x1p60f) return false;
        *out_.tensor_scale_ptr() = spec_.scale == ScaleRule::three_quarters ? kFourThirds : 1.0f;
        report(largest);
        return true;
    }

    bool quantize_posthoc(RangeKernel kernel) {
        const float largest_scale = run(kernel);
        if (!is_finite(largest_scale)) return false;  // the reference says why
        job_.posthoc_scale = posthoc_tensor_scale(job_.tensor.rule, largest_scale);
        *out_.tensor_scale_ptr() = job_.posthoc_scale;
        report(run(kernel));
        return true;
    }

    bool quantize_outer(RangeKernel kernel) {
        job_.outer_scales = out_.fp32_scales.as<float>();
        *out_.tensor_scale_ptr() = 1.0f;
        report(run(kernel));
        return true;
    }

    bool quantize_with_fp32_scales(RangeKernel kernel) {
        if (spec_.has_fp32_scales()) return quantize_blocks(kernel);
        const float amax = scaling_amax();
        const Fp32Scale scale = fp32_scale(largest_of(spec_.element), amax);
        job_.encode = amax > 0.0f ? scale.encode : 0.0f;
        *out_.tensor_scale_ptr() = scale.scale;
        report(run_units(kernel));
        return true;
    }

    bool quantize_blocks(RangeKernel kernel) {
        const auto values = out_.fp32_scales.span<float>();  // amax, then encode scale, then scale
        find_block_maxima(values.data());
        for (float& value : values) {
            check(value);
            if (value > 0.0f) value = fp32_scale(largest_of(spec_.element), value).encode;
        }
        (spec_.has_row_scales() ? job_.row_encode : job_.unit_encode) = values.data();
        *out_.tensor_scale_ptr() = 1.0f;
        report(run_units(kernel));
        for (float& value : values) value = value > 0.0f ? 1.0f / value : 1.0f;
        return true;
    }

    // [rows, blocks of a row]; NaN is larger than all numbers. Loops over bits are vector loops.
    void find_block_maxima(float* maxima) const {
        const auto bits_of = [](auto v) { return std::bit_cast<uint32_t>(to_float(v)) & 0x7fffffffu; };
        const int64_t rows = job_.rows, cols = job_.cols, stride = job_.stride;
        const int64_t blocks = out_.fp32_scales.cols(), width = job_.padded_cols / blocks;
        with_elements(x_, [&](const auto* x) {
            if (job_.transposed) {
                constexpr int64_t kTask = 64;  // rows
                parallel_for(rows, kTask, [&](int64_t begin, int64_t end) {
                    std::fill(maxima + begin * blocks, maxima + end * blocks, 0.0f);
                    for (int64_t k = 0; k < cols; ++k) {
                        for (int64_t r = begin; r < end; ++r) {
                            float& largest = maxima[r * blocks + k / width];
                            const auto seen = std::bit_cast<uint32_t>(largest);
                            largest = std::bit_cast<float>(std::max(seen, bits_of(x[k * stride + r])));
                        }
                    }
                });
                return;
            }
            const int64_t height = spec_.is_square() ? spec_.block_size() : 1;
            const int64_t bands = (rows + height - 1) / height;
            parallel_for(bands, rows_per_task(height * cols), [&](int64_t begin, int64_t end) {
                for (int64_t i = begin * blocks; i < end * blocks; ++i) {
                    const int64_t row = i / blocks * height, col = i % blocks * width;
                    const int64_t last_row = std::min(row + height, rows),
                                  last_col = std::min(col + width, cols);
                    uint32_t largest = 0;
                    for (int64_t r = row; r < last_row; ++r)
                        for (int64_t k = col; k < last_col; ++k)
                            largest = std::max(largest, bits_of(x[r * stride + k]));
                    for (int64_t r = row; r < last_row; ++r)
                        maxima[r * blocks + i % blocks] = std::bit_cast<float>(largest);
                }
            });
        });
    }

    const QuantSpec& spec_;
    const Tensor& x_;
    QuantizedMatrix& out_;
    const QuantizeOptions& options_;
    QuantizeJob job_;
};

RangeKernel kernel_of(const QuantSpec& spec) {
    if (spec.block == Block::b1x32 && spec.format == Format::mxfp4) return mxfp4_kernel(spec);
    if (spec.block == Block::b1x32 && spec.format == Format::mxfp8) return mxfp8_kernel(spec);
    if (!spec.has_scale_bytes()) {
        // Maxima of smaller blocks are found before a rotation.
        return spec.block == Block::tensor || spec.rotation == Rotation::none ? fp32_kernel(spec) : nullptr;
    }
    if (spec.format != Format::nvfp4) return nullptr;
    if (spec.outer_1x128) return outer_kernel(spec);
    return spec.is_square() ? square_kernel(spec) : nvfp4_kernel(spec);
}

}  // namespace

bool quantize_simd(Context&, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                   QuantizedMatrix& out, const QuantizeOptions& options) {
    const bool is_none = x.count() == 0 || (options.transposed && spec.is_square()) || spec.emulation;
    const RangeKernel kernel = is_none ? nullptr : kernel_of(spec);
    return kernel != nullptr && Driver(spec, x, key, out, options).quantize(kernel);
}

}  // namespace nibble
