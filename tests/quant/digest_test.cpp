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

// Exact on every machine: the sum of four 16-bit integers, about normal, at a size that each row draws.
std::vector<float> exact_samples(int64_t rows, int64_t cols, uint64_t seed) {
    std::vector<float> x;
    for (int64_t r = 0; r < rows; ++r) {
        const int exponent =
            static_cast<int>(test::draw_for_test(seed, static_cast<uint64_t>(r), 1).word[0] % 24);
        for (int64_t k = 0; k < cols; ++k) {
            const Philox draw = test::draw_for_test(seed, static_cast<uint64_t>(r * cols + k));
            int sum = -2 * 65535;
            for (int i = 0; i < 4; ++i) sum += draw.coin(i);
            x.push_back(static_cast<float>(sum) * power_of_two(-exponent - 10));
        }
    }
    return x;
}

uint64_t digest_of(const std::string& spec, Path path) {
    uint64_t hash = 0xcbf29ce484222325ull;
    for (const auto& [rows, cols] :
         {std::pair<int64_t, int64_t>{1, 16}, {5, 33}, {16, 128}, {37, 200}, {48, 512}}) {
        for (uint64_t seed = 1; seed <= 3; ++seed) {
            std::vector<float> x = exact_samples(rows, cols, seed);
            const RandomKey key = {.seed = seed, .step = 7, .micro_step = 2, .layer = 3, .gemm = Gemm::wgrad};
            hash = digest(hash, Quantized(spec, view_of(x, {rows, cols}), key, {}, path).bytes());
        }
    }
    return hash;
}

// To record after a deliberate change of the contract: run this test and copy what it prints.
const std::map<std::string, uint64_t> kDigests = {
    {"nvfp4 1x16", 0x5f1a828f6cf8787e},
    {"nvfp4 1x16 round=nearest-away", 0x5f1a828f6cf8787e},
    {"nvfp4 1x16 range=16/17 round=stochastic", 0xd1e07b74657016df},
    {"nvfp4 1x16 scale=max4", 0x0e292820529238b8},
    {"nvfp4 1x16 scale=four-six:mse", 0x65ec5ec55c559ea5},
    {"nvfp4 1x16 scale=four-six:mae", 0x55d2d2e07b1c31d6},
    {"nvfp4 1x16 scale=four-six:amax", 0x7237769b1a32674d},
    {"nvfp4 1x16 scale=four-six:mse round=stochastic rotate=rht:16", 0xccc2cbeca85c8967},
    {"nvfp4 1x16 scale=eden", 0x047f50ac349fcc9d},
    {"nvfp4 1x16 scale=eden rotate=rht:128", 0x5acd692726a36492},
    {"nvfp4 1x16 scale=eden tensor=posthoc rotate=rht:64", 0xb3f730a7d6fcc9df},
    {"nvfp4 1x16 correct=eden-block range=1600/1581 scale-round=stochastic rotate=rht:32",
     0x12c35fe745ee4197},
    {"nvfp4 1x16 tensor=posthoc", 0x4e7b2646569470df},
    {"nvfp4 1x16 tensor=none", 0x5e9360d0806e9752},
    {"nvfp4 1x16 tensor=delayed", 0x5f1a828f6cf8787e},
    {"nvfp4 1x16 rotate=rht:16 signs=te out=bf16", 0x0fe79648e66e8458},
    {"nvfp4 1x16 rotate=hadamard:128", 0x86ee138d9648ef6b},
    {"nvfp4 16x16", 0x1e91f3837559a20f},
    {"nvfp4 16x16 round=stochastic", 0xad4c4acc969d3530},
    {"nvfp4 16x16 scale=four-six:mse", 0xa37e67df7fc20a48},
    {"nvfp4 16x16 scale=four-six:amax rotate=rht:32", 0x979c1be1e5c2af38},
    {"nvfp4 16x16 tensor=posthoc scale-round=stochastic", 0x6baa485faa149d88},
    {"mxfp4 1x32 scale=floor", 0xbd6e20b4a35c9194},
    {"mxfp4 1x32 scale=floor round=nearest-down", 0x9724f94a0f2ece21},
    {"mxfp4 1x32 scale=ceil round=stochastic", 0x75c0dcdd0a050f5c},
    {"mxfp4 1x32 scale=rceil rotate=rht:16", 0x75cdf264692c1b26},
    {"mxfp4 1x32 scale=even", 0x58514276ac3fd66e},
    {"mxfp4 1x32 scale=three-quarters round=stochastic rotate=rht:32", 0x6748c137cf7b3550},
    {"mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip", 0xdabdbfbac1221ca9},
    {"mxfp4 1x32 scale=quest:rms mult=1.5 rotate=hadamard:128 mask=clip", 0x674c126ce27bcaf9},
};

class Digest : public testing::TestWithParam<Path> {};

TEST_P(Digest, OfEverySpecIsTheRecordedOne) {
    for (const std::string& spec : kSpecs) {
        const auto recorded = kDigests.find(spec);
        const uint64_t mine = digest_of(spec, GetParam());
        EXPECT_TRUE(recorded != kDigests.end() && recorded->second == mine)
            << fmt::format("{{\"{}\", {:#018x}}},", spec, mine);
    }
}

INSTANTIATE_TEST_SUITE_P(Paths, Digest, testing::Values(Path::reference, Path::fast));

}  // namespace
}  // namespace nibble
