#include "numerics/hadamard.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "numerics/bf16.h"
#include "numerics/reduce.h"
#include "support/measured.h"
#include "support/samples.h"

namespace nibble {
namespace {

// The Sylvester matrix: (-1)^popcount(i & j).
double sylvester(int i, int j) { return std::popcount(static_cast<unsigned>(i & j)) % 2 == 0 ? 1.0 : -1.0; }

class Hadamard : public testing::TestWithParam<int> {};

TEST_P(Hadamard, EqualsTheDenseMatrix) {
    const int size = GetParam();
    std::vector<float> x = test::normals(size, 3);
    const std::vector<float> original = x;
    hadamard_transform(x.data(), size);
    for (int i = 0; i < size; ++i) {
        double sum = 0;
        for (int j = 0; j < size; ++j) sum += sylvester(i, j) * original[j];
        EXPECT_NEAR(x[i], sum / std::sqrt(size), 1e-5);
    }
}

TEST_P(Hadamard, T02_IsItsOwnInverse) {
    const int size = GetParam();
    std::vector<float> x = test::normals(size, 4);
    const std::vector<float> original = x;
    hadamard_transform(x.data(), size);
    hadamard_transform(x.data(), size);
    for (int i = 0; i < size; ++i) EXPECT_NEAR(x[i], original[i], 2e-6);
}

TEST_P(Hadamard, IsExactOnUnitVectors) {
    const int size = GetParam();
    for (int j = 0; j < size; ++j) {
        std::vector<float> x(size, 0.0f);
        x[j] = 1.0f;
        hadamard_transform(x.data(), size);
        for (int i = 0; i < size; ++i) ASSERT_EQ(x[i], sylvester(i, j) * hadamard_factor(size));
    }
}

TEST_P(Hadamard, T02_I10_KeepsTheEnergy) {
    const int size = GetParam();
    std::vector<float> x = test::normals(size, 5);
    double before = 0, after = 0;
    for (const float v : x) before += double{v} * v;
    hadamard_transform(x.data(), size);
    for (const float v : x) after += double{v} * v;
    test::expect_published("energy after, over before", 1.0, 1e-6, after / before);
}

TEST_P(Hadamard, ReadsStridedValues) {
    const int size = GetParam();
    std::vector<float> x = test::normals(size, 6), strided(3 * size, 7.0f);
    for (int i = 0; i < size; ++i) strided[3 * i] = x[i];
    hadamard_transform(x.data(), size);
    hadamard_transform(strided.data(), size, 3);
    for (int i = 0; i < size; ++i) {
        EXPECT_EQ(strided[3 * i], x[i]);
        EXPECT_EQ(strided[3 * i + 1], 7.0f);
    }
}

TEST_P(Hadamard, FactorIsTheRoundedRoot) {
    EXPECT_EQ(hadamard_factor(GetParam()),
              static_cast<float>(1.0 / std::sqrt(static_cast<double>(GetParam()))));
}

// A matrix whose entries are in BF16, on both operands of a product, takes this from it; nibble's own
// rotations take nothing (only arithmetic=emulation has such entries).
TEST(Hadamard, I10_EntriesInBf16ShrinkAProduct) {
    const double entry = round_to_bf16(hadamard_factor(128));
    test::expect_published("factor of a product, size 128", 0.99978638, 1e-8, 128 * entry * entry);
}

INSTANTIATE_TEST_SUITE_P(Sizes, Hadamard, testing::Values(16, 32, 64, 128));

TEST(TreeSum, AddsNeighboursFirst) {
    // In index order the ones would vanish beside 2^24.
    std::vector<float> x(16, 1.0f);
    x[0] = 0x1p24f;
    EXPECT_EQ(tree_sum(x.data(), 16), 0x1p24f + 14.0f);
    EXPECT_EQ(tree_sum(x.data() + 1, 1), 1.0f);
    std::vector<float> ones(128, 1.0f);
    EXPECT_EQ(tree_sum(ones.data(), 128), 128.0f);
}

}  // namespace
}  // namespace nibble
