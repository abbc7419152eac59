#include "train/self_check.h"

#include <gtest/gtest.h>

#include <limits>

namespace nibble {
namespace {

std::string refusal(std::vector<KernelCheck> checks) {
    try {
        require_well(checks);
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

TEST(SelfCheck, MeasuresDifferencesByTheLargestNumber) {
    using Numbers = std::vector<double>;
    EXPECT_EQ(largest_difference(Numbers{}, Numbers{}), 0);
    EXPECT_EQ(largest_difference(Numbers{0, 0}, Numbers{0, 0}), 0);
    EXPECT_EQ(largest_difference(Numbers{1, -4}, Numbers{1, -4}), 0);
    EXPECT_EQ(largest_difference(Numbers{1, -4}, Numbers{2, -4}), 0.25);
    EXPECT_EQ(largest_difference(Numbers{0, 0}, Numbers{0, 1}), std::numeric_limits<double>::infinity());
    for (const double bad :
         {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        EXPECT_EQ(largest_difference(Numbers{1, bad}, Numbers{1, 2}),
                  std::numeric_limits<double>::infinity());
        EXPECT_EQ(largest_difference(Numbers{1, 2}, Numbers{1, bad}),
                  std::numeric_limits<double>::infinity());
        EXPECT_EQ(largest_difference(Numbers{bad}, Numbers{bad}), std::numeric_limits<double>::infinity());
    }
}

TEST(SelfCheck, LetsTrainingBeginWhereAllIsWithinRounding) {
    EXPECT_EQ(refusal({}), "");
    EXPECT_EQ(refusal({{"rmsnorm, bf16", 0, 0.01}, {"swiglu, bf16", 0.01, 0.01}}), "");
}

TEST(SelfCheck, NamesTheFirstKernelThatIsOffInOneLine) {
    const std::string found =
        refusal({{"rmsnorm, bf16", 0, 0.01}, {"swiglu, bf16", 0.3, 0.01}, {"adamw", 1, 0}});
    EXPECT_TRUE(found.starts_with("swiglu, bf16: ")) << found;
    EXPECT_NE(found.find("3.0e-01"), std::string::npos) << found;
    EXPECT_EQ(found.find('\n'), std::string::npos);
}

TEST(SelfCheck, TakesNoNaN) {
    EXPECT_NE(refusal({{"attention, bf16", std::numeric_limits<double>::infinity(), 0.01}}), "");
    EXPECT_NE(refusal({{"attention, bf16", std::numeric_limits<double>::quiet_NaN(), 0.01}}), "");
}

}  // namespace
}  // namespace nibble
