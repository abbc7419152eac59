#include "nn/cross_entropy.h"

#include <numeric>

#include "core/cuda.h"
#include "nn/compare.h"
#include "nn/cross_entropy_reference.h"
#include "nn/cross_entropy_rows.h"
#include "numerics/numerics.h"

namespace nibble {
namespace {

TEST(HeadLossReference, BackwardIsTheGradientOfTheLoss) {
    constexpr int64_t kRows = 5, kCols = 3, kVocabulary = 4;
    auto x = random_doubles(1, kRows * kCols), weight = random_doubles(2, kVocabulary * kCols);
    const std::vector<int32_t> targets = {0, 3, kIgnoredTarget, 1, 1};
    std::vector<double> losses(kRows), dx(x.size()), dweight(weight.size());
    const auto f = [&] {
        reference::head_loss(kRows, kCols, kVocabulary, x.data(), weight.data(), targets.data(), 1.0,
                             losses.data(), static_cast<double*>(nullptr), static_cast<double*>(nullptr));
        return 0.3 * weighted_sum(std::vector<double>(kRows, 1.0), losses);
    };
    const auto dx_numeric = finite_differences(x, f), dweight_numeric = finite_differences(weight, f);
    reference::head_loss(kRows, kCols, kVocabulary, x.data(), weight.data(), targets.data(), 0.3,
                         losses.data(), dx.data(), dweight.data());
    expect_close(dx, dx_numeric, 1e-7, 1e-8, "dx");
    expect_close(dweight, dweight_numeric, 1e-7, 1e-8, "dweight");
}

struct Size {
    int64_t rows, cols, vocabulary;
};
constexpr Size kSizes[] = {{1, 4, 3}, {7, 20, 33}, {65, 32, 100}, {70, 16, 9000}};

class HeadLossOf : public testing::TestWithParam<DType> {
  protected:
    static Buffer targets_of(const Size& s) {
        Buffer targets(DType::i32, {s.rows});
        for (int64_t t = 0; t < s.rows; ++t) {
            targets.tensor().as<int32_t>()[t] =
                t % 5 == 3 ? kIgnoredTarget : static_cast<int32_t>(t * 37 % s.vocabulary);
        }
        return targets;
    }

    // Logits in BF16 are those of exact sums, so that the reference rounds the same numbers.
    static Buffer operand_of(DType logits, DType dtype, Shape shape, uint64_t seed) {
        return logits == DType::bf16 ? exact_buffer(dtype, shape, seed) : random_buffer(dtype, shape, seed);
    }

