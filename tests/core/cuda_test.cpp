#include "core/cuda.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Cuda, MissingIsOneLineThatSaysWhatToDo) {
    if (!cuda_devices().empty()) GTEST_SKIP() << "there is a GPU";
    try {
        Buffer(16, Device::cuda);
        FAIL() << "memory of no GPU";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("choose the device cpu"), std::string::npos);
    }
}

TEST(Cuda, CopyRefusesAnotherTypeOrCount) {
    Arena none(0);
    const Context context{none};
    std::vector<float> floats(4);
    std::vector<int32_t> integers(4);
    EXPECT_THROW(copy(context, view_of(floats, {4}), view_of(integers, {4})), Error);
    std::vector<float> fewer(3);
    EXPECT_THROW(copy(context, view_of(floats, {4}), view_of(fewer, {3})), Error);
}

TEST(Cuda, CopyAndFillZeroServeTheCpuToo) {
    Arena none(0);
    const Context context{none};
    std::vector<float> from = {1, 2}, to(2);
    copy(context, view_of(from, {2}), view_of(to, {2}));
    EXPECT_EQ(to, from);
    fill_zero(context, view_of(to, {2}));
    EXPECT_EQ(to, std::vector<float>(2));
}

}  // namespace
}  // namespace nibble
