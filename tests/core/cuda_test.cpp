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

TEST(Cuda, ReasonAgainstAGpuSaysWhatToDo) {
    const CudaState good = {.driver = 13000,
                            .built_with = 13000,
                            .gpus = 1,
                            .first = {.name = "NVIDIA H100 80GB HBM3", .major = 9, .minor = 0},
                            .has_kernels = true};
    const auto with = [&](auto&& change) {
        CudaState state = good;
        change(state);
        return reason_against(state);
    };
    const auto of_kind = [](CudaState& state, const char* name, int major, int minor, bool has_kernels) {
        state.first = {.name = name, .major = major, .minor = minor};
        state.has_kernels = has_kernels;
    };
    EXPECT_EQ(reason_against(good), "");
    EXPECT_EQ(with([&](CudaState& s) { of_kind(s, "NVIDIA A100", 8, 0, true); }), "");
    EXPECT_EQ(reason_against({}), "there is no NVIDIA driver on this machine; choose the device cpu");
    EXPECT_EQ(with([](CudaState& s) { s.driver = 12040, s.driver_is_too_old = true; }),
              "the NVIDIA driver of this machine serves CUDA 12.4, nibble was built with CUDA 13.0; "
              "install a newer driver");
    EXPECT_EQ(with([](CudaState& s) { s.gpus = 0; }),
              "this machine shows no NVIDIA GPU to nibble; choose the device cpu");
    EXPECT_EQ(with([&](CudaState& s) { of_kind(s, "Tesla T4", 7, 5, false); }),
              "Tesla T4 is an sm_75; nibble needs sm_80 or newer (BF16); choose the device cpu");
    const auto build_for = [&](int major, int minor) {
        return with([&](CudaState& s) { of_kind(s, "GPU", major, minor, false); });
    };
    EXPECT_TRUE(build_for(8, 9).ends_with("no kernels; build nibble with the preset ampere"));
    EXPECT_TRUE(build_for(9, 0).ends_with("build nibble with the preset hopper"));
    EXPECT_TRUE(build_for(12, 0).ends_with("build nibble with -DCMAKE_CUDA_ARCHITECTURES=120-real"));
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
