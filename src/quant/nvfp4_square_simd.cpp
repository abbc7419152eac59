// NVFP4 in blocks of 16x16: a lane is a tile, and a step is one band of 16 rows over kLanes tiles.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/nvfp4_square_simd.cpp"
#include "quant/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
// clang-format on
#include <hwy/highway.h>

#include "quant/kernels.h"
#include "quant/nvfp4_group-inl.h"
#include "quant/steps-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
#if NIBBLE_HAS_LANES
namespace {

constexpr int kTileRows = 16;
constexpr int kTileSize = kNvfp4Group * kLanes;  // floats of one row of a step

// The error of a block: its rows' errors by a binary tree, r with r + 8, + 4, + 2, + 1.
template <Kind kKind>
HWY_INLINE VF block_error(VF (&rows)[kTileRows]) {
    for (int half = kTileRows / 2; half > 0; half /= 2) {
        for (int r = 0; r < half; ++r) {
            rows[r] =
                kKind == Kind::largest ? hn::Max(rows[r], rows[r + half]) : hn::Add(rows[r], rows[r + half]);
        }
    }
    return rows[0];
}

template <Kind kKind, Rounding kRounding>
HWY_INLINE Scale block_scale(const QuantizeJob& job, const float* tiles, int rows, int64_t first, VF amax) {
    if constexpr (kKind == Kind::amax) return e4m3_round(hn::Mul(amax, f32(job.tensor.block_factor)));
    const Candidates c = four_six_candidates(amax, job.tensor);
    VF six[kTileRows], four[kTileRows];
    for (int r = 0; r < kTileRows; ++r) {
        six[r] = four[r] = hn::Zero(F32());
        if (r >= rows) continue;
        Rounder<kRounding> rounder;
        rounder.draw(job, first * kNvfp4Group + r * job.padded_cols);
        six[r] = encode<kKind>(tiles + r * kTileSize, c.six.value, job.tensor, rounder).measure;
        four[r] = encode<kKind>(tiles + r * kTileSize, c.four.value, job.tensor, rounder).measure;
    }
    const VF error_six = block_error<kKind>(six), error_four = block_error<kKind>(four);
    const auto takes_four = hn::Lt(error_four, error_six);
    return {select_bits(takes_four, c.four.byte, c.six.byte), select(takes_four, c.four.value, c.six.value)};
}

// A range of bands.
template <Kind kKind, Rounding kRounding>
uint32_t quantize_bands(const QuantizeJob& job, int64_t begin, int64_t end) {
    alignas(64) float tiles[kTileRows * kTileSize];
    alignas(64) uint8_t codes[kLanes * 8], bytes[kLanes];
    const int64_t units = job.padded_cols / kNvfp4Group;  // in a row
    VU largest = hn::Zero(U32());
    for (int64_t band = begin; band < end; ++band) {
        const int64_t row = band * kTileRows;
        const int rows = static_cast<int>(std::min<int64_t>(kTileRows, job.rows - row));
        for (int64_t col = 0; col < units; col += kLanes) {
            const int64_t first = row * units + col;
            Step step;
            VU bits = hn::Zero(U32());
            for (int r = 0; r < rows; ++r) {
                step.load(job, first + r * units, (row + r + 1) * units, tiles + r * kTileSize);
                bits = hn::Max(bits, largest_bits<kNvfp4Group>(tiles + r * kTileSize));
            }
            largest = hn::Max(largest, bits);
            const Scale scale = block_scale<kKind, kRounding>(job, tiles, rows, first, float_of(bits));
            store_bytes(scale.byte, bytes);
            for (int r = 0; r < rows; ++r) {
                const int64_t unit = first + r * units;
                Rounder<kRounding> rounder;
                rounder.draw(job, unit * kNvfp4Group);
                const Encoded e = encode<Kind::amax>(tiles + r * kTileSize, scale.value, job.tensor, rounder);
                hn::StoreInterleaved2(e.words[0], e.words[1], U32(), reinterpret_cast<uint32_t*>(codes));
                std::memcpy(job.codes + unit * 8, codes, static_cast<size_t>(step.count * 8));
                std::memcpy(job.scales + unit, bytes, static_cast<size_t>(step.count));
            }
        }
    }
    return largest_lane(largest);
}

template <Kind kKind>
RangeKernel of_rounding(Rounding round) {
    if (round == Rounding::nearest) return quantize_bands<kKind, Rounding::nearest>;
    return round == Rounding::stochastic ? quantize_bands<kKind, Rounding::stochastic> : nullptr;
}

}  // namespace

RangeKernel choose_square(const QuantSpec& spec) {
    if (spec.rotation != Rotation::none || spec.correct != Correction::none ||
        spec.tensor == TensorScale::posthoc) {
        return nullptr;
    }
    switch (spec.scale) {
        case ScaleRule::amax:
            return of_rounding<Kind::amax>(spec.round);
        case ScaleRule::four_six_mse:
            return of_rounding<Kind::mse>(spec.round);
        case ScaleRule::four_six_mae:
            return of_rounding<Kind::mae>(spec.round);
        case ScaleRule::four_six_amax:
            return of_rounding<Kind::largest>(spec.round);
        default:
            return nullptr;
    }
}

#else

RangeKernel choose_square(const QuantSpec&) { return nullptr; }

#endif  // NIBBLE_HAS_LANES
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {
HWY_EXPORT(choose_square);
RangeKernel square_kernel(const QuantSpec& spec) { return HWY_DYNAMIC_DISPATCH(choose_square)(spec); }
}  // namespace nibble
#endif
