#include "data/utf8.h"

#include "data/byte_level.h"
#include "data/support.h"

namespace nibble {
namespace {

TEST(Utf8, AcceptsEveryScalarValueAndGivesItBack) {
    for (char32_t c = 0; c < 0x110000; ++c) {
        if (c >= 0xd800 && c < 0xe000) continue;
        std::string text;
        append_utf8(text, c);
        ASSERT_TRUE(is_utf8(text)) << uint32_t{c};
        size_t at = 0;
        ASSERT_EQ(uint32_t{next_code_point(text, at)}, uint32_t{c});
        ASSERT_EQ(at, text.size());
    }
}

TEST(Utf8, RefusesSurrogatesOverlongFormsAndWhatIsAboveTheLastPlane) {
    for (const char* text :
         {"\xed\xa0\x80", "\xed\xbf\xbf", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf",
          "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\x80", "\xff", "\xe2\x82"}) {
        EXPECT_FALSE(is_utf8(text)) << text;
    }
}

TEST(Utf8, FindsAnIllFormedByteAtAnyPlace) {
    for (size_t at = 0; at < 40; ++at) {
        std::string text(40, 'a');
        text[at] = '\x80';
        EXPECT_FALSE(is_utf8(text)) << at;
        int64_t replaced = 0;
        EXPECT_EQ(repair_utf8(text, &replaced),
                  std::string(at, 'a') + "\xef\xbf\xbd" + std::string(39 - at, 'a'));
        EXPECT_EQ(replaced, 1);
    }
}

TEST(Utf8, LeavesWellFormedTextAsItIs) {
    const std::string text = read_text(test::recorded("corpus.txt"));
    int64_t replaced = 0;
    EXPECT_EQ(repair_utf8(text, &replaced), text);
    EXPECT_EQ(replaced, 0);
}

TEST(Utf8, RepairsAnyBytesToUtf8) {
    for (uint64_t seed = 0; seed < 2000; ++seed) {
        std::string bytes;
        for (uint64_t i = 0; i < 24; ++i)
            bytes.push_back(static_cast<char>(test::random_word(seed, i) >> (seed % 2)));
        EXPECT_TRUE(is_utf8(repair_utf8(bytes)));
    }
}

TEST(ByteLevel, GivesEachByteItsOwnCharacterAndBack) {
    std::string all;
    for (int byte = 0; byte < 256; ++byte) all.push_back(static_cast<char>(byte));
    const std::string symbols = to_byte_level(all);
    EXPECT_TRUE(is_utf8(symbols));
    EXPECT_EQ(from_byte_level(symbols), all);
    EXPECT_EQ(to_byte_level(" \n~"), "\xc4\xa0\xc4\x8a~");  // as GPT-2's vocabulary writes them
}

TEST(ByteLevel, HasNoBytesForOtherCharacters) {
    EXPECT_EQ(from_byte_level("a b"), std::nullopt);
    EXPECT_EQ(from_byte_level("\xe2\x96\x81the"), std::nullopt);  // SentencePiece's mark of a space
}

}  // namespace
}  // namespace nibble
