// For tests of CUDA forms: the CPU form's inputs on the GPU, its results back. They are skipped where there
// is no GPU.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "core/core.h"
#include "core/cuda.h"

namespace nibble {

class OnGpu : public testing::Test {
  protected:
    void SetUp() override {
        if (cuda_devices().empty()) GTEST_SKIP() << "there is no GPU";
        arena_ = std::make_unique<Arena>(size_t{1} << 30, Device::cuda);
        gpu_ = std::make_unique<Context>(Context{*arena_});
    }

    Context& gpu() { return *gpu_; }
    Tensor allocate(DType dtype, Shape shape) { return arena_->allocate(dtype, shape); }
    // A copy of a CPU tensor; lives until the test ends.
    Tensor put(const Tensor& from) {
        const Tensor to = allocate(from.dtype, from.shape);
        copy(gpu(), from, to);
        return to;
    }
    template <typename T>
    std::vector<T> get(const Tensor& from) {
        std::vector<T> values(static_cast<size_t>(from.count()));
        copy(gpu(), from, view_of(values, from.shape));
        return values;
    }

  private:
    std::unique_ptr<Arena> arena_;
    std::unique_ptr<Context> gpu_;
};

}  // namespace nibble
