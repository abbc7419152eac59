// What the benchmarks of `nibble bench` share: how they measure, and how they say what they found.
#pragma once

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/core.h"
#include "core/cuda.h"
#include "core/recording.h"
#include "quant/quant.h"

namespace nibble {

using Json = nlohmann::ordered_json;

struct BenchOptions {
    std::string device_name = std::string(name_of(Device::cpu));
    fs::path json;
    std::vector<std::string> names;                // specs or recipes
    std::vector<std::string> allow;                // as device.allow
    int64_t tokens = 4096, in = 1024, out = 1024;  // of a layer or an operand
    fs::path model = "configs/models/llama-1m.json";
    int64_t batch = 8, accumulate = 1, sequence = 256, steps = 5;
    std::string recompute = "none", moments = "f32", gradients = "f32", offload = "none";
    std::string logits = "fp32", lm_head = "recipe", attention = "deterministic";
    uint64_t memory = 0;  // bytes that a training may take; 0: those that are free
    bool plans = false;   // its memory alone
    bool replays = true;  // steps on a GPU that are alike

    Device device() const { return device_name == name_of(Device::cuda) ? Device::cuda : Device::cpu; }
};

inline double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

// Seconds of one call of work(context): the median of nine measurements, each of so many calls that it takes
// 20 ms or more. It is called first with a planning arena, and to warm up. is_recorded: on a GPU what is
// measured are replays of it, in which nothing waits.
template <typename Work>
double seconds_of(Device device, Work&& work, bool is_recorded = false) {
    Arena arena(device);
    const Stream stream(device);
    const Buffer fault(DType::u32, {1}, device);
    Context context{arena};
    context.stream = stream.get();
    if (device == Device::cuda) context.fault = fault.tensor().as<uint32_t>();
    std::optional<Recording> recording;
    const auto call = [&] {
        const ArenaScope scope(arena);
        work(context);
    };
    const auto run = [&](int64_t calls) {
        const double begin = now();
        for (int64_t i = 0; i < calls; ++i) recording ? recording->replay(context) : call();
        if (!context.planning()) synchronize(context);
        return (now() - begin) / static_cast<double>(calls);
    };
    run(1);
    arena.commit();
    run(1);
    if (is_recorded && device == Device::cuda) recording.emplace(context, call);
    const auto calls = std::max<int64_t>(1, static_cast<int64_t>(0.02 / run(1)));
    std::vector<double> seconds(9);
    for (double& s : seconds) s = run(calls);
    return median(seconds);
}

// About normal numbers.
Buffer random_tensor(DType dtype, Shape shape, Device device, uint64_t seed);
// Numbers from 0 to limit - 1.
Buffer random_integers(Shape shape, int64_t limit, Device device, uint64_t seed);

// A tensor, or its transpose, quantised, in memory of its device.
struct QuantizedTensor {
    QuantizedTensor(const Buffer& x, const QuantSpec& spec, bool transposed = false, Keep keep = Keep::bytes);

    Arena arena;
    QuantizedMatrix matrix;
};

// Bytes a second, read and written, of the largest copy that is worth its time.
double copy_rate(Device device);

// What a command found: printed line by line, and written to --json.
class Report {
  public:
    Report(const BenchOptions& options, const char* command);
    void add(const Json& row, const std::string& line);
    void finish() const;

  private:
    const BenchOptions& options_;
    Json json_;
};

// The kernels of a training step beside quantisers and products, at the sizes of a model: its time beside
// the least that its bytes or its operations take.
void bench_kernels(const BenchOptions& options);

}  // namespace nibble