    void check(const Size& s, DType logits = DType::f32) {
        constexpr float kScale = 0.25f;
        const DType dtype = GetParam();
        const HeadOptions options{.logits = logits};
        const Buffer x = operand_of(logits, dtype, {s.rows, s.cols}, 1);
        const Buffer weight = operand_of(logits, DType::f32, {s.vocabulary, s.cols}, 2);
        const Buffer before = random_buffer(DType::f32, {s.vocabulary, s.cols}, 3);
        const Buffer targets = targets_of(s);
        const Buffer dx(dtype, {s.rows, s.cols}), dweight(DType::f32, {s.vocabulary, s.cols});
        const Buffer loss_rows(DType::f32, {s.rows});
        HeadLoss loss, trained;
        run_planned([&](Context& context) {
            std::copy_n(before.tensor().as<float>(), before.tensor().count(), dweight.tensor().as<float>());
            loss = head_loss(context, x.tensor(), weight.tensor(), targets.tensor(), loss_rows.tensor(),
                             options);
            trained = head_loss_backward(context, x.tensor(), weight.tensor(), targets.tensor(), kScale,
                                         dx.tensor(), dweight.tensor(), options);
        });

        auto w = values_of(weight.tensor());
        if (dtype == DType::bf16) {
            for (double& v : w) v = round_to_bf16(static_cast<float>(v));
        }
        const auto x_values = values_of(x.tensor());
        std::vector<double> losses(static_cast<size_t>(s.rows)), expected_dx(x_values.size());
        auto expected_dweight = values_of(before.tensor());
        reference::head_loss(s.rows, s.cols, s.vocabulary, x_values.data(), w.data(),
                             targets.tensor().as<int32_t>(), double{kScale}, losses.data(),
                             expected_dx.data(), expected_dweight.data(), logits == DType::bf16);
        // BF16: gradients of logits and dx are rounded to 8 bits. FP32: dx sums over the vocabulary, in the
        // order of the machine's library.
        const double tolerance = dtype == DType::bf16 ? 1.0 / 128 : 4e-6;
        const double of_sums = tolerance + 3e-8 * std::sqrt(static_cast<double>(s.vocabulary));
        double sum = 0;
        for (const double l : losses) sum += l;
        expect_close(values_of(loss_rows.tensor()), losses, 1e-6, 4e-6, "loss_rows");
        EXPECT_NEAR(loss.loss_sum, sum, 4e-6 * static_cast<double>(s.rows));
        EXPECT_EQ(trained.loss_sum, loss.loss_sum);
        EXPECT_EQ(loss.count, s.rows - (s.rows + 1) / 5);
        EXPECT_EQ(trained.count, loss.count);
        expect_close(values_of(dx.tensor()), expected_dx, of_sums, of_sums * largest(expected_dx) / 2, "dx");
        expect_close(values_of(dweight.tensor()), expected_dweight, tolerance, tolerance * 2, "dweight");
    }
};

TEST_P(HeadLossOf, EqualsTheReference) {
    for (const Size& s : kSizes) {
        SCOPED_TRACE(fmt::format("{} rows of {}, vocabulary {}", s.rows, s.cols, s.vocabulary));
        check(s);
    }
}

TEST_P(HeadLossOf, EqualsTheReferenceWithLogitsInBf16) {
    if (GetParam() != DType::bf16) GTEST_SKIP() << "logits in BF16 are those of x in BF16";
    for (const Size& s : kSizes) {
        SCOPED_TRACE(fmt::format("{} rows of {}, vocabulary {}", s.rows, s.cols, s.vocabulary));
        check(s, DType::bf16);
    }
}

// More gradients of logits than are kept at a time.
TEST_P(HeadLossOf, IsTheSumOverItsChunks) {
    const Size s{200, 4, 70000};
    check(s);
}

TEST_P(HeadLossOf, IsTheSameWithAnyNumberOfThreads) {
    const int before = thread_count();
    const Size s{300, 24, 700};
    const Buffer x = random_buffer(GetParam(), {s.rows, s.cols}, 1);
    const Buffer weight = random_buffer(DType::f32, {s.vocabulary, s.cols}, 2), targets = targets_of(s);
    double first = 0;
    std::vector<double> first_dx, first_dweight;
    for (const int threads : {1, 2, 3}) {
        set_thread_count(threads);
        const Buffer dx(GetParam(), {s.rows, s.cols}), dweight(DType::f32, {s.vocabulary, s.cols});
        HeadLoss loss;
        run_planned([&](Context& context) {
            loss = head_loss_backward(context, x.tensor(), weight.tensor(), targets.tensor(), 1.0f,
                                      dx.tensor(), dweight.tensor());
        });
        if (threads == 1) {
            first = loss.loss_sum;
            first_dx = values_of(dx.tensor());
            first_dweight = values_of(dweight.tensor());
        }
        EXPECT_EQ(loss.loss_sum, first);
        EXPECT_EQ(values_of(dx.tensor()), first_dx);
        EXPECT_EQ(values_of(dweight.tensor()), first_dweight);
    }
    set_thread_count(before);
}

TEST_P(HeadLossOf, AddsToTheTotalsOfAStep) {
    const Size s{70, 16, 90};
    const Buffer x = random_buffer(GetParam(), {s.rows, s.cols}, 1);
    const Buffer weight = random_buffer(DType::f32, {s.vocabulary, s.cols}, 2), targets = targets_of(s);
    const Buffer dx(GetParam(), {s.rows, s.cols}), dweight(DType::f32, {s.vocabulary, s.cols});
    HeadLoss loss, of_step;
    run_planned([&](Context& context) {
        const ArenaScope scope(context.arena);
        const Tensor totals = context.arena.allocate(DType::f64, {2});
        if (!context.planning()) fill_zero(context, totals);
        loss = head_loss_backward(context, x.tensor(), weight.tensor(), targets.tensor(), 1.0f, dx.tensor(),
                                  dweight.tensor());
        for (int micro_step = 0; micro_step < 3; ++micro_step)
            head_loss_backward(context, x.tensor(), weight.tensor(), targets.tensor(), 1.0f, dx.tensor(),
                               dweight.tensor(), totals);
        of_step = read_loss(context, totals);
    });
    EXPECT_EQ(of_step.loss_sum, loss.loss_sum + loss.loss_sum + loss.loss_sum);
    EXPECT_EQ(of_step.count, 3 * loss.count);
}

TEST_P(HeadLossOf, LogitsAreTheProduct) {
    const Buffer x = random_buffer(GetParam(), {3, 20}, 1), weight = random_buffer(DType::f32, {11, 20}, 2);
    const Buffer logits(DType::f32, {3, 11});
    run_planned(
        [&](Context& context) { head_logits(context, x.tensor(), weight.tensor(), logits.tensor()); });
    std::vector<double> expected;
    for (int64_t t = 0; t < 3; ++t) {
        for (int64_t v = 0; v < 11; ++v) {
            double sum = 0;
            for (int64_t c = 0; c < 20; ++c) {
                const float w = weight.tensor().as<float>()[v * 20 + c];
                const auto x_values = values_of(x.tensor());
                sum += x_values[static_cast<size_t>(t * 20 + c)] *
                       (GetParam() == DType::bf16 ? round_to_bf16(w) : w);
            }
            expected.push_back(sum);
        }
    }
    expect_close(values_of(logits.tensor()), expected, 1e-6, 1e-5, "logits");
}

TEST_P(HeadLossOf, GoesToInfinityOrNanWithItsLogits) {
    const Buffer x = random_buffer(GetParam(), {2, 4}, 1), weight = random_buffer(DType::f32, {5, 4}, 2);
    weight.tensor().as<float>()[9] = NAN;
    const Buffer targets(DType::i32, {2});
    HeadLoss loss;
    run_planned([&](Context& context) {
        loss = head_loss(context, x.tensor(), weight.tensor(), targets.tensor(), {});
    });
    EXPECT_FALSE(std::isfinite(loss.loss_sum));
}

TEST_P(HeadLossOf, RefusesTargetsOutsideTheVocabulary) {
    const Buffer x(GetParam(), {2, 4}), weight(DType::f32, {5, 4}), targets(DType::i32, {2});
    Arena arena(1 << 20);
    Context context{arena};
    for (const int32_t bad : {-1, 5}) {
        targets.tensor().as<int32_t>()[1] = bad;
        EXPECT_THROW(head_loss(context, x.tensor(), weight.tensor(), targets.tensor(), {}), Error);
    }
}

TEST_P(HeadLossOf, TakesLogitsInBf16WhereXIsInBf16) {
    const Buffer x(GetParam(), {2, 4}), weight(DType::f32, {5, 4}), targets(DType::i32, {2});
    Arena arena(1 << 20);
    Context context{arena};
    const auto loss = [&](DType logits) {
        head_loss(context, x.tensor(), weight.tensor(), targets.tensor(), {}, {.logits = logits});
    };
    EXPECT_THROW(loss(DType::f16), Error);
    if (GetParam() == DType::f32) {
        EXPECT_THROW(loss(DType::bf16), Error);
    } else {
        loss(DType::bf16);
    }
}

// --- FP8 ---

// The values that x has as fp8:e4m3 with one scale for the tensor.
std::vector<double> in_e4m3(const Tensor& x) {
    std::vector<double> values = values_of(x);
    const Fp32Scale scale = fp32_scale(448.0f, static_cast<float>(largest(values)));
    for (double& v : values) {
        const uint8_t code = SignedElement<E4M3, 0x80>::nearest(static_cast<float>(v) * scale.encode);
        v = double{SignedElement<E4M3, 0x80>::decode(code)} * double{scale.scale};
    }
    return values;
}

// The gradient of the logits in E5M2, where softmax - onehot = 1 is the largest code.
double in_e5m2(double gradient) {
    const uint8_t code = SignedElement<E5M2, 0x80>::nearest(static_cast<float>(gradient * 57344));
    return double{SignedElement<E5M2, 0x80>::decode(code)} / 57344;
}

class HeadLossInFp8 : public HeadLossOf {
  protected:
    void check(const Size& s, DType dtype_of_logits) {
        constexpr double kScale = 0.25;
        const HeadOptions options{.operands = HeadOperands::fp8, .logits = dtype_of_logits};
        const Buffer x = operand_of(dtype_of_logits, GetParam(), {s.rows, s.cols}, 1),
                     targets = targets_of(s);
        const Buffer weight = operand_of(dtype_of_logits, DType::f32, {s.vocabulary, s.cols}, 2);
        const Buffer dx(GetParam(), {s.rows, s.cols}), dweight(DType::f32, {s.vocabulary, s.cols});
        const Buffer loss_rows(DType::f32, {s.rows}), logits(DType::f32, {s.rows, s.vocabulary});
        HeadLoss loss, trained;
        run_planned([&](Context& context) {
            std::fill_n(dweight.tensor().as<float>(), dweight.tensor().count(), 1.0f);
            loss = head_loss(context, x.tensor(), weight.tensor(), targets.tensor(), loss_rows.tensor(),
                             options);
            trained = head_loss_backward(context, x.tensor(), weight.tensor(), targets.tensor(), kScale,
                                         dx.tensor(), dweight.tensor(), options);
            head_logits(context, x.tensor(), weight.tensor(), logits.tensor(), options);
        });

        const std::vector<double> a = in_e4m3(x.tensor()), b = in_e4m3(weight.tensor());
        std::vector<double> expected_logits, losses;
        std::vector<double> expected_dx(a.size()), expected_dweight(b.size(), 1.0);
        for (int64_t t = 0; t < s.rows; ++t) {
            const double* row = &a[static_cast<size_t>(t * s.cols)];
            std::vector<double> p;
            for (int64_t v = 0; v < s.vocabulary; ++v)
                p.push_back(std::inner_product(row, row + s.cols, &b[static_cast<size_t>(v * s.cols)], 0.0));
            expected_logits.insert(expected_logits.end(), p.begin(), p.end());
            if (dtype_of_logits == DType::bf16) {
                for (double& logit : p) logit = round_to_bf16(static_cast<float>(logit));
            }
            double total = 0;
            for (const double logit : p) total += std::exp(logit);
            const int32_t target = targets.tensor().as<int32_t>()[t];
            losses.push_back(target == kIgnoredTarget ? 0 : std::log(total) - p[target]);
            for (int64_t v = 0; v < s.vocabulary && target != kIgnoredTarget; ++v) {
                const double g = kScale * in_e5m2(std::exp(p[v]) / total - (v == target ? 1 : 0));
                for (int64_t c = 0; c < s.cols; ++c) {
                    expected_dx[t * s.cols + c] += g * b[v * s.cols + c];
                    expected_dweight[v * s.cols + c] += g * row[c];
                }
            }
        }
        expect_close(values_of(logits.tensor()), expected_logits, 1e-6, 1e-5, "logits");
        expect_close(values_of(loss_rows.tensor()), losses, 1e-6, 1e-5, "loss_rows");
        EXPECT_EQ(trained.loss_sum, loss.loss_sum);
        // A gradient in the middle of two codes can be rounded to the other one.
        const double tolerance = GetParam() == DType::bf16 ? 1.0 / 128 : 1e-3;
        expect_close(values_of(dx.tensor()), expected_dx, tolerance, tolerance * largest(expected_dx), "dx");
        expect_close(values_of(dweight.tensor()), expected_dweight, 1e-4, 1e-4, "dweight");
    }
};

TEST_P(HeadLossInFp8, IsThatOfItsFp8Operands) {
    for (const Size& s : kSizes) {
        SCOPED_TRACE(fmt::format("{} rows of {}, vocabulary {}", s.rows, s.cols, s.vocabulary));
        check(s, DType::f32);
        if (GetParam() == DType::bf16) check(s, DType::bf16);
    }
}

// Of two equal logits, the gradient of the one that is not the target is scale / 2.
TEST(LossRow, RoundsTiesOfE5M2ToTheEvenCode) {
    const std::pair<float, float> ties[] = {
        {1.125f, 1.0f}, {1.375f, 1.5f}, {0x1.8p-16f, 0x1p-15f}, {0x1p-17f, 0.0f}};
    for (const auto& [exact, rounded] : ties) {
        float logits[2] = {}, gradient[2];
        loss_row({.scale = 2 * exact, .rounding = LossRow::Rounding::e5m2}, logits, 2, 1, gradient);
        EXPECT_EQ(gradient[0], rounded) << exact;
        EXPECT_EQ(gradient[1], -rounded) << exact;
    }
}

// The loops round as numerics/elements.h does, zeros and subnormal numbers included.
TEST(LossRow, RoundsItsGradientToE5M2) {
    constexpr int64_t kVocabulary = 500;
    std::vector<float> logits, exact(kVocabulary), rounded(kVocabulary);
    for (int64_t v = 0; v < kVocabulary; ++v) logits.push_back(-0.05f * static_cast<float>(v * 7 % 600));
    std::vector<float> again = logits;
    loss_row({.scale = 57344.0f}, logits.data(), kVocabulary, 3, exact.data());
    loss_row({.scale = 57344.0f, .rounding = LossRow::Rounding::e5m2}, again.data(), kVocabulary, 3,
             rounded.data());
    int subnormal = 0, zeros = 0;
    for (size_t v = 0; v < kVocabulary; ++v) {
        EXPECT_EQ(rounded[v], element_decode(Element::e5m2, SignedElement<E5M2, 0x80>::nearest(exact[v])))
            << exact[v];
        subnormal += rounded[v] != 0 && std::fabs(rounded[v]) < 0x1p-14f;
        zeros += rounded[v] == 0;
    }
    EXPECT_GT(subnormal, 5);
    EXPECT_GT(zeros, 5);
}

TEST(HeadLoss, InFp8NamesWhatItCannotQuantise) {
    const Buffer x = random_buffer(DType::bf16, {2, 4}, 1), weight = random_buffer(DType::f32, {5, 4}, 2);
    weight.tensor().as<float>()[9] = NAN;
    const Buffer targets(DType::i32, {2});
    Arena arena(1 << 20);
    Context context{arena};
    try {
        head_loss(context, x.tensor(), weight.tensor(), targets.tensor(), {},
                  {.operands = HeadOperands::fp8});
        FAIL() << "a NaN has no code";
    } catch (const Error& error) {
        EXPECT_EQ(std::string(error.what()).find("weight of lm_head: element [2, 1] is NaN"), 0u)
            << error.what();
    }
}

INSTANTIATE_TEST_SUITE_P(Activations, HeadLossOf, testing::Values(DType::f32, DType::bf16),
                         [](const auto& test) { return std::string(name_of(test.param)); });
INSTANTIATE_TEST_SUITE_P(Activations, HeadLossInFp8, testing::Values(DType::f32, DType::bf16),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace nibble
