// What a recipe has beside its six operands: outliers that travel in a second product, a factor of dW, and
// rotated rows that the product turns back. Each against a plain composition of public functions.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "nn/dge.h"
#include "nn/quant_linear.h"
#include "support/linear_run.h"
#include "support/samples.h"

namespace nibble {
namespace {

using test::LinearInput;
using test::LinearOutput;
using test::Matrix;
using test::product;
using test::relative_error;
using test::transposed;

constexpr int64_t kTokens = 100, kIn = 48, kOut = 80;  // no multiple of a rotation's size

// Few large activations, as the methods expect them.
LinearInput make_input(DType activations = DType::bf16) {
    return {Matrix(activations, kTokens, kIn, test::samples(test::Distribution::laplace, kTokens * kIn, 1)),
            Matrix(DType::f32, kOut, kIn, test::normals(kOut * kIn, 2)),
            Matrix(activations, kTokens, kOut, test::normals(kTokens * kOut, 3))};
}

Recipe make_recipe(std::string_view x, std::string_view w) {
    Recipe recipe;  // bf16 where nothing is said
    recipe.name = "test";
    recipe.fprop_x.spec = parse_spec(x);
    recipe.fprop_w.spec = parse_spec(w);
    return recipe;
}

LinearOutput run(const Recipe& recipe, const LinearInput& input, int micro_batches = 1) {
    const QuantLinear layer(recipe, kIn, kOut, 7);
    return test::run_linear(layer, input, {}, micro_batches);
}

// The values that a spec without randomness gives, in the space where it quantises, without padded columns.
Matrix quantized(std::string_view text, const Matrix& x) {
    const QuantSpec spec = parse_spec(text);
    Arena arena(1 << 22);
    Context context{arena};
    QuantizedMatrix q = allocate_quantized(arena, spec, x.rows(), x.cols());
    quantize(context, spec, x.tensor(), {}, q);
    const Matrix values(DType::f32, q.rows, q.padded_cols);
    dequantize(context, q, values.tensor());
    Matrix cut(DType::f32, q.rows, q.cols);
    for (int64_t r = 0; r < q.rows; ++r) {
        for (int64_t c = 0; c < q.cols; ++c) cut.tensor().as<float>()[r * q.cols + c] = values.at(r, c);
    }
    return cut;
}

std::vector<double> sum(std::vector<double> a, const std::vector<double>& b) {
    for (size_t i = 0; i < a.size(); ++i) a[i] += b.at(i);
    return a;
}

Matrix in_bf16(const Matrix& m) { return Matrix(DType::bf16, m.rows(), m.cols(), m.values()); }

// --- [outliers] ---

Recipe with_outliers(double quantile, std::string_view product) {
    Recipe recipe = make_recipe("nvfp4 1x16", "nvfp4 1x16");
    recipe.outliers = {quantile, parse_spec(product)};
    return recipe;
}

// x clamped, and the rest of it.
std::pair<Matrix, Matrix> split(const Matrix& x, double quantile) {
    std::vector<float> sorted = x.values(), narrow = sorted, rest = sorted;
    std::sort(sorted.begin(), sorted.end());
    const auto cut = static_cast<size_t>(std::lround((1 - quantile) * static_cast<double>(sorted.size())));
    for (size_t i = 0; i < rest.size(); ++i) {
        narrow[i] = std::clamp(narrow[i], sorted[cut], sorted[sorted.size() - 1 - cut]);
        rest[i] -= narrow[i];
    }
    return {Matrix(x.tensor().dtype, x.rows(), x.cols(), narrow),
            Matrix(DType::f32, x.rows(), x.cols(), rest)};
}

TEST(OutliersOfALayer, TravelInASecondProduct) {
    for (const DType dtype : {DType::bf16, DType::f32}) {
        const LinearInput input = make_input(dtype);
        const auto [narrow, rest] = split(input.x, 0.97);
        const std::vector<double> quantised =
            product(quantized("nvfp4 1x16", narrow), quantized("nvfp4 1x16", input.w));
        EXPECT_LT(relative_error(run(with_outliers(0.97, "bf16"), input).y,
                                 sum(quantised, product(rest, in_bf16(input.w)))),
                  2e-6);
        EXPECT_LT(
            relative_error(run(with_outliers(0.97, "fp32"), input).y, sum(quantised, product(rest, input.w))),
            2e-6);
    }
}

TEST(OutliersOfALayer, AreRoundedWithTheSumWhereTheOutputIsBf16) {
    const LinearInput input = make_input();
    const Recipe recipe = with_outliers(0.97, "bf16");
    const QuantLinear layer(recipe, kIn, kOut, 7);
    const Matrix y(DType::bf16, kTokens, kOut);
    Arena arena(1 << 22);
    Context context{arena};
    context.seed = 1;
    const QuantLinear::Weight weight = layer.prepare(context, input.w.tensor());
    layer.forward(context, weight, input.x.tensor(), y.tensor(), QuantLinear::Use::evaluate);
    EXPECT_EQ(y.values(), Matrix(DType::bf16, kTokens, kOut, run(recipe, input).y).values());
}

TEST(OutliersOfALayer, LeaveTheGradientsAsTheyAre) {
    const LinearInput input = make_input();
    const LinearOutput a = run(make_recipe("nvfp4 1x16", "nvfp4 1x16"), input),
                       b = run(with_outliers(0.97, "bf16"), input);
    EXPECT_EQ(a.dx, b.dx);
    EXPECT_EQ(a.dw, b.dw);
}

TEST(OutliersOfALayer, LowerTheErrorOfHeavyTails) {
    const LinearInput input = make_input();
    const std::vector<double> exact = product(input.x, input.w);
    const auto error = [&](const Recipe& recipe) { return relative_error(run(recipe, input).y, exact); };
    Recipe alone = make_recipe("nvfp4 1x16", "fp32"), clamped = alone;
    clamped.outliers = {0.97, parse_spec("bf16")};
    EXPECT_LT(error(clamped), 0.9 * error(alone));
}

TEST(OutliersOfALayer, KeepNothingOfTheInputForTheBackward) {
    const LinearInput input = make_input();
    const Recipe recipe = with_outliers(0.99, "bf16");
    const QuantLinear layer(recipe, kIn, kOut, 0);
    const Matrix y(DType::bf16, kTokens, kOut);
    Arena arena;
    Context context{arena};
    const QuantLinear::Weight weight = layer.prepare(context, input.w.tensor());
    const size_t before = arena.used();
    const QuantLinear::Saved saved = layer.forward(context, weight, input.x.tensor(), y.tensor());
    EXPECT_EQ(saved.x.data, input.x.tensor().data);  // the caller's own
    EXPECT_EQ(arena.used(), before);
}

TEST(OutliersOfALayer, NameTheElementThatIsNotFinite) {
    for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
        const LinearInput input = make_input();
        input.x.tensor().as<Bf16>()[2 * kIn + 5] = bf16_encode(bad);
        try {
            run(with_outliers(0.99, "bf16"), input);
            FAIL() << bad << " was quantised";
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find("fprop.x: element [2, 5]"), std::string::npos)
                << error.what();
        }
    }
}

