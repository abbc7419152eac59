// E2M1, E4M3, E8M0 and BF16 against slow independent definitions, over all codes and all BF16 values.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "numerics/numerics.h"
#include "support/measured.h"

namespace nibble {
namespace {

const std::vector<double> kE2M1Grid = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

// All non-negative E4M3 numbers, from the definition of the format.
std::vector<double> e4m3_grid() {
    std::vector<double> grid;
    for (int byte = 0; byte < 127; ++byte) {
        const int exponent = byte / 8, mantissa = byte % 8;
        grid.push_back(exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10));
    }
    return grid;
}

enum class Ties { even, away, down };

// The index of the grid point nearest to a >= 0, by looking at all of them.
int slow_nearest(const std::vector<double>& grid, double a, Ties ties) {
    a = std::min(a, grid.back());  // saturating
    int best = 0;
    for (int i = 1; i < static_cast<int>(grid.size()); ++i) {
        const double mine = std::fabs(a - grid[i]), other = std::fabs(a - grid[best]);
        const bool wins_tie = ties == Ties::away || (ties == Ties::even && i % 2 == 0);
        if (mine < other || (mine == other && wins_tie)) best = i;
    }
    return best;
}

// Calls body(value) for every finite BF16 number.
template <typename Body>
void for_each_bf16(Body&& body) {
    for (int bits = 0; bits < 65536; ++bits) {
        const float value = bf16_decode({static_cast<uint16_t>(bits)});
        if (std::isfinite(value)) body(value);
    }
}

TEST(E2M1, T01_DecodesAllSixteenCodes) {
    for (int code = 0; code < 16; ++code) {
        const double expected = code < 8 ? kE2M1Grid[code] : -kE2M1Grid[code - 8];
        EXPECT_EQ(e2m1_decode(static_cast<uint8_t>(code)), expected);
    }
    EXPECT_TRUE(std::signbit(e2m1_decode(8)));
}

TEST(E2M1, NearestRoundingsEqualASearchOfTheGrid) {
    for_each_bf16([](float v) {
        const int sign = std::signbit(v) ? 8 : 0;
        const double a = std::fabs(v);
        ASSERT_EQ(e2m1_nearest(v), sign + slow_nearest(kE2M1Grid, a, Ties::even)) << v;
        ASSERT_EQ(e2m1_nearest_away(v), sign + slow_nearest(kE2M1Grid, a, Ties::away)) << v;
        ASSERT_EQ(e2m1_nearest_down(v), sign + slow_nearest(kE2M1Grid, a, Ties::down)) << v;
    });
}

TEST(E2M1, RoundsNeighboursOfTiesToTheirOwnSides) {
    for (int low = 0; low < 7; ++low) {
        const float tie = static_cast<float>((kE2M1Grid[low] + kE2M1Grid[low + 1]) / 2);
        for (const auto round : {e2m1_nearest, e2m1_nearest_away, e2m1_nearest_down}) {
            EXPECT_EQ(round(std::nextafter(tie, 0.0f)), low);
            EXPECT_EQ(round(std::nextafter(tie, 9.0f)), low + 1);
        }
    }
}

TEST(E2M1, T01_I03_L01_TiesAreAsPublished) {
    const float ties[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
    const float even[7] = {0, 1, 1, 2, 2, 4, 4}, away[7] = {0.5, 1, 1.5, 2, 3, 4, 6},
                down[7] = {0, 0.5, 1, 1.5, 2, 3, 4};
    for (int i = 0; i < 7; ++i) {
        EXPECT_EQ(e2m1_decode(e2m1_nearest(ties[i])), even[i]);
        EXPECT_EQ(e2m1_decode(e2m1_nearest_away(ties[i])), away[i]);
        EXPECT_EQ(e2m1_decode(e2m1_nearest_down(ties[i])), down[i]);
        EXPECT_EQ(e2m1_decode(e2m1_nearest(-ties[i])), -even[i]);
    }
}

TEST(E2M1, T01_L01_SaturatesAtSix) {
    for (const float v : {6.0f, 7.5f, 1e30f, std::numeric_limits<float>::infinity()}) {
        EXPECT_EQ(e2m1_nearest(v), 7);
        EXPECT_EQ(e2m1_nearest_away(-v), 15);
        EXPECT_EQ(e2m1_nearest_down(v), 7);
        EXPECT_EQ(e2m1_stochastic(v, 0), 7);
        EXPECT_EQ(e2m1_stochastic(-v, 65535), 15);
    }
}

TEST(E2M1, L01_KeepsTheSignOfWhatRoundsToZero) {
    EXPECT_EQ(e2m1_nearest(-0.1f), 8);
    EXPECT_EQ(e2m1_nearest(-0.0f), 8);
    EXPECT_EQ(e2m1_stochastic(-0.0f, 0), 8);
    EXPECT_EQ(e2m1_nearest(0.0f), 0);
}

TEST(E2M1, StochasticRoundingLeavesGridPointsAlone) {
    for (int code = 0; code < 16; ++code) {
        for (int coin = 0; coin < 65536; ++coin) {
            const uint8_t c = static_cast<uint8_t>(code);
            ASSERT_EQ(e2m1_stochastic(e2m1_decode(c), static_cast<uint16_t>(coin)), c);
        }
    }
}

// Over all coins, the mean differs from the value by at most half a coin: 2^-17 of the step.
TEST(E2M1, L02_StochasticRoundingIsUnbiasedOverAllCoins) {
    for (const float v :
         {0.01f, 0.2f, 0.25f, 0.4999f, 0.7f, 1.1f, 1.3f, 1.75f, 2.001f, 2.5f, 3.7f, 4.1f, 5.0f, 5.99f}) {
        int low = 0;
        while (kE2M1Grid[low + 1] < v) ++low;
        const double step = kE2M1Grid[low + 1] - kE2M1Grid[low];
        double sum = 0;
        for (int coin = 0; coin < 65536; ++coin) {
            const uint8_t code = e2m1_stochastic(-v, static_cast<uint16_t>(coin));
            ASSERT_TRUE(code == 8 + low || code == 8 + low + 1) << v;
            sum += e2m1_decode(code);
        }
        EXPECT_NEAR(sum / 65536, -v, step * 0x1p-17 * 1.01) << v;
    }
}

TEST(E4M3, DecodesAllBytes) {
    const std::vector<double> grid = e4m3_grid();
    for (int byte = 0; byte < 127; ++byte) EXPECT_EQ(e4m3_decode(static_cast<uint8_t>(byte)), grid[byte]);
    EXPECT_EQ(grid.back(), 448.0);
}

TEST(E4M3, I05_L03_EncodesEveryNumberToItsOwnByte) {
    for (int byte = 0; byte < 127; ++byte) {
        const float value = e4m3_decode(static_cast<uint8_t>(byte));
        EXPECT_EQ(e4m3_nearest(value), byte);
        EXPECT_EQ(e4m3_floor(value), byte);
        EXPECT_EQ(e4m3_stochastic(value, 0), byte);
        EXPECT_EQ(e4m3_stochastic(value, 65535), byte);
    }
}

TEST(E4M3, NearestEqualsASearchOfTheGrid) {
    const std::vector<double> grid = e4m3_grid();
    for_each_bf16([&](float v) {
        if (std::signbit(v)) return;
        ASSERT_EQ(e4m3_nearest(v), slow_nearest(grid, v, Ties::even)) << v;
    });
}

TEST(E4M3, L03_RoundsTiesToEvenAndTheirNeighboursToTheirOwnSides) {
    const std::vector<double> grid = e4m3_grid();
    for (int low = 0; low < 126; ++low) {
        const float tie = static_cast<float>((grid[low] + grid[low + 1]) / 2);
        EXPECT_EQ(e4m3_nearest(tie), low % 2 == 0 ? low : low + 1);
        EXPECT_EQ(e4m3_nearest(std::nextafter(tie, 0.0f)), low);
        EXPECT_EQ(e4m3_nearest(std::nextafter(tie, 500.0f)), low + 1);
        EXPECT_EQ(e4m3_floor(std::nextafter(static_cast<float>(grid[low + 1]), 0.0f)), low);
    }
}

TEST(E4M3, L03_SaturatesAt448) {
    for (const float v : {448.0f, 464.0f, 480.0f, 1e30f, std::numeric_limits<float>::infinity()}) {
        EXPECT_EQ(e4m3_nearest(v), 0x7e);
        EXPECT_EQ(e4m3_stochastic(v, 0), 0x7e);
    }
}

// Subnormals and the step to the normal numbers included.
TEST(E4M3, I05_StochasticRoundingIsUnbiasedOverAllCoins) {
    const std::vector<double> grid = e4m3_grid();
    for (const float v :
         {0x1p-11f, 0x1.8p-10f, 0x1.5p-7f, 0x1.fep-7f, 0.3f, 1.06f, 18.875653f, 253.44974f, 447.0f}) {
        int low = 0;
        while (grid[low + 1] < v) ++low;
        double sum = 0;
        for (int coin = 0; coin < 65536; ++coin) {
            const uint8_t byte = e4m3_stochastic(v, static_cast<uint16_t>(coin));
            ASSERT_TRUE(byte == low || byte == low + 1) << v;
            sum += e4m3_decode(byte);
        }
        EXPECT_NEAR(sum / 65536, v, (grid[low + 1] - grid[low]) * 0x1p-17 * 1.01) << v;
    }
}

// spec of the format: rounding moves a normal number by a factor in [16/17, 18/17].
TEST(E4M3, I01_NearestMovesNormalNumbersByAtMostOneSeventeenth) {
    double least = 1, most = 1;
    for_each_bf16([&](float v) {
        if (v < 0x1p-6f || v > 448.0f) return;
        const double ratio = e4m3_decode(e4m3_nearest(v)) / double{v};
        least = std::min(least, ratio);
        most = std::max(most, ratio);
    });
    test::expect_at_least("smallest ratio, of all BF16 numbers", 16.0 / 17.0, least);
    test::expect_at_most("largest ratio", 18.0 / 17.0, most);
}

// The magnitudes of an element in the order of their codes, from the definition of its format.
std::vector<double> grid_of(Element element) {
    std::vector<double> grid;
    switch (element) {
        case Element::e2m1:
            return kE2M1Grid;
        case Element::e4m3:
            return e4m3_grid();
        case Element::e5m2:
            for (int code = 0; code < 0x7c; ++code) {  // the upper half of an FP16 number
                const int exponent = code / 4, mantissa = code % 4;
                grid.push_back(exponent == 0 ? std::ldexp(mantissa, -16)
                                             : std::ldexp(4 + mantissa, exponent - 17));
            }
            return grid;
        case Element::int4:
            return {0, 1, 2, 3, 4, 5, 6, 7};
        case Element::log4:
            return {0, 1, 2, 4, 8, 16, 32, 64};
    }
    return grid;
}

class Elements : public testing::TestWithParam<Element> {};

TEST_P(Elements, DecodeTheirGridWithBothSigns) {
    const std::vector<double> grid = grid_of(GetParam());
    const bool is_integer = GetParam() == Element::int4;
    const int sign = GetParam() == Element::int4 ? 16 : 1 << (bits_of(GetParam()) - 1);
    EXPECT_EQ(largest_of(GetParam()), grid.back());
    for (int code = 0; code < static_cast<int>(grid.size()); ++code) {
        EXPECT_EQ(element_decode(GetParam(), static_cast<uint8_t>(code)), grid[code]) << code;
        const int negative = is_integer ? (sign - code) % 16 : sign + code;
        EXPECT_EQ(element_decode(GetParam(), static_cast<uint8_t>(negative)), -grid[code]) << code;
    }
}

TEST_P(Elements, NearestEqualsASearchOfTheGrid) {
    const std::vector<double> grid = grid_of(GetParam());
    // The middle of two powers of two goes up; between 0 and the smallest, down.
    const bool is_log = GetParam() == Element::log4;
    with_element(GetParam(), [&](auto element) {
        for_each_bf16([&](float v) {
            const double a = std::fabs(v);
            const Ties ties = is_log && a > 1 ? Ties::away : Ties::even;
            const double expected = std::copysign(grid[slow_nearest(grid, a, ties)], v);
            ASSERT_EQ(element.decode(element.nearest(v)), expected) << v;
        });
    });
}

TEST_P(Elements, RoundTiesAndTheirNeighboursToTheirOwnSides) {
    const std::vector<double> grid = grid_of(GetParam());
    with_element(GetParam(), [&](auto element) {
        for (size_t i = 0; i + 1 < grid.size(); ++i) {
            const auto tie = static_cast<float>((grid[i] + grid[i + 1]) / 2);
            ASSERT_EQ(element.decode(element.nearest(std::nextafter(tie, 0.0f))), grid[i]) << tie;
            ASSERT_EQ(element.decode(element.nearest(std::nextafter(tie, 1e9f))), grid[i + 1]) << tie;
        }
    });
}

TEST_P(Elements, KeepTheSignOfWhatRoundsToZeroUnlessTheyHaveNone) {
    with_element(GetParam(), [&](auto element) {
        const int sign = GetParam() == Element::int4 ? 0 : 1 << (bits_of(GetParam()) - 1);
        for (const float v : {-0.0f, -1e-9f}) EXPECT_EQ(element.nearest(v), sign);
        EXPECT_EQ(element.stochastic(-0.0f, 0), sign);
    });
}

TEST_P(Elements, StochasticRoundingIsUnbiasedOverAllCoinsAndLeavesGridPointsAlone) {
    const std::vector<double> grid = grid_of(GetParam());
    with_element(GetParam(), [&](auto element) {
        for (size_t i = 0; i < grid.size(); ++i) {
            for (const double sign : {1.0, -1.0}) {
                const auto point = static_cast<float>(sign * grid[i]);
                for (const int coin : {0, 1, 32768, 65535}) {
                    ASSERT_EQ(element.decode(element.stochastic(point, static_cast<uint16_t>(coin))), point);
                }
                if (i + 1 == grid.size()) continue;
                const double step = grid[i + 1] - grid[i];
                const auto v = static_cast<float>(sign * (grid[i] + 0.3 * step));
                double sum = 0;
                for (int coin = 0; coin < 65536; ++coin) {
                    sum += double{element.decode(element.stochastic(v, static_cast<uint16_t>(coin)))};
                }
                ASSERT_NEAR(sum / 65536, v, step * 0x1p-17) << v;
            }
        }
        EXPECT_EQ(element.decode(element.stochastic(1e30f, 65535)), grid.back());
    });
}

INSTANTIATE_TEST_SUITE_P(All, Elements,
                         testing::Values(Element::e2m1, Element::e4m3, Element::e5m2, Element::int4,
                                         Element::log4));

// The largest element times the scale: the smallest power of two, or the one below it, that reaches amax.
TEST(Mxfp8, ScalesRoundAsTheirNamesSay) {
    for (const Element element : {Element::e4m3, Element::e5m2}) {
        const Mxfp8Rule rule = mxfp8_rule(element);
        const double largest = largest_of(element), power = std::ldexp(1.0, rule.exponent);
        for (const float amax :
             {1.0f, 1.5f, 1.74f, 1.76f, 1.9f, 1.99f, 448.0f, 449.0f, 57344.0f, 3e-9f, 7e12f}) {
            const auto exponent = [&](uint8_t byte) { return std::log2(double{e8m0_decode(byte)}); };
            EXPECT_EQ(exponent(mxfp8_rceil(rule, amax)), std::ceil(std::log2(amax / largest))) << amax;
            EXPECT_EQ(exponent(mxfp8_floor(rule, amax)), std::floor(std::log2(amax / power))) << amax;
            EXPECT_EQ(exponent(mxfp8_ceil(rule, amax)), std::ceil(std::log2(amax / power))) << amax;
        }
    }
    // even: up from 1.9375 (four bits: the middle of 1.875 and 2), for E5M2 from 1.875.
    EXPECT_EQ(mxfp8_even(mxfp8_rule(Element::e4m3), 1.93f), 127 - 8);
    EXPECT_EQ(mxfp8_even(mxfp8_rule(Element::e4m3), 1.9375f), 127 - 7);
    EXPECT_EQ(mxfp8_even(mxfp8_rule(Element::e5m2), 1.87f), 127 - 15);
    EXPECT_EQ(mxfp8_even(mxfp8_rule(Element::e5m2), 1.875f), 127 - 14);
}

// The clamp of scale bytes keeps every operand exact in BF16.
TEST(Mxfp8, OperandsAreExactInBf16) {
    for (const Element element : {Element::e4m3, Element::e5m2}) {
        const Mxfp8Rule rule = mxfp8_rule(element);
        for (const float amax : {0x1p-149f, 0x1p-126f, 1e-30f, 1.0f, 3.4e38f}) {
            const float scale = e8m0_decode(mxfp8_rceil(rule, amax));
            for (int code = 0; code < 128; ++code) {
                const float value = element_decode(element, static_cast<uint8_t>(code));
                if (value > rule.largest) continue;
                ASSERT_TRUE(std::isfinite(value * scale)) << amax;
                ASSERT_EQ(round_to_bf16(value * scale), value * scale) << amax;
                ASSERT_EQ(value * scale / scale, value) << amax;
            }
        }
    }
}

TEST(E8M0, T01_DecodesAllBytes) {
    for (int byte = 0; byte < 255; ++byte) {
        EXPECT_EQ(e8m0_decode(static_cast<uint8_t>(byte)), std::ldexp(1.0, byte - 127));
    }
}

TEST(E8M0, ExponentsAreTheFloorOfTheLogarithm) {
    for_each_bf16([](float v) {
        if (v < 0x1p-126f) return;
        ASSERT_EQ(exponent_of(v), std::ilogb(v)) << v;
        ASSERT_LE(power_of_two(exponent_of(v)), v);
    });
    EXPECT_EQ(exponent_of(0x1p-140f), -127);
    EXPECT_EQ(exponent_of(0.0f), -127);
}

TEST(BF16, AllCodesRoundTrip) {
    for (int bits = 0; bits < 65536; ++bits) {
        const Bf16 x{static_cast<uint16_t>(bits)};
        const float value = bf16_decode(x);
        if (std::isnan(value)) {
            EXPECT_TRUE(std::isnan(round_to_bf16(value)));
        } else {
            EXPECT_EQ(bf16_encode(value), x);
        }
    }
}

TEST(BF16, RoundsToNearestWithTiesToEven) {
    for (int bits = 0; bits < 0x7f80; ++bits) {
        const uint16_t low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
        const float tie = std::bit_cast<float>(static_cast<uint32_t>(bits) << 16 | 0x8000u);
        ASSERT_EQ(bf16_encode(tie).bits, bits % 2 == 0 ? low : high);
        ASSERT_EQ(bf16_encode(std::nextafter(tie, 0.0f)).bits, low);
        ASSERT_EQ(bf16_encode(std::nextafter(tie, std::numeric_limits<float>::infinity())).bits, high);
        ASSERT_EQ(bf16_encode(-tie).bits, bf16_encode(tie).bits | 0x8000);
    }
}

TEST(Operands, CodeTimesScaleIsExactInBf16) {
    for (int code = 0; code < 16; ++code) {
        const uint8_t c = static_cast<uint8_t>(code);
        for (int byte = 0; byte < 127; ++byte) {
            const float value = nvfp4_operand(c, static_cast<uint8_t>(byte));
            ASSERT_EQ(round_to_bf16(value), value);
        }
        for (int byte = 0; byte <= 252; ++byte) {
            const float value = mxfp4_operand(c, static_cast<uint8_t>(byte));
            ASSERT_EQ(round_to_bf16(value), value);
            ASSERT_TRUE(std::isfinite(value));
        }
    }
}

}  // namespace
}  // namespace nibble
