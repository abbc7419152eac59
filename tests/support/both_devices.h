// For tests of CUDA forms: the same tensors on the CPU and on the GPU, one call for both, and what the two
// left compared. Skipped where there is no GPU.
#pragma once

#include <cstring>
#include <limits>

#include "core/cuda.h"
#include "nn/compare.h"

namespace nibble {

// One tensor on each device.
struct Twin {
    Buffer cpu, gpu;

    explicit Twin(Buffer values)
        : cpu(std::move(values)), gpu(cpu.tensor().dtype, cpu.tensor().shape, Device::cuda) {
        send();
    }
    static Twin random(DType dtype, Shape shape, uint64_t seed) {
        return Twin(random_buffer(dtype, shape, seed));
    }
    static Twin zeros(DType dtype, Shape shape) { return Twin(Buffer(dtype, shape)); }
    // NaN everywhere: what must be overwritten.
    static Twin output(DType dtype, Shape shape) {
        const float nan = std::numeric_limits<float>::quiet_NaN();
        return Twin(buffer_of(dtype, shape, std::vector<float>(static_cast<size_t>(shape.count()), nan)));
    }
    template <typename T>
    static Twin of(Shape shape, const std::vector<T>& values) {
        Buffer buffer(kDTypeOf<T>, shape);
        std::copy(values.begin(), values.end(), buffer.tensor().as<T>());
        return Twin(std::move(buffer));
    }

    Tensor on(Device device) const { return device == Device::cpu ? cpu.tensor() : gpu.tensor(); }
    // What the CPU's holds goes to the GPU's.
    void send() const { move(cpu.tensor(), gpu.tensor()); }
    Buffer received() const {
        Buffer back(gpu.tensor().dtype, gpu.tensor().shape);
        move(gpu.tensor(), back.tensor());
        return back;
    }

    void expect_equal(std::string_view what) const {
        const Buffer got = received();
        for (size_t i = 0; i < got.bytes(); ++i) {
            ASSERT_EQ(got.data()[i], cpu.data()[i])
                << what << " at element " << i / size_of(cpu.tensor().dtype) << " of "
                << cpu.tensor().shape.str();
        }
    }
    void expect_close(double relative, double absolute, const std::string& what) const {
        const Buffer got = received();
        nibble::expect_close(values_of(got.tensor()), values_of(cpu.tensor()), relative, absolute,
                             what + " " + cpu.tensor().shape.str());
    }

  private:
    static void move(const Tensor& from, const Tensor& to) {
        Arena none(Device::cuda);
        copy(Context{none}, from, to);
    }
};

class BothDevices : public testing::TestWithParam<DType> {
  protected:
    void SetUp() override {
        if (cuda_devices().empty()) GTEST_SKIP() << "there is no GPU";
    }
    // f(context), planned and then run, on one device. Twin::on() gives it that device's tensors.
    template <typename F>
    static void run_on(Device device, F&& f) {
        Arena arena(device);
        Context context{arena};
        f(context);
        arena.commit();
        f(context);
        synchronize(context);
    }
    template <typename F>
    static void run(F&& f) {
        run_on(Device::cpu, f);
        run_on(Device::cuda, f);
    }
};

inline const auto kActivations = testing::Values(DType::f32, DType::bf16);
inline std::string name_of_dtype(const testing::TestParamInfo<DType>& test) {
    return std::string(name_of(test.param));
}

}  // namespace nibble
