#include "core/interrupt.h"

#include <gtest/gtest.h>

#include <csignal>

namespace nibble {
namespace {

TEST(Interrupt, TheFirstSignalOnlySetsTheFlag) {
    clear_stop_request();
    {
        const InterruptScope scope;
        EXPECT_FALSE(stop_requested());
        std::raise(SIGINT);
        EXPECT_TRUE(stop_requested());
    }
    clear_stop_request();
    EXPECT_FALSE(stop_requested());
}

TEST(InterruptDeathTest, TheSecondSignalEndsTheProcess) {
    EXPECT_EXIT(
        {
            const InterruptScope scope;
            std::raise(SIGTERM);
            std::raise(SIGINT);
        },
        testing::KilledBySignal(SIGINT), "");
}

TEST(InterruptDeathTest, OutsideAScopeASignalEndsTheProcess) {
    EXPECT_EXIT(
        {
            { const InterruptScope scope; }
            std::raise(SIGINT);
        },
        testing::KilledBySignal(SIGINT), "");
}

}  // namespace
}  // namespace nibble
