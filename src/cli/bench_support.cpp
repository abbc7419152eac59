#include <cstdio>

#include "cli/bench.h"
#include "train/random_numbers.h"
#include "train/run_header.h"

namespace nibble {

namespace {

Buffer moved(Buffer here, Device device) {
    if (device == Device::cpu) return here;
    Buffer there(here.tensor().dtype, here.tensor().shape, device);
    copy(here.tensor(), there.tensor());
    return there;
}

}  // namespace

Buffer random_tensor(DType dtype, Shape shape, Device device, uint64_t seed) {
    Buffer here(dtype, shape);
    fill_about_normal(here.tensor(), seed);
    return moved(std::move(here), device);
}

Buffer random_integers(Shape shape, int64_t limit, Device device, uint64_t seed) {
    Buffer here(DType::i32, shape);
    fill_below(here.tensor(), limit, seed);
    return moved(std::move(here), device);
}

QuantizedTensor::QuantizedTensor(const Buffer& x, const QuantSpec& spec, bool transposed, Keep keep)
    : arena(x.tensor().device) {
    const int64_t rows = x.tensor().rows(), cols = x.tensor().cols();
    Context context{arena};
    const auto make = [&] {
        matrix = allocate_quantized(arena, spec, transposed ? cols : rows, transposed ? rows : cols, keep);
        quantize(context, spec, x.tensor(), {.seed = 1}, matrix, {.transposed = transposed});
    };
    {
        const ArenaScope scope(arena);
        make();
    }
    arena.commit();
    make();
}

double copy_rate(Device device) {
    const int64_t count = device == Device::cuda ? int64_t{1} << 30 : int64_t{1} << 26;
    const Buffer from(DType::u8, {count}, device), to(DType::u8, {count}, device);
    return 2.0 * static_cast<double>(count) / seconds_of(device, [&](Context& context) {
               if (!context.planning()) copy(context, from.tensor(), to.tensor());
           });
}

Report::Report(const BenchOptions& options, const char* command) : options_(options) {
    if (options.device() == Device::cuda) require_cuda();
    const Json machine = describe_machine(options.device());
    json_ = {{"command", command}, {"device", options.device_name}, {"machine", machine}};
    fmt::print("{}, {}\n", machine.value("gpu", cpu_name()), machine.at("gemm").get<std::string>());
}

void Report::add(const Json& row, const std::string& line) {
    json_["results"].push_back(row);
    fmt::print("{}\n", line);
    std::fflush(stdout);
}

void Report::finish() const {
    if (!options_.json.empty()) write_text(options_.json, json_.dump(2) + "\n");
}

}  // namespace nibble
