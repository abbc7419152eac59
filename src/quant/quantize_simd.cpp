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
      scales(out.scales.as<uint8_t>()),
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
        if (spec_.format == Format::mxfp4) return quantize_mxfp4(kernel);
        job_.tensor.rule = nvfp4_rule(spec_.range.numerator, spec_.range.denominator, spec_.cap);
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
    float run(RangeKernel kernel) const {
        if (spec_.is_square()) return run(kernel, (job_.rows + kBandRows - 1) / kBandRows, 1);
        return run(kernel, job_.units, kGrain);
    }
    float find_amax() const {
        if (job_.rotation != 0) return run(amax_kernel(true));
        const int64_t rows = job_.transposed ? job_.cols : job_.rows;
        return run(amax_kernel(false), rows, std::max<int64_t>(1, kGrain * kMaxUnit / job_.stride));
    }

    void check(float largest) const {
        if (!is_finite(largest)) fail_not_finite(x_, options_.name);
    }

    // An amax that the producer of x knows.
    const float* known_amax() const { return job_.rotation == 0 ? options_.known_amax : nullptr; }

    float scaling_amax() const {
        if (spec_.tensor == TensorScale::none) return job_.tensor.rule.reach;
        if (spec_.tensor == TensorScale::delayed && options_.previous_amax > 0.0f)
            return options_.previous_amax;
        if (known_amax() != nullptr) return *known_amax();
        const float amax = find_amax();
        check(amax);
        return amax;
    }

    void report(float largest) const {
        check(largest);
        if (options_.amax != nullptr) *options_.amax = known_amax() != nullptr ? *known_amax() : largest;
    }

    bool quantize_mxfp4(RangeKernel kernel) const {
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

    const QuantSpec& spec_;
    const Tensor& x_;
    QuantizedMatrix& out_;
    const QuantizeOptions& options_;
    QuantizeJob job_;
};

RangeKernel kernel_of(const QuantSpec& spec) {
    if (spec.block == Block::b1x32 && spec.format == Format::mxfp4) return mxfp4_kernel(spec);
    if (spec.format != Format::nvfp4 || spec.outer_1x128) return nullptr;
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
