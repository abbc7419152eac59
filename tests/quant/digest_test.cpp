// The bytes of every quantiser on fixed inputs, as digests: what must not change without a new format
// version, and what other implementations of the same contract (SIMD, devices) must produce.
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "support/quantized.h"
#include "support/samples.h"
#include "support/specs.h"

namespace nibble {
namespace {

using test::kSpecs;
using test::Path;
using test::Quantized;

// FNV-1a, 64 bits.
uint64_t digest(uint64_t hash, const std::vector<uint8_t>& bytes) {
    for (const uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001b3ull;
    return hash;
}

// Exact on every machine: the sum of four 16-bit integers, about normal, at a size that each row draws; in
// every third row multiples of 1/4 up to 6, which tie.
std::vector<float> exact_samples(int64_t rows, int64_t cols, uint64_t seed) {
    std::vector<float> x;
    for (int64_t r = 0; r < rows; ++r) {
        const int exponent =
            static_cast<int>(test::draw_for_test(seed, static_cast<uint64_t>(r), 1).word[0] % 24);
        for (int64_t k = 0; k < cols; ++k) {
            const Philox draw = test::draw_for_test(seed, static_cast<uint64_t>(r * cols + k));
            if (r % 3 == 2) {
                x.push_back(
                    k % 16 == 5 ? 6.0f : static_cast<float>(static_cast<int>(draw.word[0] % 49) - 24) / 4.0f);
                continue;
            }
            int sum = -2 * 65535;
            for (int i = 0; i < 4; ++i) sum += draw.coin(i);
            x.push_back(static_cast<float>(sum) * power_of_two(-exponent - 10));
        }
    }
    return x;
}

std::map<std::string, uint64_t> digests(Path path) {
    std::map<std::string, uint64_t> result;
    for (const std::string& spec : kSpecs) result[spec] = 0xcbf29ce484222325ull;
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 16}, {5, 33}, {16, 128}, {37, 200}}) {
        for (uint64_t seed = 1; seed <= 3; ++seed) {
            std::vector<float> x = exact_samples(rows, cols, seed);
            const RandomKey key = {.seed = seed, .step = 7, .micro_step = 2, .layer = 3, .gemm = Gemm::wgrad};
            for (auto& [spec, hash] : result) {
                hash = digest(hash, Quantized(spec, view_of(x, {rows, cols}), key, {}, path).bytes());
            }
        }
    }
    return result;
}

