#include "nn/transformer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "numerics/philox.h"
#include "support/measured.h"
#include "transformer_fixture.h"

namespace nibble {
namespace {

using namespace testing_models;

std::unique_ptr<Transformer> make_model(const Recipe& recipe, DType activations = DType::bf16,
                                        const ModelConfig& config = small_config(), uint64_t seed = 1) {
    auto model =
        std::make_unique<Transformer>(config, recipe, Transformer::Options{.activations = activations});
    model->initialize(seed);
    return model;
}

// All gradients, one after the other.
std::vector<float> gradients_of(const Transformer& model) {
    std::vector<float> all;
    for (const Parameter& p : model.parameters()) {
        const auto gradient = p.gradient.span<const float>();
        all.insert(all.end(), gradient.begin(), gradient.end());
    }
    return all;
}

struct Result {
    double loss;
    std::vector<float> gradients;
};
Result run(Transformer& model, Batch& batch, uint32_t step = 0, uint32_t micro_step = 0, float scale = 1.0f) {
    Session session;
    session.context.step = step;
    session.context.micro_step = micro_step;
    model.zero_gradients(session.context);
    model.begin_step(session.context);
    const HeadLoss loss = model.forward_backward(session.context, batch.tokens(), batch.targets(), scale);
    return {loss.loss_sum, gradients_of(model)};
}

double evaluate(Transformer& model, Batch& batch,
                Transformer::Execution execution = Transformer::Execution::recipe) {
    Session session;
    model.begin_step(session.context, execution);
    return model.forward(session.context, batch.tokens(), batch.targets()).loss_sum;
}

TEST(TransformerInitialization, GivesEachTensorItsDeviation) {
    ModelConfig config = small_config();
    config.initializer_range = 0.05f;
    config.vocab_size = 512;
    const auto model = make_model(find_recipe("bf16"), DType::bf16, config);
    for (const Parameter& p : model->parameters()) {
        const auto values = p.master.span<const float>();
        if (p.kind == ParameterKind::norm) {
            for (const float value : values) EXPECT_EQ(value, 1.0f) << p.name;
            continue;
        }
        const bool is_output = p.name.ends_with(".out") || p.name.ends_with(".down");
        const double expected = is_output ? 0.05 / std::sqrt(4.0) : 0.05;
        double sum = 0, squares = 0;
        for (const float value : values) {
            sum += value;
            squares += double{value} * value;
        }
        const auto count = static_cast<double>(values.size());
        EXPECT_NEAR(sum / count, 0.0, 4 * expected / std::sqrt(count)) << p.name;
        EXPECT_NEAR(std::sqrt(squares / count) / expected, 1.0, 4 / std::sqrt(2 * count)) << p.name;
    }
}

TEST(TransformerInitialization, IsAFunctionOfTheSeedAlone) {
    const int threads = thread_count();
    set_thread_count(1);
    const auto one = make_model(find_recipe("bf16")),
               other = make_model(find_recipe("bf16"), DType::bf16, small_config(), 2);
    set_thread_count(3);
    const auto three = make_model(find_recipe("bf16"));
    set_thread_count(threads);
    for (size_t i = 0; i < one->parameters().size(); ++i) {
        const Tensor &a = one->parameters()[i].master, &b = three->parameters()[i].master;
        EXPECT_EQ(std::memcmp(a.data, b.data, a.bytes()), 0) << one->parameters()[i].name;
    }
    EXPECT_NE(one->parameter("head").master.as<float>()[0], other->parameter("head").master.as<float>()[0]);
    EXPECT_NE(one->parameter("head").master.as<float>()[0],
              one->parameter("embedding").master.as<float>()[0]);
}

TEST(Transformer, NamesItsParametersAndCountsThem) {
    for (const bool tied : {false, true}) {
        ModelConfig config = small_config();
        config.tie_word_embeddings = tied;
        const auto model = make_model(find_recipe("bf16"), DType::bf16, config);
        int64_t count = 0;
        for (const Parameter& p : model->parameters()) count += p.master.count();
        EXPECT_EQ(count, config.parameters());
        EXPECT_EQ(model->parameters().front().name, "embedding");
        EXPECT_EQ(model->parameters().back().name, tied ? "norm" : "head");
        EXPECT_EQ(model->parameter("layers.1.mlp.gate_up").master.shape, (Shape{192, 64}));
        EXPECT_THROW(model->parameter("layers.2.mlp.gate_up"), Error);
    }
}

TEST(Transformer, T17_StartsNearTheLossOfAUniformGuess) {
    ModelConfig config = small_config();
    config.hidden_size = 512;
    config.vocab_size = 1024;
    config.max_position_embeddings = 128;
    const auto model = make_model(find_recipe("bf16"), DType::bf16, config);
    Batch batch(4, 128, config.vocab_size, 3);
    test::expect_published("mean loss, d = 512, V = 1024: ln V + 0.02² d / 2",
                           std::log(1024.0) + .02 * .02 * 512 / 2, 0.05, evaluate(*model, batch) / 512);
}

// The gradient along random directions against central differences of the loss, everything in FP32. `scale`:
// of the weights, away from the symmetric start.
void expect_gradient_follows_the_loss(const ModelConfig& config, float scale = 5.0f) {
    const auto model = make_model(fp32_recipe(), DType::f32, config);
    for (Parameter& p : model->parameters()) {
        for (float& value : p.master.span<float>()) value *= p.kind == ParameterKind::norm ? 1.0f : scale;
        if (p.kind != ParameterKind::bias) continue;
        for (int64_t i = 0; i < p.master.count(); ++i)
            p.master.as<float>()[i] = 0.1f * static_cast<float>(i % 7);
    }
    Batch batch(2, 16, config.vocab_size, 5);
    const Result at_start = run(*model, batch);
    for (size_t i = 0; i < model->parameters().size(); ++i) {
        Parameter& p = model->parameters()[i];
        const auto master = p.master.span<float>();
        const std::vector<float> start(master.begin(), master.end());
        std::vector<double> direction(start.size());
        double square = 0;
        for (size_t j = 0; j < direction.size(); ++j) {
            const Philox draw = philox_draw(9, Purpose::sampling, j, 0, static_cast<uint16_t>(i));
            direction[j] = static_cast<double>(draw.word[0]) * 0x1p-31 - 1;
            // Half along the gradient, so that the derivative is far from zero.
            direction[j] = (direction[j] > 0 ? 1 : -0.5) * p.gradient.as<float>()[j];
            square += direction[j] * direction[j];
        }
        double expected = 0;
        for (size_t j = 0; j < direction.size(); ++j) {
            direction[j] /= std::sqrt(square);
            expected += direction[j] * p.gradient.as<float>()[j];
        }
        const auto loss_at = [&](double distance) {
            for (size_t j = 0; j < start.size(); ++j) {
                master[j] = static_cast<float>(start[j] + distance * direction[j]);
            }
            return evaluate(*model, batch);
        };
        // Richardson's extrapolation of two central differences: the error is of fourth order.
        const double h = 0.02;
        const double wide = (loss_at(2 * h) - loss_at(-2 * h)) / (4 * h),
                     narrow = (loss_at(h) - loss_at(-h)) / (2 * h);
        std::copy(start.begin(), start.end(), master.begin());
        // FP32 products in another order move a loss by some 1e-6, and so its differences by 1e-4.
        EXPECT_NEAR((4 * narrow - wide) / 3, expected, 2e-3 * std::fabs(expected) + 1.5e-4) << p.name;
    }
    EXPECT_GT(at_start.loss, 0);
}

TEST(TransformerGradient, FollowsTheLossOfAnUntiedModel) { expect_gradient_follows_the_loss(small_config()); }

TEST(TransformerGradient, FollowsTheLossOfATiedModelWithInterleavedRope) {
    ModelConfig config = small_config();
    config.tie_word_embeddings = true;
    config.rope_layout = RopeLayout::interleaved;
    config.num_key_value_heads = 4;
    expect_gradient_follows_the_loss(config);
}

TEST(TransformerGradient, FollowsTheLossOfQwen2) {
    expect_gradient_follows_the_loss(small_qwen(Architecture::qwen2));
}
TEST(TransformerGradient, FollowsTheLossOfQwen3) {
    expect_gradient_follows_the_loss(small_qwen(Architecture::qwen3), 3.0f);
}

TEST(TransformerGradient, OfMicroBatchesAddsUpToThatOfTheBatch) {
    const auto model = make_model(fp32_recipe(), DType::f32);
    Batch batch(4, 16, 64, 6);
    const Result whole = run(*model, batch, 0, 0, 0.25f);
    Session session;
    model->zero_gradients(session.context);
    model->begin_step(session.context);
    double loss = 0;
    for (int64_t half = 0; half < 2; ++half) {
        loss += model
                    ->forward_backward(session.context, batch.tokens().slice(2 * half, 2 * half + 2),
                                       batch.targets().slice(2 * half, 2 * half + 2), 0.25f)
                    .loss_sum;
    }
    EXPECT_NEAR(loss, whole.loss, 1e-4);
    const std::vector<float> sum = gradients_of(*model);
    for (size_t i = 0; i < sum.size(); ++i) ASSERT_NEAR(sum[i], whole.gradients[i], 1e-5) << i;
}

// Of one micro-batch the rounded sum; of two, each is added and the result rounded.
TEST(TransformerGradient, OfALinearLayerInBf16IsThatInF32Rounded) {
    for (const char* name : {"bf16", "quartet2", "quartet"}) {
        Transformer wide(small_config(), find_recipe(name), {});
        Transformer narrow(small_config(), find_recipe(name), {.gradients = DType::bf16});
        Transformer first(small_config(), find_recipe(name), {});
        Batch batch(2, 16, 64, 8), other(2, 16, 64, 9);
        Session session;
        const auto add = [&](Transformer& model, Batch& b) {
            model.forward_backward(session.context, b.tokens(), b.targets(), 0.25f);
        };
        for (Transformer* model : {&wide, &narrow, &first}) {
            const ArenaScope scope(session.arena);
            model->initialize(1);
            model->zero_gradients(session.context);
            model->begin_step(session.context);
            add(*model, batch);
            if (model == &first) continue;
            if (model == &wide) model->zero_gradients(session.context);
            add(*model, other);
        }
        for (size_t i = 0; i < wide.parameters().size(); ++i) {
            const Parameter &p = narrow.parameters()[i], &second = wide.parameters()[i];
            const bool is_matrix = p.kind == ParameterKind::matrix;
            ASSERT_EQ(p.gradient.dtype, is_matrix ? DType::bf16 : DType::f32) << p.name;
            if (!is_matrix) continue;
            for (int64_t j = 0; j < p.gradient.count(); ++j) {
                const float before = round_to_bf16(first.parameters()[i].gradient.as<float>()[j]);
                ASSERT_EQ(bf16_decode(p.gradient.as<Bf16>()[j]),
                          round_to_bf16(before + second.gradient.as<float>()[j]))
                    << p.name;
            }
        }
        narrow.zero_gradients(session.context);
        for (const Parameter& p : narrow.parameters()) {
            with_elements(p.gradient, [&](const auto* g) {
                for (int64_t j = 0; j < p.gradient.count(); ++j) ASSERT_EQ(to_float(g[j]), 0.0f) << p.name;
            });
        }
    }
}

class TransformerUnder : public testing::TestWithParam<const char*> {
  protected:
    Recipe recipe() const {
        if (GetParam() == std::string("fp32")) return fp32_recipe();
        if (GetParam() == std::string("fp8_head")) return with_lm_head(find_recipe("quartet2"), "fp8");
        return find_recipe(GetParam());
    }
    DType activations() const { return GetParam() == std::string("fp32") ? DType::f32 : DType::bf16; }
};

void expect_runs_in_the_memory_that_it_plans(Transformer& model) {
    Batch batch(2, 32, 64, 4);
    const Result expected = run(model, batch);
    Arena arena;
    Context context{arena};
    const auto step = [&] {
        const ArenaScope scope(arena);
        model.zero_gradients(context);
        model.begin_step(context);
        return model.forward_backward(context, batch.tokens(), batch.targets(), 1.0f).loss_sum;
    };
    step();
    arena.commit();
    EXPECT_EQ(step(), expected.loss);
    EXPECT_EQ(gradients_of(model), expected.gradients);
    EXPECT_EQ(arena.used(), 0u);
}

TEST_P(TransformerUnder, EvaluatesToTheLossOfTraining) {
    const auto model = make_model(recipe(), activations());
    Batch batch(2, 32, 64, 4);
    EXPECT_EQ(evaluate(*model, batch), run(*model, batch).loss);
}

TEST_P(TransformerUnder, RunsInTheMemoryThatItPlans) {
    const auto model = make_model(recipe(), activations());
    expect_runs_in_the_memory_that_it_plans(*model);
}

TEST_P(TransformerUnder, RepeatsAStepToTheBit) {
    const auto model = make_model(recipe(), activations());
    Batch batch(2, 32, 64, 4);
    EXPECT_EQ(run(*model, batch, 3, 1).gradients, run(*model, batch, 3, 1).gradients);
}

TEST_P(TransformerUnder, LearnsOneBatchByHeart) {
    ModelConfig config = small_config();
    config.num_hidden_layers = 1;
    const auto model = make_model(recipe(), activations(), config);
    const auto optimizer = make_adamw(*model, {.weight_decay = 0});
    Batch batch(2, 16, 64, 8);
    Session session;
    double loss = 0;
    for (uint32_t step = 0; step < 40; ++step) {
        loss =
            train_step(session.context, *model, *optimizer, batch.tokens(), batch.targets(), step, 5e-3, 1.0)
                .loss;
    }
    EXPECT_LT(loss, 0.1);
}

TEST_P(TransformerUnder, FindsNothingWrongInAHealthyStep) {
    const auto model = make_model(recipe(), activations());
    Batch batch(2, 16, 64, 8);
    Session session;
    EXPECT_EQ(model->first_non_finite(session.context, batch.tokens(), batch.targets(), 1.0f), "");
    EXPECT_EQ(session.arena.used(), 0u);
}

TEST_P(TransformerUnder, NamesTheFirstTensorThatOverflows) {
    const auto model = make_model(recipe(), activations());
    for (float& value : model->parameter("layers.1.mlp.norm").master.span<float>()) value = 3e38f;
    Batch batch(2, 16, 64, 8);
    Session session;
    EXPECT_EQ(model->first_non_finite(session.context, batch.tokens(), batch.targets(), 1.0f),
              "output of layers.1.mlp.norm");
}

TEST_P(TransformerUnder, NamesTheLayerOfAWeightThatIsTooLarge) {
    const auto model = make_model(recipe(), activations());
    // Each value is finite, sums of them are not: in the product, or already in a rotation of the weight.
    for (float& value : model->parameter("layers.1.mlp.gate_up").master.span<float>()) value = 3e38f;
    Batch batch(2, 16, 64, 8);
    Session session;
    const std::string found = model->first_non_finite(session.context, batch.tokens(), batch.targets(), 1.0f);
    EXPECT_NE(found.find("layers.1.mlp.gate_up"), std::string::npos) << found;
}

TEST_P(TransformerUnder, NamesTheFirstGradientThatOverflows) {
    const auto model = make_model(recipe(), activations());
    Batch batch(2, 16, 64, 8);
    Session session;
    const std::string found = model->first_non_finite(session.context, batch.tokens(), batch.targets(),
                                                      std::numeric_limits<float>::max());
    EXPECT_EQ(found.substr(0, 11), "gradient of") << found;
}

INSTANTIATE_TEST_SUITE_P(Recipe, TransformerUnder,
                         testing::Values("fp32", "bf16", "quartet2", "nvidia", "quartet", "fp8_head"),
                         [](const auto& test) { return std::string(test.param); });

TEST(Transformer, NamesAMasterThatIsNotFinite) {
    const auto model = make_model(find_recipe("quartet2"));
    model->parameter("layers.0.attention.out").master.as<float>()[5] =
        std::numeric_limits<float>::quiet_NaN();
    Batch batch(2, 16, 64, 8);
    Session session;
    EXPECT_EQ(model->first_non_finite(session.context, batch.tokens(), batch.targets(), 1.0f),
              "master of layers.0.attention.out");
}

TEST(Transformer, DrawsOtherCoinsInOtherSteps) {
    const auto model = make_model(find_recipe("quartet2"));
    Batch batch(2, 32, 64, 4);
    const Result first = run(*model, batch, 0, 0);
    EXPECT_NE(run(*model, batch, 1, 0).gradients, first.gradients);
    EXPECT_NE(run(*model, batch, 0, 1).gradients, first.gradients);
}

TEST(Transformer, EvaluatesInBf16WhateverTheRecipe) {
    const auto quantized = make_model(find_recipe("quartet2")), plain = make_model(find_recipe("bf16"));
    Batch batch(2, 32, 64, 4);
    const double expected = evaluate(*plain, batch);
    EXPECT_EQ(evaluate(*quantized, batch, Transformer::Execution::bf16), expected);
    EXPECT_NE(evaluate(*quantized, batch), expected);
}

TEST(Transformer, RunsItsHeadInFp8WhereTheRecipeSaysSo) {
    const auto plain = make_model(find_recipe("bf16"));
    const auto narrow = make_model(with_lm_head(find_recipe("bf16"), "fp8"));
    Batch batch(2, 32, 64, 4);
    const double expected = evaluate(*plain, batch);
    EXPECT_NE(evaluate(*narrow, batch), expected);
    EXPECT_NEAR(evaluate(*narrow, batch), expected, 0.01 * expected);
    EXPECT_EQ(evaluate(*narrow, batch, Transformer::Execution::bf16), expected);
    EXPECT_NE(run(*narrow, batch).gradients, run(*plain, batch).gradients);
}

TEST(Transformer, OfEveryArchitectureRunsInTheMemoryThatItPlansAndEvaluatesToTheLossOfTraining) {
    for (const Architecture architecture : {Architecture::qwen2, Architecture::qwen3}) {
        const auto model = make_model(find_recipe("quartet2"), DType::bf16, small_qwen(architecture));
        Batch batch(2, 32, 64, 4);
        EXPECT_EQ(evaluate(*model, batch), run(*model, batch).loss);
        expect_runs_in_the_memory_that_it_plans(*model);
    }
}

TEST(Transformer, NamesItsExtraParametersAndStartsThemNeutral) {
    const auto qwen2 = make_model(find_recipe("bf16"), DType::bf16, small_qwen(Architecture::qwen2));
    const Parameter& bias = qwen2->parameter("layers.1.attention.qkv_bias");
    EXPECT_EQ(bias.master.shape, Shape({(4 + 2 * 2) * 16}));
    EXPECT_EQ(bias.kind, ParameterKind::bias);
    EXPECT_EQ(std::ranges::count(bias.master.span<float>(), 0.0f), bias.master.count());
    const auto qwen3 = make_model(find_recipe("bf16"), DType::bf16, small_qwen(Architecture::qwen3));
    const Parameter& norm = qwen3->parameter("layers.1.attention.k_norm");
    EXPECT_EQ(norm.master.shape, Shape({16}));
    EXPECT_EQ(norm.kind, ParameterKind::norm);
    EXPECT_EQ(std::ranges::count(norm.master.span<float>(), 1.0f), 16);
    for (const auto& model : {qwen2.get(), qwen3.get()}) {
        int64_t count = 0;
        for (const Parameter& p : model->parameters()) count += p.master.count();
        EXPECT_EQ(count, model->config().parameters());
    }
}

TEST(Transformer, KeptBlocksRunInBf16) {
    Recipe recipe = find_recipe("quartet2");
    recipe.keep_first = 1;
    const auto part = make_model(recipe);
    EXPECT_TRUE(part->is_kept(0));
    EXPECT_FALSE(part->is_kept(1));
    recipe.keep_last = 1;
    const auto all = make_model(recipe), plain = make_model(find_recipe("bf16"));
    Batch batch(2, 32, 64, 4);
    const Result expected = run(*plain, batch);
    EXPECT_EQ(run(*all, batch).gradients, expected.gradients);
    EXPECT_NE(run(*part, batch).gradients, expected.gradients);
}

TEST(Transformer, LogitsOfTheLastPositionAreThoseOfAllPositions) {
    const auto model = make_model(find_recipe("bf16"));
    Batch batch(2, 8, 64, 4);
    std::vector<float> last(2 * 64), all(2 * 8 * 64);
    Session session;
    model->begin_step(session.context);
    model->logits(session.context, batch.tokens(), view_of(last, {2, 64}));
    model->logits(session.context, batch.tokens(), view_of(all, {2, 8, 64}));
    for (size_t s = 0; s < 2; ++s) {
        for (size_t v = 0; v < 64; ++v) EXPECT_NEAR(last[s * 64 + v], all[(s * 8 + 7) * 64 + v], 1e-5);
    }
}

TEST(Transformer, LossRowsAreTheNegativeLogProbabilitiesOfTheLogits) {
    const auto model = make_model(find_recipe("bf16"));
    Batch batch(2, 8, 64, 4);
    std::vector<float> logits(2 * 8 * 64), rows(2 * 8);
    Session session;
    model->begin_step(session.context);
    model->logits(session.context, batch.tokens(), view_of(logits, {2, 8, 64}));
    const HeadLoss loss =
        model->forward(session.context, batch.tokens(), batch.targets(), view_of(rows, {2, 8}));
    double sum = 0;
    for (size_t t = 0; t < rows.size(); ++t) {
        double total = 0;
        for (size_t v = 0; v < 64; ++v) total += std::exp(double{logits[t * 64 + v]});
        const double target = logits[t * 64 + static_cast<size_t>(batch.target_values[t])];
        EXPECT_NEAR(rows[t], std::log(total) - target, 1e-4);
        sum += rows[t];
    }
    EXPECT_NEAR(loss.loss_sum, sum, 1e-4);
}

TEST(Transformer, NoPositionSeesALaterOne) {
    const auto model = make_model(find_recipe("bf16"));
    Batch batch(1, 16, 64, 4);
    std::vector<float> before(16 * 64), after(16 * 64);
    Session session;
    model->begin_step(session.context);
    model->logits(session.context, batch.tokens(), view_of(before, {1, 16, 64}));
    batch.token_values[10] = (batch.token_values[10] + 1) % 64;
    model->logits(session.context, batch.tokens(), view_of(after, {1, 16, 64}));
    for (size_t i = 0; i < 10 * 64; ++i) ASSERT_EQ(before[i], after[i]) << i;
    for (size_t t = 10; t < 16; ++t) {
        const auto row = [t](const std::vector<float>& x) {
            return std::vector<float>(x.begin() + static_cast<int64_t>(t) * 64,
                                      x.begin() + static_cast<int64_t>(t + 1) * 64);
        };
        EXPECT_NE(row(before), row(after)) << t;
    }
}

TEST(Transformer, RefusesWhatItCannotRun) {
    const auto model = make_model(find_recipe("bf16"));
    Session session;
    Batch batch(1, 16, 64, 4), longer(1, 33, 64, 4);
    EXPECT_THROW(model->forward(session.context, batch.tokens(), batch.targets()), Error);  // no begin_step()
    model->begin_step(session.context);
    EXPECT_THROW(model->forward(session.context, longer.tokens(), longer.targets()), Error);
    EXPECT_THROW(model->forward(session.context, batch.tokens(), longer.targets()), Error);
    EXPECT_THROW(model->forward(session.context, batch.tokens().reshaped({16}), batch.targets()), Error);
    EXPECT_THROW(Transformer(small_config(), find_recipe("bf16"), {.activations = DType::f16}), Error);
    EXPECT_THROW(
        Transformer(small_config(), find_recipe("bf16"), {.activations = DType::f32, .logits = DType::bf16}),
        Error);
}

// Rounded logits in training and evaluation alike; those of generation stay as they are.
TEST(Transformer, RoundsTheLogitsOfItsLossesToBf16) {
    Transformer wide(small_config(), find_recipe("bf16"), {}),
        narrow(small_config(), find_recipe("bf16"), {.logits = DType::bf16});
    Batch batch(2, 16, small_config().vocab_size, 4);
    const auto logits_of = [&](Transformer& model) {
        Session session;
        const Buffer logits(DType::f32, {batch.tokens().count(), small_config().vocab_size});
        model.begin_step(session.context);
        model.logits(session.context, batch.tokens(), logits.tensor());
        const auto values = logits.tensor().span<const float>();
        return std::vector<float>(values.begin(), values.end());
    };
    wide.initialize(1);
    narrow.initialize(1);
    const double loss = run(wide, batch).loss, rounded = run(narrow, batch).loss;
    EXPECT_NE(rounded, loss);
    EXPECT_NEAR(rounded, loss, 1e-3 * loss);
    EXPECT_EQ(evaluate(narrow, batch), rounded);
    EXPECT_EQ(logits_of(narrow), logits_of(wide));
}

// What reaches the first block's input is what the embedding's rows receive.
TEST(TransformerObserver, SeesTheGradientOfTheResidualStreamFromTheLastBlockToTheFirst) {
    const auto model = make_model(fp32_recipe(), DType::f32);
    Batch batch(2, 8, small_config().vocab_size, 3);
    std::vector<int> blocks;
    std::vector<float> first;
    model->observe_residual([&](int block, const Tensor& d_residual) {
        blocks.push_back(block);
        const auto values = d_residual.span<const float>();
        first.assign(values.begin(), values.end());
    });
    run(*model, batch);
    EXPECT_EQ(blocks, (std::vector<int>{1, 0}));
    const int64_t width = small_config().hidden_size;
    std::vector<double> expected(static_cast<size_t>(small_config().vocab_size * width));
    for (size_t i = 0; i < first.size(); ++i) {
        const int64_t token = batch.token_values[i / static_cast<size_t>(width)];
        expected[static_cast<size_t>(token * width) + i % static_cast<size_t>(width)] += double{first[i]};
    }
    const auto gradient = model->parameter("embedding").gradient.span<const float>();
    for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(gradient[i], expected[i], 1e-5) << i;
}

}  // namespace
}  // namespace nibble
