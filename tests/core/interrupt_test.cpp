#include "core/interrupt.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <csignal>

#include "core/parallel.h"

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

bool takes_interrupts() {
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
    return sigismember(&blocked, SIGINT) == 0;
}

// A signal in the middle of a kernel of the GEMM library must not find that kernel's stack.
TEST(Interrupt, ComesOnOneThreadAndOnAStackOfItsOwn) {
    const int before = thread_count();
    set_thread_count(3);
    {
        const InterruptScope scope;
        struct sigaction action {};
        stack_t stack{};
        sigaction(SIGINT, nullptr, &action);
        sigaltstack(nullptr, &stack);
        EXPECT_NE(action.sa_flags & SA_ONSTACK, 0);
        EXPECT_EQ(stack.ss_flags & SS_DISABLE, 0);
        std::atomic<int> others = 0, that_take_it = 0;
#pragma omp parallel
        if (omp_get_thread_num() != 0) {
            ++others;
            that_take_it += takes_interrupts() ? 1 : 0;
        }
        EXPECT_EQ(others, 2);
        EXPECT_EQ(that_take_it, 0);
        EXPECT_TRUE(takes_interrupts());

        std::raise(SIGINT);
        EXPECT_TRUE(stop_requested());
        clear_stop_request();
    }
    std::atomic<int> that_take_it = 0;
#pragma omp parallel
    if (omp_get_thread_num() != 0) that_take_it += takes_interrupts() ? 1 : 0;
    EXPECT_EQ(that_take_it, 2);
    set_thread_count(before);
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