// --- wgrad.factor ---

Recipe with_dge(const Dge& dge) {
    Recipe recipe = make_recipe("bf16", "fp4 row");
    recipe.wgrad_factor = dge;
    return recipe;
}

TEST(DgeOfALayer, MultipliesTheWeightGradientByTheSlope) {
    const LinearInput input = make_input();
    for (const Dge dge : {Dge{5, 3}, Dge{3, 1.5}}) {
        std::vector<double> expected = product(transposed(input.dy), transposed(input.x));
        for (int64_t n = 0; n < kOut; ++n) {
            float amax = 0;
            for (int64_t k = 0; k < kIn; ++k) amax = std::max(amax, std::fabs(input.w.at(n, k)));
            for (int64_t k = 0; k < kIn; ++k)
                expected[static_cast<size_t>(n * kIn + k)] *= dge_slope(6 * (input.w.at(n, k) / amax), dge);
        }
        EXPECT_LT(relative_error(run(with_dge(dge), input).dw, expected), 2e-6);
        EXPECT_EQ(run(with_dge(dge), input).dx, run(make_recipe("bf16", "fp4 row"), input).dx);
    }
}

TEST(DgeOfALayer, MultipliesOnlyWhatIsAdded) {
    const LinearInput input = make_input();
    const Recipe recipe = with_dge({5, 3});
    EXPECT_LT(relative_error(run(recipe, input, 4).dw, run(recipe, input).dw), 2e-6);
}