// To record after a deliberate change of the contract: run this test and copy what it prints.
const std::map<std::string, uint64_t> kDigests = {
    {"fp4 32x32", 0xaa155ac7d428fd50},
    {"fp4 32x32 round=nearest-down rotate=hadamard:64", 0xb578a596c6e0dec0},
    {"fp4 row", 0x3ffca38404af68e2},
    {"fp4 tensor round=stochastic", 0xf85353f3bd4baab4},
    {"fp8:e4m3 128x128", 0xee84492c478f0969},
    {"fp8:e4m3 1x128", 0xe25f7bcdba9eef80},
    {"fp8:e4m3 row round=stochastic", 0xdadcdaf693599493},
    {"fp8:e4m3 tensor", 0x5a5c5f8a1577d73f},
    {"fp8:e4m3 tensor tensor=delayed", 0x5a5c5f8a1577d73f},
    {"fp8:e5m2 1x128 rotate=rht:128", 0x608f5a432e073cc3},
    {"fp8:e5m2 tensor round=stochastic rotate=rht:32", 0x31f70cc911d1917d},
    {"int4 row", 0x09ded0a3914b77aa},
    {"int4 tensor round=stochastic rotate=rht:16", 0x4bce041c44dba646},
    {"log4 row", 0xbb3e2fa113bdc779},
    {"log4 tensor round=stochastic", 0x7fa5b2b332cd0cdc},
    {"mxfp4 1x32 scale=ceil round=stochastic", 0xdb66a21e432f3b27},
    {"mxfp4 1x32 scale=even", 0x9d2932be6752509b},
    {"mxfp4 1x32 scale=floor", 0x6ff98398a023cddc},
    {"mxfp4 1x32 scale=floor round=nearest-down", 0x86a8a7beb416cb53},
    {"mxfp4 1x32 scale=quest:rms mult=1.5 rotate=hadamard:128 mask=clip", 0x66c2b76dbe395e57},
    {"mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip", 0x67827f5e3c3bb6c5},
    {"mxfp4 1x32 scale=quest:std round=nearest-down rotate=hadamard:32 mask=clip arithmetic=emulation",
     0xc2510ff41fc8de0c},
    {"mxfp4 1x32 scale=rceil rotate=rht2:16", 0x2fb97fdfd1948cef},
    {"mxfp4 1x32 scale=rceil rotate=rht:16", 0x5547023b622f0ba2},
    {"mxfp4 1x32 scale=three-quarters round=stochastic rotate=rht:32", 0x48116a56307e214f},
    {"mxfp4 32x32 scale=rceil round=stochastic", 0x42c6bfc0f5cd7d26},
    {"mxfp4 32x32 scale=three-quarters rotate=rht:64", 0xaa4b5a51f01fe048},
    {"mxfp8:e4m3 1x32", 0x418bc53cbf7e17ee},
    {"mxfp8:e4m3 32x32 scale=floor round=stochastic", 0x554261110ea4f633},
    {"mxfp8:e5m2 1x32 scale=ceil", 0x828ae7057eb54375},
    {"mxfp8:e5m2 1x32 scale=even rotate=hadamard:16", 0xfa321a7fa9f3fd0d},
    {"nvfp4 16x16", 0x9328c0bce3d93376},
    {"nvfp4 16x16 round=stochastic", 0x357650c5c9684a12},
    {"nvfp4 16x16 scale=four-six:amax rotate=rht:32", 0x2097861e88ebe2bf},
    {"nvfp4 16x16 scale=four-six:mse", 0x53004e0ccb078c05},
    {"nvfp4 16x16 tensor=posthoc scale-round=stochastic", 0x867337ddf10f7ce4},
    {"nvfp4 1x16", 0x8aba023a3c24eabb},
    {"nvfp4 1x16 correct=eden-block range=1600/1581 scale-round=stochastic rotate=rht:32",
     0xefbf2f581c3c2387},
    {"nvfp4 1x16 outer=1x128", 0x2cef43642ff0136f},
    {"nvfp4 1x16 range=16/17 round=stochastic", 0xe433833cea4fb228},
    {"nvfp4 1x16 rotate=hadamard:128", 0x869eea8c2674c1a6},
    {"nvfp4 1x16 rotate=rht:16 signs=te out=bf16", 0x5c165e75013e1a0f},
    {"nvfp4 1x16 round=stochastic outer=1x128 rotate=rht:16", 0x3a927c9ac92c5d4c},
    {"nvfp4 1x16 scale=eden", 0x64b64c5086a1d7e1},
    {"nvfp4 1x16 scale=eden outer=1x128 rotate=rht:32", 0xaf1381e5000a735a},
    {"nvfp4 1x16 scale=eden rotate=rht2:128", 0xd71349a7fe4f4cee},
    {"nvfp4 1x16 scale=eden rotate=rht:128", 0x11fefee909cc3fb3},
    {"nvfp4 1x16 scale=eden tensor=posthoc rotate=rht:64", 0xb55375e8aed0aab7},
    {"nvfp4 1x16 scale=four-six:amax", 0x70dc5730e1a2f691},
    {"nvfp4 1x16 scale=four-six:mae", 0xe118cd10a27aa274},
    {"nvfp4 1x16 scale=four-six:mse", 0x9390e98b76ff649f},
    {"nvfp4 1x16 scale=four-six:mse outer=1x128", 0x6e680af418e9592e},
    {"nvfp4 1x16 scale=four-six:mse round=stochastic rotate=rht:16", 0xfdc63ff8cbf7b406},
    {"nvfp4 1x16 scale=four-six:mse round=nearest-away arithmetic=emulation", 0x45583b975f2e4283},
    {"nvfp4 1x16 scale=max4", 0xc8229d2c4e5431f5},
    {"nvfp4 1x16 tensor=delayed", 0x8aba023a3c24eabb},
    {"nvfp4 1x16 tensor=none", 0x21c09f1641219690},
    {"nvfp4 1x16 tensor=none round=nearest-away", 0x3da3a03fdb07382b},
    {"nvfp4 1x16 tensor=posthoc", 0x34544b26574194d2},
};

class Digest : public testing::TestWithParam<Path> {};

TEST_P(Digest, OfEverySpecIsTheRecordedOne) {
    for (const auto& [spec, mine] : digests(GetParam())) {
        const auto recorded = kDigests.find(spec);
        EXPECT_TRUE(recorded != kDigests.end() && recorded->second == mine)
            << fmt::format("{{\"{}\", {:#018x}}},", spec, mine);
    }
}

INSTANTIATE_TEST_SUITE_P(Paths, Digest, testing::Values(Path::reference, Path::fast));

}  // namespace
}  // namespace nibble
