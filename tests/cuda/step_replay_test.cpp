// Steps that are replayed make the bits of steps that are queued call by call.
#include "train/step_replay.h"

#include "nn/transformer_fixture.h"
#include "optim/optim.h"
#include "support/both_devices.h"

namespace nibble {
namespace {

class StepReplays : public BothDevices {
  protected:
    static constexpr int64_t kMicroSteps = 2;
    static inline const Shape kMicroBatch = {2, 16};

    struct Trained {
        std::vector<std::vector<uint32_t>> masters;  // their bits
        std::vector<double> losses;
        int64_t replays = 0;
        uint32_t unfolded = 0;  // products
    };
    struct Plan {
        int steps = 5;
        std::vector<int> call_by_call = {};  // no replays
        std::vector<int> interrupted = {};   // given up after their beginning, and made again
        std::vector<int> of_another_scale = {};
        std::vector<int> forgotten = {};  // what was recorded before them
        bool folds = false;               // MXFP4 into FP8
        // Before which half of each linear layer's inputs receive weights too small for that.
        std::optional<int> far_apart = {};
    };
    static Trained train(const Recipe& recipe, bool replays, const Plan& plan) {
        Arena arena(Device::cuda);
        Context context{arena};
        context.seed = 9;
        StepReplay replay(context);
        const Buffer fault(DType::u32, {1}, Device::cuda);
        context.fault = fault.tensor().as<uint32_t>();
        const Buffer unfolded(DType::u32, {1}, Device::cuda);
        const AllowedProducts allowed{.fp8_folded = plan.folds,
                                      .unfolded_products = unfolded.tensor().as<uint32_t>()};
        Transformer model(testing_models::small_config(), recipe,
                          {.device = Device::cuda, .allowed = allowed});
        model.initialize(3);
        std::vector<OptimizedTensor> tensors;
        std::vector<Tensor> gradients;
        for (const Parameter& p : model.parameters()) {
            tensors.push_back({p.name, p.master, p.gradient, true});
            gradients.push_back(p.gradient);
        }
        AdamW optimizer(std::move(tensors), {});
        const Buffer batch(DType::i32, kMicroBatch, Device::cuda);
        Trained result;
        const auto has = [](const std::vector<int>& all, int number) {
            return std::ranges::find(all, number) != all.end();
        };
        const auto step = [&](int number, bool as_replay, bool is_interrupted = false) {
            const ArenaScope scope(arena);
            const float scale = has(plan.of_another_scale, number) ? 1.0f / 32 : 1.0f / 64;
            if (has(plan.forgotten, number)) replay.forget();
            context.step = static_cast<uint32_t>(number);
            const Tensor losses = arena.allocate(DType::f64, {2}), norm = arena.allocate(DType::f64, {2}),
                         factor = arena.allocate(DType::f32, {1});
            std::optional<StepReplay::Kind> kind;
            if (as_replay) kind = {.scale = scale};
            replay.begin(kind, [&] {
                if (!context.planning()) fill_zero(context, losses);
                model.zero_gradients(context);
                model.begin_step(context);
            });
            if (is_interrupted) return;
            for (uint32_t micro_step = 0; micro_step < kMicroSteps; ++micro_step) {
                context.micro_step = micro_step;
                std::vector<int32_t> tokens(static_cast<size_t>(kMicroBatch.count()));
                for (size_t i = 0; i < tokens.size(); ++i)
                    tokens[i] = static_cast<int32_t>((i * i + i * micro_step + number) % 64);
                if (!context.planning()) copy(context, view_of(tokens, kMicroBatch), batch.tensor());
                replay.micro_step(
                    [&] { model.forward_backward(context, batch.tensor(), batch.tensor(), scale, losses); });
            }
            optimizer.begin_update(context, number + 1, 1e-2 / (number + 1));
            replay.end([&] {
                global_norm(context, gradients, norm);
                clip_factor(context, norm, losses, 1.0, factor);
                optimizer.finish_update(context, factor);
            });
            if (context.planning()) return;
            result.losses.push_back(read_loss(context, losses).loss_sum);
            result.replays = replay.replays();
        };
        step(0, replays);
        arena.commit();
        for (int i = 0; i < plan.steps; ++i) {
            const bool as_replay = replays && !has(plan.call_by_call, i);
            if (plan.far_apart == i) {
                for (const Parameter& p : model.parameters())
                    if (p.master.shape.rank() == 2) make_half_of_each_row_small(context, p.master);
            }
            if (has(plan.interrupted, i)) step(i, as_replay, true);
            step(i, as_replay);
        }
        for (const Parameter& p : model.parameters()) {
            const OnCpu here(p.master);
            const auto values = here.tensor().span<float>();
            result.masters.emplace_back();
            for (const float v : values) result.masters.back().push_back(std::bit_cast<uint32_t>(v));
        }
        result.unfolded = *OnCpu(unfolded.tensor()).tensor().as<uint32_t>();
        return result;
    }
    static void make_half_of_each_row_small(const Context& context, const Tensor& weight) {
        const OnCpu here(weight);
        auto* const values = here.tensor().as<float>();
        for (int64_t i = 0; i < weight.count(); ++i)
            if (i % weight.cols() < weight.cols() / 2) values[i] *= 0x1p-24f;
        copy(context, here.tensor(), weight);
    }
};

TEST_F(StepReplays, MakeTheBitsOfStepsCallByCall) {
    for (const char* name : {"bf16", "quartet2", "quartet-sr", "nvidia", "tetrajet2"}) {
        const Recipe recipe = find_recipe(name);
        ASSERT_TRUE(is_replayable(recipe)) << name;
        const Trained expected = train(recipe, false, {}), got = train(recipe, true, {});
        EXPECT_EQ(expected.replays, 0);
        EXPECT_EQ(got.replays, 3) << name;  // after one call by call, and one that is recorded
        EXPECT_EQ(got.losses, expected.losses) << name;
        EXPECT_TRUE(got.masters == expected.masters) << name;
    }
}

TEST_F(StepReplays, BeginAnewWhereAStepIsOfAnotherKind) {
    const Recipe recipe = find_recipe("quartet2");
    const auto expect = [&](const char* what, const Plan& plan, int64_t replays) {
        const Trained expected = train(recipe, false, plan), got = train(recipe, true, plan);
        EXPECT_EQ(got.replays, replays) << what;
        EXPECT_EQ(got.losses, expected.losses) << what;
        EXPECT_TRUE(got.masters == expected.masters) << what;
    };
    expect("one that is none among them", {.steps = 6, .call_by_call = {3}}, 3);
    expect("given up while it was recorded", {.interrupted = {1}}, 3);
    expect("given up while it was replayed", {.interrupted = {3}}, 4);
    expect("another scale", {.steps = 7, .of_another_scale = {3}}, 2);
    expect("forgotten", {.steps = 7, .forgotten = {3}}, 3);
}

// Also where products stop to fit after the recording was made.
TEST_F(StepReplays, ChooseAmongFoldedAndExactProductsAsStepsCallByCallDo) {
    const Recipe recipe = find_recipe("quartet-sr");
    std::vector<uint32_t> unfolded;
    for (const std::optional<int> far_apart : {std::optional<int>(), std::optional(3), std::optional(0)}) {
        const Plan plan{.folds = true, .far_apart = far_apart};
        const Trained expected = train(recipe, false, plan), got = train(recipe, true, plan);
        EXPECT_EQ(got.replays, 3);
        EXPECT_EQ(got.losses, expected.losses);
        EXPECT_TRUE(got.masters == expected.masters);
        EXPECT_EQ(got.unfolded, expected.unfolded);
        unfolded.push_back(got.unfolded);
    }
    EXPECT_LT(unfolded[0], unfolded[1]);  // a gradient or two may not fit, either
    EXPECT_LT(unfolded[1], unfolded[2]);
}

TEST_F(StepReplays, AreNotOfRecipesWhoseForwardIsTurnedBackByOtherSignsInEachStep) {
    Recipe recipe = find_recipe("quartet");
    EXPECT_TRUE(is_replayable(recipe));
    for (const char* name : {"fprop.x", "fprop.w"})
        operand(recipe, name).spec = parse_spec("mxfp4 1x32 scale=quest:std rotate=rht:32 signs=step");
    EXPECT_FALSE(is_replayable(recipe));
    for (const char* name : {"fprop.x", "fprop.w"}) operand(recipe, name).spec.signs = Signs::run;
    EXPECT_TRUE(is_replayable(recipe));
}

TEST_F(StepReplays, AreKeptFromChangingWeightsByWhatIsNotFinite) {
    run([&](Context& context) {
        const ArenaScope scope(context.arena);
        const Device on = context.device;
        const Tensor norm = context.arena.allocate(DType::f64, {2}),
                     losses = context.arena.allocate(DType::f64, {2}),
                     factor = context.arena.allocate(DType::f32, {1});
        const auto factor_of = [&](double of_norm, double of_loss, double limit) {
            if (context.planning()) return 0.0f;
            std::vector<double> norms = {of_norm, -1}, sums = {of_loss, 1};
            copy(context, view_of(norms, {2}), norm);
            copy(context, view_of(sums, {2}), losses);
            clip_factor(context, norm, losses, limit, factor);
            std::vector<float> got(1);
            copy(context, factor, view_of(got, {1}));
            return got[0];
        };
        if (context.planning()) return;
        EXPECT_EQ(factor_of(0.5, 3, 1.0), 1.0f) << name_of(on);
        EXPECT_EQ(factor_of(3.0, 3, 1.0), static_cast<float>(1.0 / 3.0)) << name_of(on);
        EXPECT_EQ(factor_of(3.0, 3, 0.0), 1.0f) << name_of(on);
        EXPECT_TRUE(std::isnan(factor_of(NAN, 3, 1.0))) << name_of(on);
        EXPECT_TRUE(std::isnan(factor_of(3.0, INFINITY, 1.0))) << name_of(on);
        if (on == Device::cpu) return;
        const Buffer fault(DType::u32, {1}, on);
        context.fault = fault.tensor().as<uint32_t>();
        EXPECT_EQ(factor_of(0.5, 3, 1.0), 1.0f);
        std::vector<uint32_t> raised = {1};
        copy(context, view_of(raised, {1}), fault.tensor());
        EXPECT_TRUE(std::isnan(factor_of(0.5, 3, 1.0)));
        context.fault = nullptr;
    });
    for (const Device device : {Device::cpu, Device::cuda}) {
        Arena arena(size_t{1} << 20, device);
        Context context{arena};
        const Twin master = Twin::random(DType::f32, {40}, 1), gradient = Twin::random(DType::f32, {40}, 2);
        AdamW optimizer({{"w", master.on(device), gradient.on(device), true}}, {});
        const Tensor factor = arena.allocate(DType::f32, {1});
        std::vector<float> none = {NAN};
        copy(context, view_of(none, {1}), factor);
        optimizer.begin_update(context, 1, 1e-2);
        optimizer.finish_update(context, factor);
        const OnCpu after(master.on(device));
        EXPECT_EQ(values_of(after.tensor()), values_of(Twin::random(DType::f32, {40}, 1).cpu.tensor()));
    }
}

}  // namespace
}  // namespace nibble
