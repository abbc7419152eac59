#include "support/on_gpu.h"

namespace nibble {
namespace {

using Memory = OnGpu;

TEST_F(Memory, OfTheGpuComesZeroed) {
    const Buffer buffer(DType::f32, {1000}, Device::cuda);
    EXPECT_EQ(buffer.tensor().device, Device::cuda);
    EXPECT_EQ(get<float>(buffer.tensor()), std::vector<float>(1000, 0.0f));
}

TEST_F(Memory, ComesBackAsItWasPut) {
    std::vector<float> values = {1, 2, 3, 4, 5, 6};
    const Tensor there = put(view_of(values, {2, 3}));
    EXPECT_EQ(there.shape, Shape({2, 3}));
    EXPECT_EQ(get<float>(there), values);
}

TEST_F(Memory, IsClearedByFillZero) {
    std::vector<int32_t> values = {1, 2, 3};
    const Tensor there = put(view_of(values, {3}));
    fill_zero(gpu(), there.slice(0, 2));
    EXPECT_EQ(get<int32_t>(there), (std::vector<int32_t>{0, 0, 3}));
}

TEST_F(Memory, ThatIsNotThereIsAnErrorThatNamesWhatIsFree) {
    try {
        Buffer(size_t{1} << 50, Device::cuda);
        FAIL() << "a petabyte was allocated";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("are free; make the batch or the model smaller"),
                  std::string::npos);
    }
}

}  // namespace
}  // namespace nibble
