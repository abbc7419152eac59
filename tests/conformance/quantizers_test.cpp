// Quantisers against the recorded outputs of public implementations, byte for byte.
#include <gtest/gtest.h>

#include <cmath>

#include "support/golden.h"
#include "support/quantized.h"

namespace nibble {
namespace {

using test::floats_of;
using test::golden;
using test::Input;
using test::input;
using test::kInputs;
using test::Quantized;

struct Differences {
    int64_t scales = 0, codes = 0, blocks = 0;  // blocks: how many were compared
};

// Counts differing scale bytes among all blocks, and differing codes in the blocks whose bytes are both at
// least `least` (a block of byte 0 carries no information).
Differences compare(const Quantized& q, const uint8_t* codes, const uint8_t* scales, uint8_t least = 1) {
    Differences d;
    const int block = q.matrix().spec.block_size();
    for (int64_t r = 0; r < q.rows(); ++r) {
        for (int64_t k = 0; k < q.cols(); k += block) {
            const uint8_t expected = scales[(r * q.cols() + k) / block];
            if (expected < least || q.scale(r, k) < least) {
                d.scales += expected != q.scale(r, k) && (expected >= least || q.scale(r, k) >= least);
                continue;
            }
            ++d.blocks;
            d.scales += expected != q.scale(r, k);
            for (int64_t i = k; i < k + block; ++i) {
                const uint8_t byte = codes[(r * q.cols() + i) / 2];
                d.codes += !test::same_code(i % 2 == 0 ? byte & 15 : byte >> 4, q.code(r, i));
            }
        }
    }
    return d;
}

Differences compare(const Quantized& q, const SafetensorsFile& file, const std::string& data,
                    const std::string& scale, uint8_t least = 1) {
    return compare(q, file.tensor(data).as<uint8_t>(), file.tensor(scale).as<uint8_t>(), least);
}

// --- TransformerEngine, the standard for NVFP4 ---

struct Variant {
    const char *name, *spec;
    bool row_copy;
};

class TransformerEngine : public testing::TestWithParam<Variant> {};

TEST_P(TransformerEngine, HasTheSameBytes) {
    const SafetensorsFile file = golden("transformer_engine");
    const auto& [variant, spec, row_copy] = GetParam();
    for (const std::string& name : kInputs) {
        for (const bool transpose : {false, true}) {
            if (!transpose && !row_copy) continue;
            Input x = input(name, transpose);
            const Quantized q(spec, x.tensor());
            const std::string te = std::string("te.") + variant, suffix = (transpose ? "_t." : ".") + name;
            const Differences d = compare(q, file, te + ".data" + suffix, te + ".scale" + suffix);
            EXPECT_EQ(d.scales, 0) << te << suffix;
            EXPECT_EQ(d.codes, 0) << te << suffix;
            EXPECT_GT(d.blocks, 500) << te << suffix;
            if (row_copy) {
                const float amax = *file.tensor(te + ".amax." + name).as<float>();
                const float encode = (q.matrix().spec.cap == 256 ? 6.0f * 256.0f : 6.0f * 448.0f) / amax;
                EXPECT_EQ(q.tensor_scale(), 1.0f / encode) << te << suffix;
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(
    Rules, TransformerEngine,
    testing::Values(Variant{"1x16", "nvfp4 1x16", true}, Variant{"16x16", "nvfp4 16x16", true},
                    // The row copy is not rotated there; only the columns are.
                    Variant{"1x16rht", "nvfp4 1x16 rotate=rht:16 signs=te out=bf16", false},
                    Variant{"1x16fos_mse256", "nvfp4 1x16 scale=four-six:mse", true},
                    Variant{"1x16fos_mae448", "nvfp4 1x16 scale=four-six:mae cap=448", true}),
    [](const auto& variant) { return std::string("Variant") + variant.param.name; });

// --- torchao and microxcaling, for MXFP4 ---

TEST(TorchAo, Mxfp4ScaleRulesHaveTheSameBytes) {
    const SafetensorsFile file = golden("torchao");
    for (const auto& [mode, spec] : {std::pair{"FLOOR", "mxfp4 scale=floor"},
                                     {"CEIL", "mxfp4 scale=ceil"},
                                     {"EVEN", "mxfp4 scale=even"},
                                     {"RCEIL", "mxfp4 scale=rceil"}}) {
        for (const std::string& name : kInputs) {
            Input x = input(name);
            const std::string array = std::string("ao.mxfp4.") + mode;
            const Differences d = compare(Quantized(spec, x.tensor()), file, array + ".data." + name,
                                          array + ".scale." + name, 0);
            EXPECT_EQ(d.scales, 0) << mode << " " << name;
            EXPECT_EQ(d.codes, 0) << mode << " " << name;
            EXPECT_EQ(d.blocks, 128 * 8) << mode << " " << name;
        }
    }
}

TEST(Microxcaling, BothRoundingsHaveTheSameValues) {
    const SafetensorsFile file = golden("microxcaling");
    for (const auto& [array, spec] : {std::pair{"mx.even.", "mxfp4 scale=floor round=nearest"},
                                      {"mx.nearest.", "mxfp4 scale=floor round=nearest-away"}}) {
        for (const std::string& name : kInputs) {
            Input x = input(name);
            const std::vector<float> expected = floats_of(file.tensor(array + name));
            EXPECT_EQ(Quantized(spec, x.tensor()).values(), expected) << array << name;
        }
    }
}

// --- fouroversix, whose codes are compared where its scale bytes are at least 8 ---

TEST(FourOverSix, EveryRuleHasTheSameBytes) {
    const SafetensorsFile file = golden("fouroversix");
    for (const auto& [rule, words] : {std::pair{"static_6", ""},
                                      {"static_4", " scale=max4"},
                                      {"mse", " scale=four-six:mse"},
                                      {"mae", " scale=four-six:mae"},
                                      {"abs_max", " scale=four-six:amax"}}) {
        for (const auto& [dimensions, block] : {std::pair{"1d", "nvfp4 1x16"}, {"2d", "nvfp4 16x16"}}) {
            for (const std::string& name : kInputs) {
                Input x = input(name);
                const std::string array = std::string("fos.") + rule + "." + dimensions;
                const Differences d = compare(Quantized(std::string(block) + words, x.tensor()), file,
                                              array + ".data." + name, array + ".scale." + name, 8);
                EXPECT_EQ(d.scales, 0) << array << " " << name;
                EXPECT_EQ(d.codes, 0) << array << " " << name;
                EXPECT_GT(d.blocks, 100) << array << " " << name;
            }
        }
    }
}

}  // namespace
}  // namespace nibble
