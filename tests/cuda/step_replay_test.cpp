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
        int replays = 0;
    };
    // Trains for some steps. Those in `call_by_call` are no replays.
    static Trained train(const Recipe& recipe, bool replays, int steps,
                         const std::vector<int>& call_by_call = {}) {
        Arena arena(Device::cuda);
        Context context{arena};
        context.seed = 9;
        StepReplay replay(context);
        const Buffer fault(DType::u32, {1}, Device::cuda);
        context.fault = fault.tensor().as<uint32_t>();
        Transformer model(testing_models::small_config(), recipe, {.device = Device::cuda});
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
        const auto step = [&](int number, bool as_replay) {
            const ArenaScope scope(arena);
            context.step = static_cast<uint32_t>(number);
            const Tensor losses = arena.allocate(DType::f64, {2}), norm = arena.allocate(DType::f64, {2}),
                         factor = arena.allocate(DType::f32, {1});
            std::optional<StepReplay::Kind> kind;
            if (as_replay) kind = {.scale = 1.0f / 64};
            replay.begin(kind, [&] {
                if (!context.planning()) fill_zero(context, losses);
                model.zero_gradients(context);
                model.begin_step(context);
            });
            for (uint32_t micro_step = 0; micro_step < kMicroSteps; ++micro_step) {
                context.micro_step = micro_step;
                std::vector<int32_t> tokens(static_cast<size_t>(kMicroBatch.count()));
                for (size_t i = 0; i < tokens.size(); ++i)
                    tokens[i] = static_cast<int32_t>((i * i + i * micro_step + number) % 64);
                if (!context.planning()) copy(context, view_of(tokens, kMicroBatch), batch.tensor());
                replay.micro_step([&] {
                    model.forward_backward(context, batch.tensor(), batch.tensor(), 1.0f / 64, losses);
                });
            }
            global_norm(context, gradients, norm);
            clip_factor(context, norm, losses, 1.0, factor);
            optimizer.update(context, number + 1, 1e-2, factor);
            if (context.planning()) return;
            result.losses.push_back(read_loss(context, losses).loss_sum);
            result.replays += replay.is_replaying() ? 1 : 0;
        };
        step(0, replays);
        arena.commit();
        for (int i = 0; i < steps; ++i)
            step(i, replays && std::ranges::find(call_by_call, i) == call_by_call.end());
        for (const Parameter& p : model.parameters()) {
            const OnCpu here(p.master);
            const auto values = here.tensor().span<float>();
            result.masters.emplace_back();
            for (const float v : values) result.masters.back().push_back(std::bit_cast<uint32_t>(v));
        }
        return result;
    }
};

TEST_F(StepReplays, MakeTheBitsOfStepsCallByCall) {
    constexpr int kSteps = 5;
    for (const char* name : {"bf16", "quartet2", "quartet-sr", "nvidia", "tetrajet2"}) {
        const Recipe recipe = find_recipe(name);
        ASSERT_TRUE(is_replayable(recipe)) << name;
        const Trained expected = train(recipe, false, kSteps), got = train(recipe, true, kSteps);
        EXPECT_EQ(expected.replays, 0);
        EXPECT_EQ(got.replays, kSteps - 2) << name;  // one call by call, one that is recorded
        EXPECT_EQ(got.losses, expected.losses) << name;
        EXPECT_TRUE(got.masters == expected.masters) << name;
    }
}

TEST_F(StepReplays, GoOnAfterAStepThatIsNone) {
    const Recipe recipe = find_recipe("quartet2");
    const Trained expected = train(recipe, false, 6), got = train(recipe, true, 6, {3});
    EXPECT_EQ(got.replays, 3);
    EXPECT_EQ(got.losses, expected.losses);
    EXPECT_TRUE(got.masters == expected.masters);
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
    });
    for (const Device device : {Device::cpu, Device::cuda}) {
        Arena arena(size_t{1} << 20, device);
        Context context{arena};
        const Twin master = Twin::random(DType::f32, {40}, 1), gradient = Twin::random(DType::f32, {40}, 2);
        AdamW optimizer({{"w", master.on(device), gradient.on(device), true}}, {});
        const Tensor factor = arena.allocate(DType::f32, {1});
        std::vector<float> none = {NAN};
        copy(context, view_of(none, {1}), factor);
        optimizer.update(context, 1, 1e-2, factor);
        const OnCpu after(master.on(device));
        EXPECT_EQ(values_of(after.tensor()), values_of(Twin::random(DType::f32, {40}, 1).cpu.tensor()));
    }
}

}  // namespace
}  // namespace nibble
