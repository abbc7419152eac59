// A choice between two pieces of work, on a CPU.
#include "core/choice.h"

#include <gtest/gtest.h>

#include <string>

namespace nibble {
namespace {

TEST(Choice, IsMadeByEitherNumberAndCounted) {
    Arena arena(1 << 10);
    Context context{arena};
    uint32_t first = 0, second = 0, counted = 0;
    const auto chosen = [&] {
        std::string done;
        choose(
            context, &first, &second, &counted, [&] { done += "if any"; }, [&] { done += "otherwise"; });
        return done;
    };
    EXPECT_EQ(chosen(), "otherwise");
    EXPECT_EQ(counted, 0u);
    first = 7;
    EXPECT_EQ(chosen(), "if any");
    first = 0, second = 1;
    EXPECT_EQ(chosen(), "if any");
    EXPECT_EQ(counted, 2u);
}

TEST(Choice, IsPlannedForBothPieces) {
    Arena arena;
    Context context{arena};
    const auto takes = [&](int64_t bytes) {
        return [&, bytes] {
            const ArenaScope scope(arena);
            arena.allocate(DType::u8, {bytes});
        };
    };
    choose(context, nullptr, nullptr, nullptr, takes(1 << 10), takes(1 << 20));
    EXPECT_GE(arena.peak(), size_t{1} << 20);
    choose(context, nullptr, nullptr, nullptr, takes(1 << 22), takes(1 << 20));
    EXPECT_GE(arena.peak(), size_t{1} << 22);
}

}  // namespace
}  // namespace nibble
