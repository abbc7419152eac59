// nibble doctor: what this machine is, whether it gives nibble's bytes, and which recipe runs how on it.
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "core/cuda.h"
#include "gemm/matmul.h"
#include "nn/attention.h"
#include "quant/digest.h"
#include "quant/fp8_codes.h"
#include "study/samples.h"
#include "train/run_header.h"
#include "train/self_check.h"

namespace nibble {

namespace {

using Json = nlohmann::ordered_json;

// True if nibble can use one.
bool print_gpus() {
    try {
        require_cuda();
    } catch (const Error& error) {
        fmt::print("gpu         none: {}\n", error.what());
        return false;
    }
    for (const CudaDevice& gpu : cuda_devices())
        fmt::print("gpu         {}, sm_{}{}, {} multiprocessors, {} of {} of memory available, CUDA {}\n",
                   gpu.name, gpu.major, gpu.minor, gpu.multiprocessors,
                   bytes_text(static_cast<double>(gpu.available_memory)),
                   bytes_text(static_cast<double>(gpu.memory)), cuda_version());
    return true;
}

// Returns the devices that nibble can use.
std::vector<Device> print_machine() {
    const Json machine = describe_machine();
    const auto text = [&](const char* key) { return machine.at(key).get<std::string>(); };
    fmt::print("nibble {}, compiled by {}\n", text("nibble"), text("compiler"));
    fmt::print("machine     {}, {}, {} threads, {} of memory available\n", cpu_name(), text("cpu_isa"),
               machine.at("threads").dump(), bytes_text(static_cast<double>(available_memory())));
    const bool has_gpu = print_gpus();
    fmt::print(
        "gemm        {}{}\n", text("gemm"),
        has_gpu ? fmt::format("; {}, {}", matmul_description(Device::cuda), attention_library(Device::cuda))
                : "");
    return has_gpu ? std::vector{Device::cpu, Device::cuda} : std::vector{Device::cpu};
}

// True if all is well.
bool print_quantizers() {
    bool is_well = true;
    for (const auto& [form, different] : check_quantizers()) {
        fmt::print("quantisers  {}: {} specs, {} inputs each: {}\n", form, recorded_digests().size(),
                   kDigestCases,
                   different.empty() ? "bytes as recorded"
                                     : fmt::format("OTHER BYTES of {}", fmt::join(different, "; ")));
        is_well = is_well && different.empty();
    }
    return is_well;
}

// The largest error of a product of two operands under a spec, of sums of so many terms, as a share of the
// sum of magnitudes. folds: MXFP4 as FP8 codes, of blocks whose magnitudes differ by up to 2^6, for products
// of equal ones are exact in narrow sums, too.
double product_error(Device device, const QuantSpec& spec, const MatmulOptions& options = {},
                     int64_t depth = 320, bool folds = false) {
    constexpr int64_t kRows = 33, kCols = 80;
    std::vector<float> a_values = random_samples(Distribution::normal, kRows * depth, 1),
                       b_values = random_samples(Distribution::normal, kCols * depth, 2);
    if (folds) {
        for (std::vector<float>* values : {&a_values, &b_values})
            for (size_t i = 0; i < values->size(); ++i)
                (*values)[i] = std::ldexp((*values)[i], -static_cast<int>(i / kMxfp4Block * 5 % 7));
    }
    Arena arena(device);
    Context context{arena};
    double worst = 0;
    const auto run = [&] {
        const ArenaScope scope(arena);
        QuantizedMatrix a = allocate_quantized(arena, spec, kRows, depth),
                        b = allocate_quantized(arena, spec, kCols, depth);
        const Tensor a_exact = arena.allocate(DType::f32, {kRows, a.padded_cols}),
                     b_exact = arena.allocate(DType::f32, {kCols, b.padded_cols});
        const Tensor product = arena.allocate(DType::f32, {kRows, kCols});
        quantize(context, spec, on_device(context, view_of(a_values, {kRows, depth})), {}, a);
        quantize(context, spec, on_device(context, view_of(b_values, {kCols, depth})), {}, b);
        dequantize(context, a, a_exact);
        dequantize(context, b, b_exact);
        if (folds)
            matmul(context, folded_to_fp8(context, a, Element::e5m2).codes,
                   folded_to_fp8(context, b, Element::e4m3).codes, product, options);
        else
            matmul(context, a, b, product, options);
        if (context.planning()) return;
        const OnCpu a_here(a_exact), b_here(b_exact), product_here(product);
        for (int64_t i = 0; i < kRows * kCols; ++i) {
            double sum = 0, magnitudes = 0;
            for (int64_t k = 0; k < a.padded_cols; ++k) {
                const double term = double{a_here.tensor().as<float>()[i / kCols * a.padded_cols + k]} *
                                    double{b_here.tensor().as<float>()[i % kCols * b.padded_cols + k]};
                sum += term, magnitudes += std::fabs(term);
            }
            const double error = std::fabs(double{product_here.tensor().as<float>()[i]} - sum) / magnitudes;
            if (!(error <= worst)) worst = std::isnan(error) ? INFINITY : error;
        }
    };
    run();
    arena.commit();
    run();
    return worst;
}

bool print_products(Device device) {
    constexpr double kMost = 1e-6;  // of FP32 sums; operands rounded once more would give 1e-3
    bool is_well = true;
    for (const char* spec : {"nvfp4 1x16", "mxfp4 1x32", "mxfp8:e4m3 1x32", "fp8:e4m3 tensor", "fp4 row",
                             "nvfp4 1x16 outer=1x128"}) {
        const double error = product_error(device, parse_spec(spec));
        fmt::print("product     {}, {}: error {:.1e} of the sum of magnitudes: {}\n", name_of(device), spec,
                   error, error <= kMost ? "exact operands, sums in f32" : "WRONG");
        is_well = is_well && error <= kMost;
    }
    for (const Fp8Sums sums : {Fp8Sums::precise, Fp8Sums::fast}) {
        if (!has_fp8_products(device)) break;
        MatmulOptions options;
        options.fp8 = sums;
        for (const bool folds : {false, true}) {
            // Sums keep about 13 bits (docs/gpu.md).
            for (const auto& [terms, most] :
                 {std::pair<int64_t, double>{320, 1e-3}, {1536, 1e-2}, {16384, 1e-2}}) {
                const QuantSpec spec = parse_spec(folds ? "mxfp4 1x32" : "fp8:e4m3 tensor");
                const double error = product_error(device, spec, options, terms, folds);
                fmt::print(
                    "product     {}, {}, allowed {}{}, {} terms: error {:.1e} of the sum of magnitudes: {}\n",
                    name_of(device), to_string(spec), folds ? "fp8-folded" : "fp8",
                    sums == Fp8Sums::precise ? "" : ", fp8-fast-accumulation", terms, error,
                    error <= most ? "within what fp8 tensor cores give" : "WRONG");
                is_well = is_well && error <= most;
            }
        }
    }
    return is_well;
}

// How the products of the linear layers are executed: those of a recipe that are alike, together.
std::string ways_of(const Recipe& recipe, Device device, const AllowedProducts& allowed = {}) {
    std::vector<std::pair<std::string, std::string>> ways;  // products, and how they are executed
    for (const Json& product : describe_products(recipe, DType::bf16, device, allowed)) {
        const std::string name = product.at("product"), executed = product.at("executed");
        if (name == "lm_head") continue;
        if (!ways.empty() && ways.back().second == executed)
            ways.back().first += ", " + name;
        else
            ways.emplace_back(name, executed);
    }
    std::string text;
    for (const auto& [products, executed] : ways)
        text += fmt::format("{}{} {}", text.empty() ? "" : "; ", products, executed);
    return text;
}

// The other kernels of a training step, against the CPU.
bool print_kernels() {
    bool is_well = true;
    for (const KernelCheck& check : check_everything()) {
        fmt::print("kernel      {}: off by {:.1e} of the largest number, {:g} at most: {}\n", check.name,
                   check.error, check.most, check.is_well() ? "as on the cpu" : "WRONG");
        is_well = is_well && check.is_well();
    }
    return is_well;
}

void print_recipes(Device device) {
    size_t width = 0;
    for (const Recipe& recipe : builtin_recipes()) width = std::max(width, recipe.name.size());
    for (const Recipe& recipe : builtin_recipes()) {
        const std::string text = ways_of(recipe, device);
        fmt::print("on {:<8} {:<{}}  {}\n", name_of(device), recipe.name, width, text);
        for (const std::string name : {"fp8", "fp8-folded"}) {
            const std::string other = ways_of(recipe, device, parse_allowed(std::span(&name, 1)));
            if (other != text)
                fmt::print("on {:<8} {:<{}}  with device.allow = [\"{}\"]: {}\n", name_of(device),
                           recipe.name, width, name, other);
        }
    }
}

void examine() {
    const std::vector<Device> devices = print_machine();
    const bool quantizers = print_quantizers();
    bool products = true;
    for (const Device device : devices) products = print_products(device) && products;
    const bool kernels = devices.back() == Device::cpu || print_kernels();
    for (const Device device : devices) print_recipes(device);
    require(
        quantizers && products && kernels,
        "this machine does not compute what nibble defines, see above; results from it are not comparable");
    fmt::print("all is well\n");
}

}  // namespace

void add_doctor_command(CLI::App& app) {
    CLI::App* doctor = app.add_subcommand(
        "doctor", "Does this machine give nibble's bytes, and which recipe runs how on it?");
    doctor->footer(
        "Compares the bytes of every quantiser, under every instruction set of this machine and on its GPU,\n"
        "with the recorded ones, products with sums in double, and the other kernels of a training step on\n"
        "the GPU with their forms for the CPU. Exit code 1 if anything differs.");
    doctor->callback([] { examine(); });
}

}  // namespace nibble
