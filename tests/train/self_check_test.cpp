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
