// Operands from packed codes: each scale byte has a table of its 16 operands, code * scale in BF16, and a
// code looks up its upper and its lower byte.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/dequantize_simd.cpp"
#include "quant/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
// clang-format on
#include <hwy/highway.h>

#include "quant/kernels.h"
#include "quant/transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
#if NIBBLE_HAS_LANES
namespace {

constexpr int kGroup = 16;  // columns that one look-up serves
using Bytes = hn::Full128<uint8_t>;
using Halves = hn::Full128<uint16_t>;

// One group: 8 bytes of codes to 16 operands.
HWY_INLINE void look_up(const OperandTables& tables, const uint8_t* codes, uint8_t scale, uint16_t* to) {
    const Bytes d;
    const Halves d16;
    const hn::Half<Bytes> half;
    const auto packed = hn::ZeroExtendVector(d, hn::LoadU(half, codes));
    const auto nibble = hn::Set(d, uint8_t{15});
    const auto upper = hn::And(hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(d16, packed))), nibble);
    const auto code = hn::InterleaveLower(d, hn::And(packed, nibble), upper);
    const auto low = hn::TableLookupBytes(hn::Load(d, tables.low[scale]), code);
    const auto high = hn::TableLookupBytes(hn::Load(d, tables.high[scale]), code);
    hn::StoreU(hn::BitCast(d16, hn::InterleaveLower(d, low, high)), d16, to);
    hn::StoreU(hn::BitCast(d16, hn::InterleaveUpper(d, low, high)), d16, to + 8);
}

// 16 columns of a row, from column `first`.
struct Source {
    explicit Source(const QuantizedMatrix& q)
        : tables(operand_tables(q.spec.format)),
          codes(q.codes.as<uint8_t>()),
          scales(q.scales.as<uint8_t>()),
          cols(q.padded_cols),
          groups_in_block(q.spec.block_size() / kGroup) {}

    const OperandTables& tables;
    const uint8_t *codes, *scales;
    int64_t cols;
    int groups_in_block;

    HWY_INLINE void read(int64_t row, int64_t col, uint16_t* to) const {
        const int64_t group = (row * cols + col) / kGroup;
        look_up(tables, codes + group * (kGroup / 2), scales[group / groups_in_block], to);
    }
};

HWY_INLINE void widen(const uint16_t* from, int64_t count, float* to) {
    const hn::Rebind<uint16_t, F32> half;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        hn::StoreU(float_of(hn::ShiftLeft<16>(hn::PromoteTo(U32(), hn::LoadU(half, from + i)))), F32(),
                   to + i);
    }
    for (; i < count; ++i) to[i] = std::bit_cast<float>(static_cast<uint32_t>(from[i]) << 16);
}

void dequantize_rows(const QuantizedMatrix& q, const Tensor& out, int64_t begin, int64_t end) {
    const Source source(q);
    alignas(16) uint16_t values[kGroup];
    for (int64_t row = begin; row < end; ++row) {
        for (int64_t col = 0; col < source.cols; col += kGroup) {
            if (out.dtype == DType::bf16) {
                source.read(row, col, static_cast<uint16_t*>(out.data) + row * source.cols + col);
            } else {
                source.read(row, col, values);
                widen(values, kGroup, static_cast<float*>(out.data) + row * source.cols + col);
            }
        }
    }
}

// Blocks of 32 columns go through a buffer, and from there transposed to the output.
void dequantize_columns(const QuantizedMatrix& q, const Tensor& out, int64_t begin, int64_t end) {
    constexpr int kRows = kBlockRows<uint16_t>, kCols = kBlockCols<uint16_t>;
    const Source source(q);
    alignas(64) uint16_t block[kRows * kCols], columns[kRows * kCols];
    for (int64_t row = begin; row < end; row += kRows) {
        const int height = static_cast<int>(std::min<int64_t>(kRows, end - row));
        for (int64_t col = 0; col < source.cols; col += kCols) {
            const int width = static_cast<int>(std::min<int64_t>(kCols, source.cols - col));
            for (int r = 0; r < height; ++r) {
                for (int c = 0; c < width; c += kGroup) source.read(row + r, col + c, block + r * kCols + c);
            }
            if (out.dtype == DType::bf16) {
                transpose_block(block, kCols, height, width,
                                static_cast<uint16_t*>(out.data) + col * q.rows + row, q.rows);
            } else {
                transpose_block(block, kCols, height, width, columns, kRows);
                for (int c = 0; c < width; ++c) {
                    widen(columns + c * kRows, height,
                          static_cast<float*>(out.data) + (col + c) * q.rows + row);
                }
            }
        }
    }
}

}  // namespace

DequantizeKernel choose_dequantize(bool transposed) {
    return transposed ? dequantize_columns : dequantize_rows;
}

#else

DequantizeKernel choose_dequantize(bool) { return nullptr; }

#endif  // NIBBLE_HAS_LANES
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

OperandTables::OperandTables(Format format) {
    for (int scale = 0; scale < 256; ++scale) {
        for (int code = 0; code < 16; ++code) {
            const auto c = static_cast<uint8_t>(code), s = static_cast<uint8_t>(scale);
            const float operand = format == Format::mxfp4 ? mxfp4_operand(c, s) : nvfp4_operand(c, s);
            const uint32_t bits = std::bit_cast<uint32_t>(operand) >> 16;  // what BF16 drops is zero
            low[scale][code] = static_cast<uint8_t>(bits);
            high[scale][code] = static_cast<uint8_t>(bits >> 8);
        }
    }
}

const OperandTables& operand_tables(Format format) {
    static const OperandTables nvfp4(Format::nvfp4), mxfp4(Format::mxfp4);
    return format == Format::mxfp4 ? mxfp4 : nvfp4;
}

HWY_EXPORT(choose_dequantize);
DequantizeKernel dequantize_kernel(bool transposed) {
    return HWY_DYNAMIC_DISPATCH(choose_dequantize)(transposed);
}

}  // namespace nibble
#endif
