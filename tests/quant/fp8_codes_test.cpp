// FP8 matrices that are made of other matrices' codes.
#include "quant/fp8_codes.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/quantized.h"
#include "support/samples.h"

namespace nibble {
namespace {

using test::Quantized;

class Fp8Codes : public testing::Test {
  protected:
    std::vector<float> values_of(const QuantizedMatrix& q) {
        std::vector<float> values(static_cast<size_t>(q.rows * q.padded_cols));
        dequantize(context_, q, view_of(values, {q.rows, q.padded_cols}));
        return values;
    }
    // An MXFP4 matrix of one row of blocks, each with all codes twice, under these scale bytes.
    QuantizedMatrix blocks_with(const std::vector<uint8_t>& bytes) {
        const auto count = static_cast<int64_t>(bytes.size());
        const QuantizedMatrix q = allocate_quantized(arena_, parse_spec("mxfp4"), 1, count * kMxfp4Block);
        for (int64_t i = 0; i < q.codes.count(); ++i)
            q.codes.as<uint8_t>()[i] = static_cast<uint8_t>(i % 8 * 2 | (i % 8 * 2 + 1) << 4);
        std::ranges::copy(bytes, q.scales.as<uint8_t>());
        *q.tensor_scale_ptr() = 1.0f;
        return q;
    }

