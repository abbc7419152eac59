// The whole model against independent implementations: plain PyTorch (scripts/record_pytorch_reference.py:
// loss, all gradients, 20 training losses) and transformers (scripts/record_transformers_reference.py:
// logits; of Qwen2 and Qwen3 also the loss and all gradients).
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "transformer_fixture.h"

namespace nibble {
namespace {

using namespace testing_models;

const SafetensorsFile& pytorch() {
    static const SafetensorsFile file(fs::path(NIBBLE_SOURCE_DIR) / "tests/golden/pytorch_llama.safetensors");
    return file;
}

// What is compared with what, and how closely.
struct Variant {
    std::string recorded;  // "exact" or "bf16"
    DType activations;
    Recipe recipe;
    double misalignment;   // 1 - cosine of a gradient
    double norm;           // relative difference of a gradient's norm
    double loss;           // relative difference of the first loss
    double training_loss;  // and of each of the 20
};

Variant exact_in_fp32() { return {"exact", DType::f32, fp32_recipe(), 1e-10, 2e-6, 1e-6, 2e-6}; }
Variant bf16_as_rounded_in_pytorch() {
    return {"bf16", DType::bf16, find_recipe("bf16"), 2e-4, 5e-3, 2e-4, 1e-3};
}
Variant bf16_against_exact() { return {"exact", DType::bf16, find_recipe("bf16"), 1e-3, 1e-2, 1e-3, 2e-3}; }

std::unique_ptr<Transformer> recorded_model(const Variant& variant) {
    const ModelConfig config = parse_model_config(pytorch().metadata_value("config"), "recorded config");
    auto model = std::make_unique<Transformer>(config, variant.recipe,
                                               Transformer::Options{.activations = variant.activations});
    load_weights(*model, pytorch(), "weight.");
    return model;
}

Tensor recorded_batch(const char* name, int64_t step) {
    const Tensor& all = pytorch().tensor(name);
    return all.slice(step, step + 1).reshaped({all.shape[1], all.shape[2]});
}

// Cosine and norms of two tensors, in double.
struct Comparison {
    double dot = 0, ours = 0, theirs = 0;
    double misalignment() const { return 1 - dot / std::sqrt(ours * theirs); }
    double norm_error() const { return std::abs(std::sqrt(ours / theirs) - 1); }
};
Comparison compare(std::span<const float> ours, std::span<const float> theirs) {
    Comparison c;
    for (size_t i = 0; i < ours.size(); ++i) {
        c.dot += double{ours[i]} * theirs[i];
        c.ours += double{ours[i]} * ours[i];
        c.theirs += double{theirs[i]} * theirs[i];
    }
    return c;
}

void expect_same_loss_and_gradients(const Variant& variant) {
    const auto model = recorded_model(variant);
    Session session;
    model->begin_step(session.context);
    const Tensor targets = recorded_batch("targets", 0);
    const HeadLoss loss = model->forward_backward(session.context, recorded_batch("tokens", 0), targets,
                                                  1.0f / static_cast<float>(targets.count() - 5));
    ASSERT_EQ(loss.count, targets.count() - 5);
    const double expected = pytorch().tensor(variant.recorded + ".losses").as<double>()[0];
    EXPECT_NEAR(loss.loss_sum / static_cast<double>(loss.count) / expected, 1.0, variant.loss);
    double worst_misalignment = 0, worst_norm = 0;
    for (const HuggingFaceTensor& part : hugging_face_tensors(model->config())) {
        const auto ours =
            model->parameter(part.parameter).gradient.slice(part.begin, part.end).span<const float>();
        const auto theirs = pytorch().tensor(variant.recorded + ".gradient." + part.name).span<const float>();
        const Comparison comparison = compare(ours, theirs);
        EXPECT_LE(comparison.misalignment(), variant.misalignment) << part.name;
        EXPECT_LE(comparison.norm_error(), variant.norm) << part.name;
        worst_misalignment = std::max(worst_misalignment, comparison.misalignment());
        worst_norm = std::max(worst_norm, comparison.norm_error());
    }
    testing::Test::RecordProperty("worst_misalignment", fmt::format("{:.2e}", worst_misalignment));
    testing::Test::RecordProperty("worst_norm_error", fmt::format("{:.2e}", worst_norm));
}

void expect_same_training(const Variant& variant) {
    const auto model = recorded_model(variant);
    const auto settings = nlohmann::json::parse(pytorch().metadata_value("optimizer"));
    const auto optimizer = make_adamw(*model, {.beta1 = settings["betas"][0],
                                               .beta2 = settings["betas"][1],
                                               .epsilon = settings["epsilon"],
                                               .weight_decay = settings["weight_decay"]});
    const Schedule schedule({.shape = ScheduleShape::cosine,
                             .lr = settings["lr"],
                             .steps = settings["steps"],
                             .warmup_steps = settings["warmup_steps"],
                             .final = settings["final"]});
    const auto losses = pytorch().tensor(variant.recorded + ".losses").span<const double>();
    const auto norms = pytorch().tensor(variant.recorded + ".gradient_norms").span<const double>();
    ASSERT_EQ(losses.size(), 20u);
    Session session;
    double worst = 0;
    for (uint32_t step = 0; step < losses.size(); ++step) {
        const StepResult result =
            train_step(session.context, *model, *optimizer, recorded_batch("tokens", step),
                       recorded_batch("targets", step), step, schedule.lr(step), settings["clip"]);
        EXPECT_NEAR(result.loss / losses[step], 1.0, variant.training_loss) << "step " << step;
        EXPECT_NEAR(result.gradient_norm / norms[step], 1.0, 20 * variant.training_loss) << "step " << step;
        worst = std::max(worst, std::abs(result.loss / losses[step] - 1));
    }
    testing::Test::RecordProperty("worst_loss_error", fmt::format("{:.2e}", worst));
}

TEST(PyTorchAgrees, OnLossAndGradientsInFp32) { expect_same_loss_and_gradients(exact_in_fp32()); }
TEST(PyTorchAgrees, OnLossAndGradientsInBf16) {
    expect_same_loss_and_gradients(bf16_as_rounded_in_pytorch());
}
TEST(PyTorchAgrees, OnLossAndGradientsOfBf16WithThoseOfFp64) {
    expect_same_loss_and_gradients(bf16_against_exact());
}
TEST(PyTorchAgrees, OnTwentyTrainingLossesInFp32) { expect_same_training(exact_in_fp32()); }
TEST(PyTorchAgrees, OnTwentyTrainingLossesInBf16) { expect_same_training(bf16_as_rounded_in_pytorch()); }

// The recorded file of a family of models, and one of its models with the recorded weights.
SafetensorsFile transformers_file(const std::string& model) {
    const char* family = model.starts_with("qwen") ? "qwen" : "llama";
    return SafetensorsFile(fs::path(NIBBLE_SOURCE_DIR) /
                           fmt::format("tests/golden/transformers_{}.safetensors", family));
}

class TransformersAgrees : public testing::TestWithParam<const char*> {};

TEST_P(TransformersAgrees, OnLogitsInFp32) {
    const std::string name = GetParam(), prefix = name + ".";
    const SafetensorsFile file = transformers_file(name);
    const ModelConfig config = parse_model_config(file.metadata_value(prefix + "config"), name);
    EXPECT_EQ(config.tie_word_embeddings, name == "tied" || name == "qwen2");
    Transformer model(config, fp32_recipe(), {.activations = DType::f32});
    load_weights(model, file, prefix);
    Session session;
    model.begin_step(session.context);
    const Tensor& recorded = file.tensor(prefix + "logits");
    std::vector<float> logits(static_cast<size_t>(recorded.count()));
    model.logits(session.context, file.tensor(prefix + "tokens"), view_of(logits, recorded.shape));
    double worst = 0, rms = 0;
    const auto theirs = recorded.span<const float>();
    for (size_t i = 0; i < logits.size(); ++i) {
        worst = std::max(worst, std::abs(double{logits[i]} - theirs[i]));
        rms += double{theirs[i]} * theirs[i] / static_cast<double>(logits.size());
    }
    EXPECT_GT(rms, 0.5);
    EXPECT_LE(worst, 1e-5 * std::sqrt(rms));
    RecordProperty("largest_difference", fmt::format("{:.2e}", worst));
}

class TransformersAgreesOnQwen : public testing::TestWithParam<const char*> {};

// transformers' target i is token i + 1; the last position has none.
TEST_P(TransformersAgreesOnQwen, OnLossAndGradientsInFp32) {
    const std::string name = GetParam(), prefix = name + ".";
    const SafetensorsFile file = transformers_file(name);
    Transformer model(parse_model_config(file.metadata_value(prefix + "config"), name), fp32_recipe(),
                      {.activations = DType::f32});
    load_weights(model, file, prefix);
    const Tensor tokens = file.tensor(prefix + "tokens");
    const auto ids = tokens.span<const int32_t>();
    std::vector<int32_t> next(ids.begin() + 1, ids.end());
    next.push_back(kIgnoredTarget);
    next[static_cast<size_t>(tokens.cols() - 1)] = kIgnoredTarget;
    Session session;
    model.begin_step(session.context);
    const auto count = static_cast<float>(tokens.count() - tokens.rows());
    const HeadLoss loss =
        model.forward_backward(session.context, tokens, view_of(next, tokens.shape), 1.0f / count);
    EXPECT_NEAR(loss.loss_sum / count / file.tensor(prefix + "loss").as<float>()[0], 1.0, 1e-6);
    for (const HuggingFaceTensor& part : hugging_face_tensors(model.config())) {
        const auto ours =
            model.parameter(part.parameter).gradient.slice(part.begin, part.end).span<const float>();
        const auto theirs = file.tensor(prefix + "grad." + part.name).span<const float>();
        const Comparison comparison = compare(ours, theirs);
        // A bias of all keys shifts the scores of a query alike: its gradient is what RoPE leaves of that.
        EXPECT_LE(comparison.misalignment(), 1e-9) << part.name;
        EXPECT_LE(comparison.norm_error(), 1e-5) << part.name;
    }
}

INSTANTIATE_TEST_SUITE_P(Models, TransformersAgreesOnQwen, testing::Values("qwen2", "qwen3"),
                         [](const auto& test) { return std::string(test.param); });
INSTANTIATE_TEST_SUITE_P(Models, TransformersAgrees, testing::Values("untied", "tied", "qwen2", "qwen3"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace nibble
