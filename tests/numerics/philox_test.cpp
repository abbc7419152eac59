#include "numerics/philox.h"

#include <gtest/gtest.h>

#include <set>
#include <tuple>

namespace nibble {
namespace {

// The known answers that Random123's authors publish for philox4x32 with 10 rounds.
TEST(Philox, GivesThePublishedAnswers) {
    struct Case {
        uint64_t key;
        uint32_t counter[4], answer[4];
    };
    const Case cases[] = {
        {0, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {0xffffffffffffffff,
         {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822,  // digits of pi
         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (const Case& c : cases) {
        const Philox draw = philox4x32_10(c.key, c.counter);
        for (int i = 0; i < 4; ++i) EXPECT_EQ(draw.word[i], c.answer[i]);
    }
}

TEST(Philox, CoinsAreTheHalvesOfTheWordsLowHalfFirst) {
    const Philox draw{{0x22221111, 0x44443333, 0x66665555, 0x88887777}};
    for (int i = 0; i < 8; ++i) EXPECT_EQ(draw.coin(i), 0x1111 * (i + 1));
}

TEST(Philox, PacksTheCounterAsPublished) {
    const uint32_t counter[4] = {0x89abcdef, 0x02000000u | 0x34567, 77, 0x1234u << 16 | 9u << 8 | 5u};
    const Philox expected = philox4x32_10(42, counter);
    const Philox draw = philox_draw(42, Purpose::signs, 0x3456789abcdefull, 77, 0x1234, 9, 5);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(draw.word[i], expected.word[i]);
}

TEST(Philox, EveryPartOfTheCounterChangesTheDraw) {
    std::set<uint32_t> first_words;
    const auto add = [&](const Philox& draw) { first_words.insert(draw.word[0]); };
    add(philox_draw(1, Purpose::elements, 0));
    add(philox_draw(2, Purpose::elements, 0));
    add(philox_draw(1ull << 32 | 1, Purpose::elements, 0));
    add(philox_draw(1, Purpose::scales, 0));
    add(philox_draw(1, Purpose::elements, 1));
    add(philox_draw(1, Purpose::elements, 1ull << 32));
    add(philox_draw(1, Purpose::elements, 0, 1));
    add(philox_draw(1, Purpose::elements, 0, 0, 1));
    add(philox_draw(1, Purpose::elements, 0, 0, 0, 1));
    add(philox_draw(1, Purpose::elements, 0, 0, 0, 0, 1));
    EXPECT_EQ(first_words.size(), 10u);
}

}  // namespace
}  // namespace nibble