    Arena arena_{4 << 20};
    Context context_{arena_};
};

constexpr Element kElements[] = {Element::e4m3, Element::e5m2};

TEST_F(Fp8Codes, TransposedAreTheSameBytesWithRowsPaddedByZeros) {
    constexpr int64_t kRows = 21, kCols = 40;
    std::vector<float> values = test::normals(kRows * kCols);
    const Quantized q("fp8:e5m2 tensor", view_of(values, {kRows, kCols}));
    const QuantizedMatrix t = transposed_codes(context_, q.matrix());
    ASSERT_EQ(t.rows, q.cols());
    ASSERT_EQ(t.padded_cols, 32);
    EXPECT_EQ(*t.tensor_scale_ptr(), q.tensor_scale());
    for (int64_t r = 0; r < t.rows; ++r) {
        for (int64_t c = 0; c < t.padded_cols; ++c)
            ASSERT_EQ(t.codes.as<uint8_t>()[r * t.padded_cols + c], c < kRows ? q.code(c, r) : 0)
                << r << " " << c;
    }
}

TEST_F(Fp8Codes, OfMatricesWithOtherScalesAreRefused) {
    std::vector<float> values = test::normals(64);
    const Tensor x = view_of(values, {2, 32});
    EXPECT_THROW(transposed_codes(context_, Quantized("fp8:e4m3 row", x).matrix()), Error);
    EXPECT_THROW(transposed_codes(context_, Quantized("mxfp8", x).matrix()), Error);
    EXPECT_THROW(folded_to_fp8(context_, Quantized("nvfp4", x).matrix(), Element::e4m3), Error);
    EXPECT_THROW(folded_to_fp8(context_, Quantized("mxfp4", x).matrix(), Element::int4), Error);
}

// Against the list of all numbers of a format: a code is a nearest number, and exact if and only if the value
// is one of them.
TEST_F(Fp8Codes, FoldedElementsAreTheNearestAndKnowWhetherTheyAreExact) {
    for (const Element element : kElements) {
        const auto [top, exact] = fold_range(element);
        std::vector<double> numbers;
        const int codes = element == Element::e4m3 ? 0x7f : 0x7c;  // from here on infinity and NaN
        for (int code = 0; code < codes; ++code)
            for (const int sign : {0, 0x80})
                numbers.push_back(element_decode(element, static_cast<uint8_t>(code | sign)));
        for (int below = 0; below < 255; ++below) {
            bool all_are_exact = true;
            for (uint8_t code = 0; code < 16; ++code) {
                const double value = std::ldexp(double{e2m1_decode(code)}, top - below);
                double distance = INFINITY;
                for (const double number : numbers) distance = std::min(distance, std::fabs(number - value));
                const uint8_t folded = folded_code(element, code, below);
                EXPECT_EQ(std::fabs(double{element_decode(element, folded)} - value), distance)
                    << below << " " << int{code};
                EXPECT_EQ((folded & 0x80) != 0, (code & 8) != 0);
                const bool is_exact = is_folded_exactly(element, code, below);
                EXPECT_EQ(is_exact, distance == 0) << below << " " << int{code};
                all_are_exact = all_are_exact && is_exact;
            }
            EXPECT_EQ(all_are_exact, below <= exact) << below;
        }
    }
}

TEST_F(Fp8Codes, FoldedHaveTheValuesOfTheMatrixWhereItsScalesLieCloseEnough) {
    constexpr int64_t kRows = 24, kCols = 160;
    for (const Element element : kElements) {
        for (const int spread : {1, fold_range(element).exact}) {
            for (const char* spec :
                 {"mxfp4", "mxfp4 scale=three-quarters", "mxfp4 scale=rceil", "mxfp4 32x32"}) {
                std::vector<float> values = test::normals(kRows * kCols, 3);
                for (size_t i = 0; i < values.size(); ++i)  // magnitudes of a block are alike
                    values[i] = std::ldexp(values[i] < 0 ? -1.3f : 0.9f,
                                           -static_cast<int>(i / kMxfp4Block * 7) % spread);
                const Quantized q(spec, view_of(values, {kRows, kCols}));
                const FoldedMatrix folded = folded_to_fp8(context_, q.matrix(), element);
                EXPECT_EQ(*folded.rounded_blocks(), 0u) << spec << ", " << spread;
                EXPECT_EQ(values_of(folded.codes), q.values()) << spec << ", " << spread;
            }
        }
    }
}

TEST_F(Fp8Codes, FoldedHaveAPowerOfTwoForEachRow) {
    constexpr int64_t kCols = 96;
    const std::vector<float> normals = test::normals(kCols, 4);
    for (const Element element : kElements) {
        std::vector<float> values;
        for (const float size : {0x1p-60f, 0x1p-20f, 0x1p20f, 0.0f})
            for (const float x : normals) values.push_back(x * size);
        const Quantized q("mxfp4", view_of(values, {4, kCols}));
        const FoldedMatrix folded = folded_to_fp8(context_, q.matrix(), element);
        EXPECT_EQ(*folded.rounded_blocks(), 0u);
        EXPECT_EQ(values_of(folded.codes), q.values());
        const auto scales = folded.codes.fp32_scales.span<float>();
        EXPECT_EQ(scales[1], 0x1p40f * scales[0]);
        EXPECT_EQ(scales[2], 0x1p40f * scales[1]);
    }
}

TEST_F(Fp8Codes, FoldedCountTheBlocksThatTheyRound) {
    for (const Element element : kElements) {
        const auto [top, exact] = fold_range(element);
        const auto byte = [&, exact = exact](int below_exact) {
            return static_cast<uint8_t>(200 - exact - below_exact);
        };
        const QuantizedMatrix q = blocks_with({200, byte(0), byte(1), 195, byte(9), 190, 0});
        const FoldedMatrix folded = folded_to_fp8(context_, q, element);
        EXPECT_EQ(*folded.rounded_blocks(), 3u);
        const std::vector<float> expected = values_of(q), found = values_of(folded.codes);
        const double largest = std::ldexp(6.0, 200 - 127),
                     bound = element == Element::e4m3 ? 0x1p-18 : 0x1p-32;
        for (size_t i = 0; i < expected.size(); ++i)
            EXPECT_LE(std::fabs(double{found[i]} - double{expected[i]}), bound * largest) << i;
    }
}

TEST_F(Fp8Codes, FoldedBlocksOfZerosAreExactWhateverTheirScale) {
    const QuantizedMatrix q = blocks_with({200, 0, 100});
    std::fill_n(q.codes.as<uint8_t>() + kMxfp4Block / 2, kMxfp4Block / 2, uint8_t{0x80});  // 0 and -0
    std::fill_n(q.codes.as<uint8_t>() + kMxfp4Block, kMxfp4Block / 2, uint8_t{0x08});
    const FoldedMatrix folded = folded_to_fp8(context_, q, Element::e4m3);
    EXPECT_EQ(*folded.rounded_blocks(), 0u);
    EXPECT_EQ(folded.codes.codes.as<uint8_t>()[kMxfp4Block], 0x00);
    EXPECT_EQ(folded.codes.codes.as<uint8_t>()[kMxfp4Block + 1], 0x80);
}

TEST_F(Fp8Codes, FoldedTensorsOfTheSmallestAndLargestScalesKeepTheirValues) {
    for (const Element element : kElements) {
        for (const uint8_t byte : std::initializer_list<uint8_t>{0, 1, 10, 250, 252}) {
            const QuantizedMatrix q = blocks_with({byte, byte});
            const FoldedMatrix folded = folded_to_fp8(context_, q, element);
            EXPECT_EQ(*folded.rounded_blocks(), 0u) << int{byte};
            EXPECT_EQ(values_of(folded.codes), values_of(q)) << int{byte};
            EXPECT_GE(folded.codes.fp32_scales.as<float>()[0], 0x1p-126f);
        }
    }
}

}  // namespace
}  // namespace nibble