// --- rotate=...@rows ---

Recipe with_rotated_rows(std::string_view dgrad_dy, std::string_view wgrad_dy) {
    Recipe recipe = make_recipe("bf16", "bf16");
    recipe.dgrad_dy.spec = parse_spec(dgrad_dy);
    recipe.wgrad_dy.spec = parse_spec(wgrad_dy);
    return recipe;
}

// The rows of `m`, with rows of zeros up to a multiple of 32, after a Hadamard transform of 32; m's own
// count.
std::vector<double> turned_back(const std::vector<double>& m, int64_t rows, int64_t cols) {
    const int64_t padded = static_cast<int64_t>(m.size()) / cols;
    const Matrix all(DType::f32, padded, cols, std::vector<float>(m.begin(), m.end()));
    Arena none(0);
    Context context{none};
    unrotate_rows(context, 32, {}, all.tensor());
    const std::vector<float> values = all.values();
    return {values.begin(), values.begin() + rows * cols};
}

TEST(RotatedRowsOfALayer, CancelInTheProduct) {
    const LinearInput input = make_input();
    const std::vector<double> dx = product(input.dy, transposed(in_bf16(input.w)));
    const std::vector<double> dw = product(transposed(input.dy), transposed(input.x));
    const LinearOutput plain = run(with_rotated_rows("nvfp4 1x16", "nvfp4 1x16"), input);
    for (const char* rotation : {"hadamard:32", "rht:16", "rht2:128"}) {
        const std::string spec = fmt::format("nvfp4 1x16 rotate={}@rows", rotation);
        const LinearOutput out = run(with_rotated_rows(spec, spec), input);
        EXPECT_LT(relative_error(out.dx, dx), 1.3 * relative_error(plain.dx, dx)) << rotation;
        EXPECT_LT(relative_error(out.dw, dw), 1.3 * relative_error(plain.dw, dw)) << rotation;
        EXPECT_EQ(out.y, plain.y);
    }
}

TEST(RotatedRowsOfALayer, AreQuantisedInBetween) {
    const LinearInput input = make_input();
    const char* spec = "nvfp4 1x16 rotate=hadamard:32@rows";
    const LinearOutput out = run(with_rotated_rows(spec, spec), input);
    const std::vector<double> dx = product(quantized(spec, input.dy), transposed(in_bf16(input.w)));
    EXPECT_LT(relative_error(out.dx, turned_back(dx, kTokens, kIn)), 2e-6);
    const std::vector<double> dw = product(quantized(spec, transposed(input.dy)), transposed(input.x));
    EXPECT_LT(relative_error(out.dw, turned_back(dw, kOut, kIn)), 2e-6);
}

TEST(RotatedRowsOfALayer, HelpATokenWithLargeGradients) {
    LinearInput input = make_input();
    Bf16* const dy = input.dy.tensor().as<Bf16>();
    for (int64_t n = 0; n < kOut; ++n) dy[n] = bf16_encode(50 * bf16_decode(dy[n]));
    const std::vector<double> exact = product(input.dy, transposed(in_bf16(input.w)));
    const auto error_of_others = [&](const char* spec) {
        const LinearOutput out = run(with_rotated_rows(spec, "bf16"), input);
        const std::vector<float> others(out.dx.begin() + kIn, out.dx.end());
        return relative_error(others, std::vector<double>(exact.begin() + kIn, exact.end()));
    };
    EXPECT_GT(error_of_others("fp4 tensor"), 0.9);  // they are all rounded to zero
    EXPECT_LT(error_of_others("fp4 tensor rotate=hadamard:128@rows"), 0.9);
}

}  // namespace
}  // namespace nibble
