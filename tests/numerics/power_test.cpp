#include "numerics/power.h"

#include <gtest/gtest.h>

#include "numerics/philox.h"

namespace nibble {
namespace {

TEST(PortablePower, IsThePowerToThirteenDigits) {
    for (uint64_t i = 0; i < 20'000; ++i) {
        const Philox draw = philox_draw(1, Purpose::sampling, i);
        const double x = std::ldexp(1 + draw.word[0] * 0x1p-32, static_cast<int>(draw.word[1] % 64) - 40);
        const double p = draw.word[2] * 0x1p-31 - 1;  // from -1 to 1
        const double expected = std::pow(x, p);
        ASSERT_NEAR(portable_power(x, p), expected, 1e-13 * expected) << x << " to the " << p;
    }
}

TEST(PortablePower, OfOneOrToTheZerothIsOne) {
    EXPECT_EQ(portable_power(1.0, -0.8), 1.0);
    EXPECT_EQ(portable_power(0.3, 0.0), 1.0);
}

}  // namespace
}  // namespace nibble
