#include "optim/optim.h"

#include "support/both_devices.h"

namespace nibble {
namespace {

class OptimOnGpu : public BothDevices {};

// Several chunks of AdamW and of the norm, tails of every length, an empty tensor, a single element.
constexpr int64_t kCounts[] = {40'000, 16'384, 8'195, 1, 0, 77, 130};

void expect_updates_as_on_the_cpu(const AdamWOptions& options, DType of_gradients) {
    std::vector<Twin> masters, gradients;
    std::vector<OptimizedTensor> tensors[2];
    for (const int64_t count : kCounts) {
        masters.push_back(Twin::random(DType::f32, {count}, 1));
        gradients.push_back(Twin::random(of_gradients, {count}, 2));
        for (const Device device : {Device::cpu, Device::cuda})
            tensors[device == Device::cuda].push_back(
                {"w", masters.back().on(device), gradients.back().on(device), count % 2 == 0});
    }
    AdamWOptions cpu_options = options;
    cpu_options.offload = false;
    AdamW on_cpu(tensors[0], cpu_options), on_gpu(tensors[1], options);
    for (const Device device : {Device::cpu, Device::cuda}) {
        Arena arena(0, device);
        Context context{arena};
        context.seed = 77;
        AdamW& optimizer = device == Device::cpu ? on_cpu : on_gpu;
        for (int update = 1; update <= 3; ++update) optimizer.update(context, update, 3e-3 / update, 0.7);
        synchronize(context);
    }
    for (size_t t = 0; t < std::size(kCounts); ++t) {
        masters[t].expect_equal("master");
        EXPECT_EQ(on_gpu.state()[t].m.device, Device::cuda);
        for (const auto moment : {&AdamW::State::m, &AdamW::State::v}) {
            const Tensor expected = on_cpu.state()[t].*moment;
            const OnCpu got(on_gpu.state()[t].*moment);
            ASSERT_EQ(got.tensor().dtype, expected.dtype);
            EXPECT_TRUE(expected.bytes() == 0 ||
                        std::memcmp(got.tensor().data, expected.data, expected.bytes()) == 0)
                << "moments of " << kCounts[t] << " elements";
        }
    }
}

TEST_F(OptimOnGpu, AdamWUpdatesAsOnTheCpuToTheBit) {
    for (const DType moments : {DType::f32, DType::bf16}) {
        for (const DType gradients : {DType::f32, DType::bf16}) {
            for (const bool offload : {false, true}) {
                AdamWOptions options;
                options.moments = moments;
                options.offload = offload;
                SCOPED_TRACE(fmt::format("moments {}, gradients {}, offload {}", name_of(moments),
                                         name_of(gradients), offload));
                expect_updates_as_on_the_cpu(options, gradients);
            }
        }
    }
}

TEST_F(OptimOnGpu, AdamWRefusesTensorsOfTwoDevices) {
    const Twin w = Twin::zeros(DType::f32, {4});
    EXPECT_THROW(AdamW({{"w", w.cpu.tensor(), w.gpu.tensor(), true}}, {}), Error);
}

GradientNorm norm_of(const std::vector<Twin>& twins, Device device) {
    std::vector<Tensor> tensors;
    for (const Twin& twin : twins) tensors.push_back(twin.on(device));
    Arena arena(device);
    Context context{arena};
    global_norm(context, tensors);
    arena.commit();
    return global_norm(context, tensors);
}

TEST_F(OptimOnGpu, TheNormIsThatOfTheCpu) {
    std::vector<Twin> gradients;
    // More tensors than one launch takes.
    for (int i = 0; i < 20; ++i)
        for (const int64_t count : kCounts)
            gradients.push_back(Twin::random(DType::f32, {count}, static_cast<uint64_t>(i)));
    const GradientNorm expected = norm_of(gradients, Device::cpu), got = norm_of(gradients, Device::cuda);
    EXPECT_NEAR(got.norm, expected.norm, 1e-12 * expected.norm);
    EXPECT_EQ(got.first_non_finite, -1);
    EXPECT_EQ(norm_of(gradients, Device::cuda).norm, got.norm);
}

TEST_F(OptimOnGpu, TheNormOfBf16GradientsIsThatOfTheCpu) {
    std::vector<Twin> gradients;
    for (const int64_t count : kCounts) {
        gradients.push_back(Twin::random(DType::bf16, {count}, 3));
        gradients.push_back(Twin::random(DType::f32, {count}, 4));
    }
    const GradientNorm expected = norm_of(gradients, Device::cpu), got = norm_of(gradients, Device::cuda);
    EXPECT_NEAR(got.norm, expected.norm, 1e-12 * expected.norm);
}

TEST_F(OptimOnGpu, TheFirstTensorThatIsNotFiniteIsNamed) {
    std::vector<Twin> gradients;
    for (int i = 0; i < 300; ++i) gradients.push_back(Twin::random(DType::f32, {300}, 1));
    gradients[280].cpu.tensor().as<float>()[299] = std::numeric_limits<float>::infinity();
    gradients[290].cpu.tensor().as<float>()[0] = std::numeric_limits<float>::quiet_NaN();
    gradients[280].send();
    gradients[290].send();
    const GradientNorm got = norm_of(gradients, Device::cuda);
    EXPECT_EQ(got.first_non_finite, 280);
    EXPECT_FALSE(std::isfinite(got.norm));
}

}  // namespace
}  // namespace nibble
