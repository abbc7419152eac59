#include "nn/outliers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/linear_run.h"
#include "support/measured.h"
#include "support/samples.h"

namespace nibble {
namespace {

using test::Distribution;
using test::Matrix;

struct Range {
    float low = 0, high = 0;
    Tensor tensor() { return {this, DType::f32, Device::cpu, {2}}; }
};

Range range_of(const Matrix& x, double q) {
    Arena arena;
    Context context{arena};
    Range range;
    quantile_range(context, x.tensor(), q, range.tensor());
    arena.commit();
    quantile_range(context, x.tensor(), q, range.tensor());
    return range;
}

Matrix clamped(const Matrix& x, Range range) {
    Matrix out(x.tensor().dtype, x.rows(), x.cols());
    Arena none(0);
    Context context{none};
    clamp(context, x.tensor(), range.tensor(), out.tensor());
    return out;
}

Matrix laplace(DType dtype, int64_t rows, int64_t cols) {
    return Matrix(dtype, rows, cols, test::samples(Distribution::laplace, rows * cols, 3));
}

// --- quantiles ---

void expect_the_sorted_ones(const Matrix& x, double q, int64_t cut) {
    std::vector<float> sorted = x.values();
    std::sort(sorted.begin(), sorted.end());
    const Range range = range_of(x, q);
    EXPECT_EQ(range.low, sorted.at(static_cast<size_t>(cut)));
    EXPECT_EQ(range.high, sorted.at(sorted.size() - 1 - static_cast<size_t>(cut)));
}

TEST(Quantiles, AreElementsOfTheSortedTensor) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
        for (const double q : {0.999, 0.99, 0.97, 0.75}) {
            expect_the_sorted_ones(laplace(dtype, 100, 30), q, std::lround((1 - q) * 3000));
        }
    }
}

TEST(Quantiles, OfManyElementsAreFoundInPieces) {
    for (const DType dtype : {DType::f32, DType::bf16})
        expect_the_sorted_ones(laplace(dtype, 701, 999), 0.99, 7003);
}

TEST(Quantiles, HaveAnySignAndAnySize) {
    for (const float offset : {-7.0f, 7.0f}) {
        Matrix x = laplace(DType::f32, 50, 40);
        const Tensor t = x.tensor();
        for (float& v : t.span<float>()) v = 1e-20f * (v + offset);
        expect_the_sorted_ones(x, 0.99, 20);
    }
    expect_the_sorted_ones(Matrix(DType::bf16, 1, 3, {3, -1, 2}), 0.99, 0);
    expect_the_sorted_ones(Matrix(DType::f32, 1, 1, {-5}), 0.6, 0);
    expect_the_sorted_ones(Matrix(DType::f32, 1, 100, std::vector<float>(100, 2.5f)), 0.9, 10);
}

// Two-sided shares, as the paper counts them.
TEST(Quantiles, L23_LeaveTheShareOutsideThatIsAskedFor) {
    const Matrix x(DType::f32, 1000, 100, test::normals(100'000));
    for (const auto& [q, share] : {std::pair(.999, .002), std::pair(.99, .02), std::pair(.97, .06)}) {
        const Range range = range_of(x, q);
        const std::vector<float> values = x.values();
        const auto outside = std::count_if(values.begin(), values.end(),
                                           [&](float v) { return v < range.low || v > range.high; });
        test::expect_published(fmt::format("share outside, quantile {}", q), share, 1e-9,
                               static_cast<double>(outside) / 1e5);
    }
}

TEST(Quantiles, AreRefusedOutsideOfTheUpperHalf) {
    const Matrix x = laplace(DType::f32, 4, 4);
    for (const double q : {0.5, 0.01, 1.0, std::nan("")}) EXPECT_THROW(range_of(x, q), Error) << q;
}

// --- the split ---

// The product with the identity gives back what the two parts add up to.
std::vector<float> put_together(const Matrix& x, Range range, DType weights) {
    const Matrix narrow = clamped(x, range);
    std::vector<float> identity(static_cast<size_t>(x.cols() * x.cols()), 0.0f);
    for (int64_t i = 0; i < x.cols(); ++i) identity[static_cast<size_t>(i * (x.cols() + 1))] = 1;
    const Matrix w(weights, x.cols(), x.cols(), identity),
        product(DType::f32, x.rows(), x.cols(), narrow.values());
    Arena none(0);
    Context context{none};
    add_outlier_product(context, x.tensor(), range.tensor(), w.tensor(), product.tensor(), product.tensor());
    return product.values();
}

TEST(Outliers, L23_AndWhatWasClampedAddUpToTheTensorExactly) {
    std::vector<float> values = test::samples(Distribution::student_t2, 6400, 5);
    for (size_t i = 0; i < values.size(); i += 100)
        values[i] *= std::ldexp(1.0f, static_cast<int>(i / 100) - 30);
    const Matrix x(DType::bf16, 100, 64, values);
    for (const double q : {0.999, 0.99, 0.97, 0.6}) {
        EXPECT_EQ(put_together(x, range_of(x, q), DType::bf16), x.values()) << q;
        EXPECT_EQ(put_together(x, range_of(x, q), DType::f32), x.values()) << q;
    }
}

TEST(Outliers, AreCutOffWhereTheRangeEnds) {
    const Matrix x(DType::bf16, 1, 6, {-8, -2, -1, 0.5f, 3, 9});
    EXPECT_EQ(clamped(x, {-2, 3}).values(), (std::vector<float>{-2, -2, -1, 0.5f, 3, 3}));
}

TEST(Outliers, AreMultipliedInHighPrecision) {
    const Matrix x = laplace(DType::bf16, 40, 24);
    const Matrix w(DType::bf16, 16, 24, test::normals(16 * 24, 8));
    Range range = range_of(x, 0.9);
    std::vector<float> rest = x.values();
    const std::vector<float> narrow = clamped(x, range).values();
    for (size_t i = 0; i < rest.size(); ++i) rest[i] -= narrow[i];
    const std::vector<double> expected = test::product(Matrix(DType::f32, 40, 24, rest), w);
    const Matrix wt = test::transposed(w);
    Arena none(0);
    Context context{none};
    const Matrix product(DType::f32, 40, 16), y(DType::bf16, 40, 16);
    add_outlier_product(context, x.tensor(), range.tensor(), wt.tensor(), product.tensor(), y.tensor());
    EXPECT_LT(test::relative_error(product.values(), expected), 1e-6);
    EXPECT_EQ(y.values(), Matrix(DType::bf16, 40, 16, product.values()).values());
}

TEST(Outliers, LeaveWhatIsNotFiniteToTheQuantiser) {
    const float infinity = std::numeric_limits<float>::infinity();
    const std::vector<float> out =
        clamped(Matrix(DType::f32, 1, 3, {infinity, -infinity, NAN}), {-1, 1}).values();
    EXPECT_EQ(out[0], infinity);
    EXPECT_EQ(out[1], -infinity);
    EXPECT_TRUE(std::isnan(out[2]));
}

}  // namespace
}  // namespace nibble
