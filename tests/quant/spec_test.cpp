#include "quant/spec.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace nibble {
namespace {

bool is_valid(const QuantSpec& spec) {
    try {
        validate_spec(spec);
    } catch (const UsageError&) {
        return false;
    }
    return true;
}

std::string error_of(std::string_view text) {
    try {
        parse_spec(text);
    } catch (const UsageError& error) {
        return error.what();
    }
    return "(no error)";
}

// Every valid combination of words, with a few values for those that take numbers.
template <typename Body>
void for_each_valid_spec(Body&& body) {
    for (int format = static_cast<int>(Format::nvfp4); format <= static_cast<int>(Format::log4); ++format) {
        QuantSpec base;
        base.format = static_cast<Format>(format);
        const bool nvfp4 = base.format == Format::nvfp4;
        std::vector<QuantSpec> specs;
        for (int block = 0; block <= static_cast<int>(Block::tensor); ++block) {
            for (int rule = 0; rule <= static_cast<int>(ScaleRule::quest_rms); ++rule) {
                for (int element = 0; element <= static_cast<int>(Element::log4); ++element) {
                    base.block = static_cast<Block>(block);
                    base.scale = static_cast<ScaleRule>(rule);
                    base.element = static_cast<Element>(element);
                    specs.push_back(base);
                }
            }
        }
        const auto vary = [&specs](auto&& change, int count) {
            std::vector<QuantSpec> more;
            for (const QuantSpec& spec : specs) {
                for (int i = 0; i < count; ++i) {
                    QuantSpec changed = spec;
                    change(changed, i);
                    // Needs of later words are judged at the end; words that can only be wrong are dropped
                    // here.
                    more.push_back(changed);
                }
            }
            specs = std::move(more);
        };
        const auto keep_valid = [&specs] {
            std::erase_if(specs, [](const QuantSpec& s) { return !is_valid(s); });
        };
        keep_valid();
        vary(
            [](QuantSpec& s, int i) {
                s.rotation = static_cast<Rotation>((i + 3) / 4),
                s.rotation_size = i == 0 ? 0 : 16 << (i - 1) % 4;
            },
            9);
        vary([](QuantSpec& s, int i) { s.signs = static_cast<Signs>(i); }, 5);
        vary([](QuantSpec& s, int i) { s.out_bf16 = i == 1; }, 2);
        keep_valid();
        vary([](QuantSpec& s, int i) { s.outer_1x128 = i == 1; }, 2);
        vary([](QuantSpec& s, int i) { s.round = i == 1 ? Rounding::stochastic : Rounding::nearest; },
             nvfp4 ? 1 : 2);
        keep_valid();
        vary([](QuantSpec& s, int i) { s.mask_clip = i == 1; }, 2);
        vary([](QuantSpec& s, int i) { s.mult = i == 1 ? 1.5f : 1.0f; }, 2);
        keep_valid();
        if (!nvfp4) {
            vary([](QuantSpec& s, int i) { s.tensor = static_cast<TensorScale>(i); }, 4);
            keep_valid();
        }
        if (nvfp4) {
            vary([](QuantSpec& s, int i) { s.tensor = static_cast<TensorScale>(i); }, 4);
            vary([](QuantSpec& s, int i) { s.correct = static_cast<Correction>(i); }, 3);
            vary([](QuantSpec& s, int i) { s.scale_round = static_cast<ScaleRounding>(i); }, 2);
            keep_valid();
            vary([](QuantSpec& s, int i) { s.cap = i == 0 ? 448.0f : i == 1 ? 256.0f : 255.99f; }, 3);
            vary(
                [](QuantSpec& s, int i) {
                    s.range = std::vector<Ratio>{{1, 1}, {2, 3}, {16, 17}, {1600, 1581}}[i];
                },
                4);
        }
        for (const QuantSpec& spec : specs) body(spec);
    }
}

TEST(Spec, ParseOfPrintIsTheSameSpecForEveryValidSpec) {
    int count = 0;
    for_each_valid_spec([&](const QuantSpec& spec) {
        ++count;
        const std::string text = to_string(spec);
        const QuantSpec parsed = parse_spec(text);
        ASSERT_EQ(parsed, spec) << text;
        ASSERT_EQ(to_string(parsed), text);
    });
    EXPECT_GT(count, 10000);
}

RC_GTEST_PROP(Spec, ParseOfPrintIsTheSameSpecForAnyNumbers, ()) {
    QuantSpec spec = parse_spec("nvfp4");
    spec.cap = static_cast<float>(*rc::gen::inRange(1000, 448000)) / 1000.0f;
    spec.range.denominator = *rc::gen::inRange(1, 32768);
    spec.range.numerator =
        *rc::gen::inRange((spec.range.denominator + 3) / 4, 2 * spec.range.denominator + 1);
    RC_ASSERT(parse_spec(to_string(spec)) == spec);
    QuantSpec quest = parse_spec("mxfp4 scale=quest:rms");
    quest.mult = static_cast<float>(*rc::gen::inRange(1, 10000)) / 100.0f;
    RC_ASSERT(parse_spec(to_string(quest)) == quest);
}

// Any text gives a spec or a one-line UsageError, never anything else.
RC_GTEST_PROP(Spec, AnyTextIsParsedOrRefusedInOneLine, ()) {
    const std::vector<std::string> words = {"nvfp4",  "mxfp4", "bf16", "fp8:e5m2", "1x16", "16x16",
                                            "scale=", "=",     "eden", "cap=",     "256",  "range=",
                                            "16/17",  "/",     "-",    "rotate=",  "rht:", "128",
                                            "scale",  "\n",    ":",    "mask=",    "clip", "nan"};
    std::string text;
    for (const int i :
         *rc::gen::container<std::vector<int>>(rc::gen::inRange(0, static_cast<int>(words.size())))) {
        text += words[static_cast<size_t>(i)];
        if (i % 3 == 0) text += ' ';
    }
    text += *rc::gen::arbitrary<std::string>();
    try {
        const QuantSpec spec = parse_spec(text);
        RC_ASSERT(parse_spec(to_string(spec)) == spec);
    } catch (const UsageError& error) {
        RC_ASSERT(std::string(error.what()).find('\n') == std::string::npos);
    }
}

TEST(Spec, OmittedWordsTakeTheirDefaults) {
    const QuantSpec nvfp4 = parse_spec("nvfp4");
    EXPECT_EQ(nvfp4.block, Block::b1x16);
    EXPECT_EQ(nvfp4.scale, ScaleRule::amax);
    EXPECT_EQ(nvfp4.cap, 448.0f);
    EXPECT_EQ(nvfp4.range, (Ratio{1, 1}));
    EXPECT_EQ(nvfp4.round, Rounding::nearest);
    EXPECT_EQ(nvfp4.tensor, TensorScale::current);
    EXPECT_EQ(nvfp4.signs, Signs::by_gemm);
    EXPECT_EQ(parse_spec("mxfp4").scale, ScaleRule::floor);
    EXPECT_EQ(parse_spec("nvfp4 scale=four-six:mae").cap, 256.0f);
    EXPECT_EQ(parse_spec("nvfp4 correct=eden").cap, 256.0f);
    EXPECT_EQ(parse_spec("nvfp4 correct=eden-block rotate=rht:32").cap, 255.99f);
}

TEST(Spec, EdenAndMax4AreShorthands) {
    EXPECT_EQ(parse_spec("nvfp4 scale=eden"),
              parse_spec("nvfp4 scale=amax cap=256 range=1600/1581 correct=eden scale-round=stochastic"));
    EXPECT_EQ(parse_spec("nvfp4 scale=max4"), parse_spec("nvfp4 scale=amax range=2/3"));
    EXPECT_EQ(parse_spec("nvfp4 scale=eden scale-round=nearest").scale_round, ScaleRounding::nearest);
}

TEST(Spec, PrintsTheWordsThatDifferFromTheDefaultsInOneOrder) {
    for (const auto& [given, canonical] : std::vector<std::pair<std::string, std::string>>{
             {"nvfp4", "nvfp4 1x16"},
             {"  nvfp4:e2m1   1x16\tround=nearest ", "nvfp4 1x16"},
             {"nvfp4 16x16 scale=amax round=nearest", "nvfp4 16x16"},
             {"nvfp4 1x16 signs=step rotate=rht:128 scale=eden",
              "nvfp4 1x16 scale=eden rotate=rht:128 signs=step"},
             {"nvfp4 cap=256 scale=four-six:mse", "nvfp4 1x16 scale=four-six:mse"},
             {"nvfp4 range=2/3", "nvfp4 1x16 scale=max4"},
             {"nvfp4 out=bf16 signs=te rotate=rht:16 range=16/17 round=stochastic",
              "nvfp4 1x16 range=16/17 round=stochastic rotate=rht:16 signs=te out=bf16"},
             {"mxfp4 mask=clip rotate=hadamard:32 scale=quest:std",
              "mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip"},
             {"mxfp4 arithmetic=emulation rotate=hadamard:32 mask=clip scale=quest:std",
              "mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip arithmetic=emulation"},
             {"nvfp4 arithmetic=emulation", "nvfp4 1x16 arithmetic=emulation"},
             {"mxfp4 scale=floor", "mxfp4 1x32"},
             {"nvfp4 round=stochastic outer=1x128", "nvfp4 1x16 round=stochastic outer=1x128"},
             {"mxfp8", "mxfp8:e4m3 1x32"},
             {"mxfp8:e5m2 32x32 scale=rceil", "mxfp8:e5m2 32x32"},
             {"fp8", "fp8:e4m3 tensor"},
             {"fp8:e5m2 tensor=delayed", "fp8:e5m2 tensor tensor=delayed"},
             {"fp4 scale=amax", "fp4 row"},
             {"int4 tensor round=stochastic", "int4 tensor round=stochastic"},
             {"log4", "log4 row"},
             {"bf16", "bf16"},
             {"fp32", "fp32"}}) {
        EXPECT_EQ(to_string(parse_spec(given)), canonical);
    }
}

TEST(Spec, ErrorsQuoteTheTextAndNameTheWord) {
    const std::vector<std::pair<std::string, std::string>> cases = {
        {"nvfp4 1x16 scale=amx",
         "nvfp4 1x16 scale=amx: unknown value \"amx\" of scale=; nearest is \"amax\""},
        {"nvfp4 rond=nearest", "nvfp4 rond=nearest: unknown word \"rond\"; nearest is \"round\""},
        {"nvpf4", "nvpf4: unknown format \"nvpf4\"; nearest is \"nvfp4\""},
        {"nvfp4 1x32", "nvfp4 1x32: unknown block \"1x32\"; nvfp4 has 1x16, 16x16"},
        {"nvfp4 round=nearest round=nearest", "nvfp4 round=nearest round=nearest: round= is given twice"},
        {"nvfp4 cap=", "nvfp4 cap=: cap= has no value"},
        {"nvfp4 cap=4x", "nvfp4 cap=4x: value \"4x\" of cap= is not a number"},
        {"nvfp4 range=0.5",
         "nvfp4 range=0.5: value \"0.5\" of range= is not a fraction such as 16/17 (parts up to 65535)"},
        {"mxfp4 range=2/3", "mxfp4 range=2/3: range= does not go with mxfp4"},
        {"bf16 round=nearest", "bf16 round=nearest: unexpected \"round=nearest\"; bf16 takes no words"},
        {"nvfp4 rotate=rht:24", "nvfp4 rotate=rht:24: size \"24\" of rotate=; it must be 16, 32, 64 or 128"},
        {"fp8:e3m4 row", "fp8:e3m4 row: unknown element in \"fp8:e3m4\"; fp8 has e4m3, e5m2"},
        {"int4:e2m1", "int4:e2m1: unknown element in \"int4:e2m1\"; int4 has none to name"},
        {"fp8 1x32", "fp8 1x32: unknown block \"1x32\"; fp8 has tensor, row, 1x128, 128x128"},
        {"fp8 range=1/2", "fp8 range=1/2: range= does not go with fp8"},
        {"mxfp8 scale=quest:std",
         "mxfp8 scale=quest:std: scale=quest:std does not go with mxfp8, which takes rceil, floor, ceil, "
         "even"},
        {"nvfp4 outer=1x64", "nvfp4 outer=1x64: unknown value \"1x64\" of outer=; only 1x128 is one"},
        {"", "an empty spec; write a format, such as \"nvfp4 1x16 scale=amax\""},
    };
    for (const auto& [text, message] : cases) EXPECT_EQ(error_of(text), message);
}

TEST(Spec, RefusesForbiddenCombinations) {
    for (const char* text : {"mxfp4 scale=four-six:mse",       // NVFP4 only
                             "mxfp4 correct=eden",             //
                             "mxfp4 tensor=delayed",           //
                             "nvfp4 scale=quest:std",          // MXFP4 only
                             "nvfp4 mask=clip",                //
                             "mxfp4 scale=floor mask=clip",    // a mask without quest
                             "mxfp4 scale=floor mult=1.5",     //
                             "nvfp4 16x16 scale=eden",         // one byte a tile
                             "nvfp4 16x16 outer=1x128",        // a tile has rows of other groups
                             "nvfp4 tensor=none outer=1x128",  // the outer scales stand for the tensor's
                             "mxfp4 32x32 scale=quest:std",    // a row's spread
                             "mxfp8 tensor=current tensor=delayed",  //
                             "fp8 row tensor=delayed",               // there is no tensor scale
                             "fp8 tensor tensor=posthoc",            //
                             "fp8 round=nearest-away",               // E2M1 only
                             "int4 round=nearest-down",              //
                             "int4 mask=clip",                       //
                             "nvfp4 correct=eden-block",  // a factor for a rotation block without one
                             "nvfp4 tensor=posthoc correct=eden-block rotate=rht:32",
                             "nvfp4 tensor=posthoc scale=four-six:mse",  // choosing needs the tensor scale
                             "nvfp4 scale-round=stochastic",         // nothing is rounded after the elements
                             "nvfp4 scale=max4 range=2/3",           // said twice
                             "nvfp4 scale=eden correct=none",        //
                             "nvfp4 signs=call",                     // signs without a rotation that has them
                             "nvfp4 rotate=hadamard:16 signs=call",  //
                             "nvfp4 rotate=rht:32 signs=te",         // 16 signs
                             "nvfp4 out=bf16",                       // rounds rotated values
                             "nvfp4 arithmetic=exact",
                             "nvfp4 tensor=posthoc arithmetic=emulation",  // knows no amax
                             "mxfp4 arithmetic=emulation",                 // changes rotations alone
                             "nvfp4 rotate=rht:8",
                             "nvfp4 rotate=rht:256",
                             "nvfp4 rotate=rht",
                             "nvfp4 range=1/5",
                             "nvfp4 range=5/2",
                             "nvfp4 cap=449",
                             "nvfp4 cap=0.5",
                             "nvfp4 cap=nan",
                             "mxfp4 scale=quest:std mult=0",
                             "mxfp4 scale=quest:std mult=inf"}) {
        EXPECT_THROW(parse_spec(text), UsageError) << text;
    }
}

TEST(Spec, SaysWhatIsNotAvailableYet) {
    for (const char* text : {"nvfp4 outliers=0.99"}) {
        EXPECT_NE(error_of(text).find("is not available in this version"), std::string::npos)
            << error_of(text);
    }
}

TEST(Spec, RotatesTheOtherDimensionAtRows) {
    const QuantSpec spec = parse_spec("nvfp4 rotate=hadamard:128@rows");
    EXPECT_TRUE(spec.rotates_rows());
    EXPECT_FALSE(spec.rotates_columns());
    EXPECT_EQ(to_string(spec), "nvfp4 1x16 rotate=hadamard:128@rows");
    EXPECT_EQ(parse_spec(to_string(spec)), spec);
    EXPECT_EQ(spec.padded(17), 32);
    EXPECT_EQ(spec.padded_rows(17), 128);
    EXPECT_EQ(parse_spec("nvfp4 rotate=hadamard:128").padded_rows(17), 17);
    EXPECT_NE(error_of("nvfp4 rotate=hadamard:128@cols").find("rows"), std::string::npos);
    EXPECT_NE(error_of("nvfp4 rotate=hadamard@rows").find("needs a size"), std::string::npos);
    EXPECT_NE(error_of("nvfp4 correct=eden-block rotate=rht:16@rows").find("@rows"), std::string::npos);
}

TEST(Spec, PadsToWholeBlocksAndRotations) {
    EXPECT_EQ(parse_spec("nvfp4").padded(17), 32);
    EXPECT_EQ(parse_spec("nvfp4 rotate=rht:128").padded(17), 128);
    EXPECT_EQ(parse_spec("mxfp4 rotate=rht:16").padded(33), 64);
    EXPECT_EQ(parse_spec("nvfp4").padded(0), 0);
    EXPECT_EQ(parse_spec("bf16").padded(17), 17);
}

TEST(Spec, WarnsOfTheBiasOfStochasticFourSix) {
    EXPECT_NE(caution_of(parse_spec("nvfp4 scale=four-six:mse round=stochastic")), "");
    EXPECT_EQ(caution_of(parse_spec("nvfp4 scale=four-six:mse")), "");
    EXPECT_EQ(caution_of(parse_spec("nvfp4 round=stochastic")), "");
}

}  // namespace
}  // namespace nibble
