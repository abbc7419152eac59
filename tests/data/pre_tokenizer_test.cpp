#include "data/pre_tokenizer.h"

#include "data/support.h"

namespace nibble {
namespace {

using Pieces = std::vector<std::string>;

Pieces pieces_of(std::vector<std::string> patterns, std::string_view text) {
    const PreTokenizer pre_tokenizer(std::move(patterns));
    PreTokenizer::Scratch scratch;
    Pieces pieces;
    pre_tokenizer.split(text, scratch, [&](std::string_view piece) { pieces.emplace_back(piece); });
    return pieces;
}

TEST(PreTokenizer, CutsTextAsLlama3Does) {
    EXPECT_EQ(pieces_of({kLlama3Pattern}, "It's 12345 o'clock,  isn't it?\n\n  Yes"),
              (Pieces{"It", "'s", " ", "123", "45", " o", "'clock", ",", " ", " isn", "'t", " it", "?\n\n",
                      " ", " Yes"}));
}

TEST(PreTokenizer, CutsTextAsGpt2Does) {
    EXPECT_EQ(pieces_of({kGpt2Pattern}, "It's 12345,  isn't it?\n\nYes"),
              (Pieces{"It", "'s", " 12345", ",", " ", " isn", "'t", " it", "?", "\n", "\n", "Yes"}));
}

TEST(PreTokenizer, KeepsWhatNoPatternMatches) {
    EXPECT_EQ(pieces_of({"[0-9]+"}, "ab12cd"), (Pieces{"ab", "12", "cd"}));
    EXPECT_EQ(pieces_of({"x"}, "abc"), (Pieces{"abc"}));
}

TEST(PreTokenizer, AppliesSeveralPatternsOneInsideTheOther) {
    EXPECT_EQ(pieces_of({"[0-9]", "[a-z]+"}, "Ab12c"), (Pieces{"A", "b", "1", "2", "c"}));
}

TEST(PreTokenizer, CutsWherePatternsMatchNothing) {
    EXPECT_EQ(pieces_of({"(?=b)"}, "abcb"), (Pieces{"a", "bc", "b"}));
    EXPECT_EQ(pieces_of({"x*"}, "a\xc3\xa4xx"), (Pieces{"a", "\xc3\xa4", "xx"}));
}

TEST(PreTokenizer, CountsTheWhiteSpaceOfUnicodeAlone) {
    EXPECT_EQ(pieces_of({"\\s+"}, "a\xc2\x85\xe2\x80\xa8z"),
              (Pieces{"a", "\xc2\x85\xe2\x80\xa8", "z"}));                         // U+0085, U+2028
    EXPECT_EQ(pieces_of({"\\s+"}, "a\xe1\xa0\x8ez"), (Pieces{"a\xe1\xa0\x8ez"}));  // U+180E is none
    EXPECT_EQ(pieces_of({"[^\\s]+"}, "a \xe1\xa0\x8e"), (Pieces{"a", " ", "\xe1\xa0\x8e"}));
}

TEST(PreTokenizer, GivesBackTheWholeTextInPieces) {
    const std::string text = read_text(test::recorded("corpus.txt"));
    for (const char* pattern : {kLlama3Pattern, kGpt2Pattern, "\\p{N}", "a*"}) {
        std::string together;
        for (const std::string& piece : pieces_of({pattern}, text)) {
            EXPECT_FALSE(piece.empty());
            together += piece;
        }
        EXPECT_EQ(together, text) << pattern;
    }
}

TEST(PreTokenizer, RefusesPatternsThatWouldMeanSomethingElse) {
    for (const char* pattern : {"(", "[a", "\\p{Nonsense}", "\\p{N}{1,3}+", "[a&&b]", "[a[b]]", "\\h",
                                "a\\Kb", "\xff", "(?<n>a)(?P>m)", "\\"}) {
        EXPECT_NE(test::refusal([&] { PreTokenizer({pattern}); }), "accepted") << pattern;
    }
    EXPECT_NE(test::refusal([] { PreTokenizer({std::string(100000, '(')}); }), "accepted");
}

TEST(PreTokenizer, AcceptsPossessiveRepeatsAndPropertiesInClasses) {
    EXPECT_EQ(pieces_of({"[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}"}, " ab1234"),
              (Pieces{" ab", "123", "4"}));
}

TEST(PreTokenizer, StopsAtATextThatNeedsEndlessWork) {
    const std::string text(40, 'a');
    EXPECT_NE(test::refusal([&] { pieces_of({"(a+a+)+[bc]"}, text + text); }), "accepted");
}

}  // namespace
}  // namespace nibble
