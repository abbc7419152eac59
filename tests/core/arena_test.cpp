#include "core/arena.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Arena, PlansTheHighWaterMarkAndThenServesTheSameCalls) {
    Arena arena;
    auto step = [&arena] {
        const ArenaScope outer(arena);
        arena.allocate(DType::f32, {16});
        {
            const ArenaScope inner(arena);
            arena.allocate(DType::u8, {100});
        }
        arena.allocate(DType::bf16, {8});
    };
    step();
    EXPECT_EQ(arena.peak(), 64 + 100);
    arena.commit();
    EXPECT_NO_THROW(step());
    EXPECT_EQ(arena.used(), 0);
}

TEST(Arena, RefusesWhatThePlanMissed) {
    Arena arena(64);
    arena.allocate(DType::f32, {16});
    EXPECT_THROW(arena.allocate(DType::u8, {1}), Error);
}

}  // namespace
}  // namespace nibble
