#include "train/run_header.h"

#include <fmt/chrono.h>
#include <hwy/targets.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <fstream>

#include "core/cuda.h"
#include "core/version.h"
#include "gemm/matmul.h"
#include "gemm/tile_product.h"
#include "train/speed_of_light.h"

namespace nibble {

using Json = nlohmann::ordered_json;

namespace {

// The value of a "key : value" line of a file of /proc, or nothing.
std::string proc_value(const char* file, const std::string& key) {
    std::ifstream stream(file);
    for (std::string line; std::getline(stream, line);) {
        if (!line.starts_with(key)) continue;
        const size_t at = line.find_first_not_of(" \t", line.find(':') + 1);
        return at == std::string::npos ? "" : line.substr(at);
    }
    return "";
}

// The widest vector instructions that nibble's own code can use here.
std::string vector_isa() {
    const int64_t supported = hwy::SupportedTargets();
    return hwy::TargetName(supported & -supported);  // the lowest bit is the best
}

std::string format_of(const OperandSpec& operand) {
    std::string text = to_string(operand.spec);
    return text.substr(0, text.find(' '));
}

// What multiplies the operands (nn/quant_linear.h, gemm/matmul.h). `forward`: what b is made from, if it is.
std::string executed(Device device, const AllowedProducts& allowed, bool fits_fp8, const OperandSpec& a,
                     const OperandSpec& b, const QuantSpec& forward = {}) {
    const ProductWay way = product_way(a, b, allowed, device);
    if (way != ProductWay::emulated) {
        const bool folds = way == ProductWay::folded;
        std::vector<std::string_view> exceptions;
        if (folds) exceptions.push_back("scales of a row lie too far apart");
        if (!fits_fp8) exceptions.push_back("a size is no multiple of 16");
        return fmt::format(
            "{} on fp8 tensor cores, {}{}", folds ? "fp8-folded: scales folded into fp8 codes" : "fp8: codes",
            allowed.fp8_fast_accumulation ? "fp8-fast-accumulation: narrow sums" : "sums narrower than f32",
            exceptions.empty() ? ""
                               : fmt::format(" (emulated in bf16 where {})", fmt::join(exceptions, " or ")));
    }
    if (device == Device::cuda && multiplies_by_groups(a, b, forward))
        return "emulated: exact products in bf16, sums of groups times their scales in f32";
    const bool quantized = a.spec.is_quantized() || b.spec.is_quantized();
    const bool reads_forward = b.source != Source::original && !b.spec.is_quantized();
    const bool has_fp32_scales =
        a.spec.has_fp32_groups() || b.spec.has_fp32_groups() || (reads_forward && forward.has_fp32_scales());
    const bool wide = has_fp32_scales || a.spec.format == Format::fp32 || b.spec.format == Format::fp32;
    return fmt::format(
        "{} in {}, sums in f32",
        has_fp32_scales ? "emulated: products of values with f32 scales"
        : quantized     ? "emulated: exact products"
                        : "products",
        wide || (device == Device::cpu && bf16_product_dtype() == DType::f32) ? "f32" : "bf16");
}

#ifdef __clang__
constexpr const char* kCompiler = __VERSION__;  // with its name
#else
constexpr const char* kCompiler = "g++ " __VERSION__;
#endif

Json describe_data(const TokenShards& shards) {
    return {{"path", shards.path().string()},
            {"tokens", shards.tokens()},
            {"documents", shards.documents()},
            {"text_bytes", shards.text_bytes()},
            {"hash", fmt::format("{:016x}", shards.hash())}};
}

}  // namespace

std::string cpu_name() {
    const std::string name = proc_value("/proc/cpuinfo", "model name");
    return name.empty() ? "unknown cpu" : name;
}

Json describe_machine(Device device) {
    Json machine = {{"cpu_isa", vector_isa()},
                    {"gemm", matmul_description(device)},
                    {"threads", thread_count()},
                    {"compiler", kCompiler},
                    {"nibble", version()}};
    if (device == Device::cuda) {
        machine["gpu"] = cuda_devices().front().name;
        machine["cuda"] = cuda_version();
        machine["attention"] = attention_library(device);
    }
    return machine;
}

Json describe_products(const Recipe& recipe, DType activations, Device device, const AllowedProducts& allowed,
                       bool fits_fp8) {
    Json all = Json::array();
    const auto add = [&](const char* product, const OperandSpec& a, const OperandSpec& b,
                         const QuantSpec& forward = {}) {
        all.push_back({{"product", product},
                       {"requested", fmt::format("{} x {}", format_of(a), format_of(b))},
                       {"executed", executed(device, allowed, fits_fp8, a, b, forward)}});
    };
    add("fprop", recipe.fprop_x, recipe.fprop_w);
    if (recipe.outliers) {  // nn/outliers.h
        all.push_back({{"product", "outliers"},
                       {"requested", fmt::format("fp32 x {}", to_string(recipe.outliers->product))},
                       {"executed", "over elements that are not zero, products and sums in f32"}});
    }
    add("dgrad", recipe.dgrad_dy, recipe.dgrad_w, recipe.fprop_w.spec);
    add("wgrad", recipe.wgrad_dy, recipe.wgrad_x, recipe.fprop_x.spec);
    const bool has_fp8_head = recipe.lm_head == "fp8";
    OperandSpec head;
    if (activations == DType::f32) head.spec.format = Format::fp32;
    if (has_fp8_head) head.spec = parse_spec("fp8:e4m3 tensor");
    add("lm_head", head, head);
    if (has_fp8_head) all.back()["requested"] = "fp8:e4m3 x fp8:e4m3, gradient fp8:e5m2";
    return all;
}

bool fit_fp8(const ModelConfig& shape) {
    const std::array<int64_t, 5> columns = {shape.hidden_size, shape.qkv_size(), shape.attention_size(),
                                            shape.intermediate_size, shape.vocab_size};
    return std::ranges::all_of(columns, [](int64_t size) { return size % kFp8Multiple == 0; });
}

Json describe(const Phase& phase) {
    Json json = to_json(phase.written);
    for (const char* key : {"at", "at_step", "fprop", "dgrad", "wgrad", "lm_head"}) json.erase(key);
    if (phase.first_step != Phase::kNotBegun) json["after_step"] = phase.first_step;
    json["recipe"] = phase.recipe.name;
    return json;
}

Json make_header(const HeaderParts& parts) {
    const Transformer& model = parts.model;
    const Recipe& recipe = model.recipe();
    const ModelConfig& shape = model.config();
    Json kept = Json::array();
    for (int block = 0; block < shape.num_hidden_layers; ++block)
        if (model.is_kept(block)) kept.push_back(block);
    const int64_t sequence = parts.config.data.sequence_length;
    Json data = {{"train", describe_data(parts.train)}};
    if (parts.validation != nullptr) data["validation"] = describe_data(*parts.validation);
    data["vocabulary"] = fmt::format("{:016x}", parts.train.vocabulary_hash());
    Json memory = to_json(parts.memory);
    memory["available"] = available_memory(model.options().device);
    Json phases = Json::array();
    for (const Phase& phase : parts.all_phases)
        if (phase.first_step > 0) phases.push_back(describe(phase));
    return {
        {"type", "header"},
        {"name", parts.config.name},
        {"command", parts.command},
        {"started", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))},
        {"steps", parts.steps},
        {"tokens_per_step", parts.config.tokens_per_step()},
        {"config", to_json(parts.config)},
        {"recipe",
         {{"name", recipe.name},
          {"source", recipe.source},
          {"table", to_table(recipe)},
          {"toml", to_toml(recipe)}}},
        {"phases", phases},
        {"gemms", describe_products(recipe, model.options().activations, model.options().device,
                                    model.options().allowed, fit_fp8(shape))},
        {"attention", attention_description(model.options().device,
                                            {sequence, shape.num_attention_heads, shape.num_key_value_heads,
                                             shape.head_dim, model.options().deterministic_attention},
                                            model.options().activations)},
        {"kept_blocks", kept},
        {"model",
         {{"config", Json::parse(to_json(shape))},
          {"parameters", shape.parameters()},
          {"matmul_parameters", matmul_parameters(shape)},
          {"training_flops_per_token", training_flops_per_token(shape, sequence)}}},
        {"data", data},
        {"device", {{"kind", parts.config.device.kind}, {"cpu", cpu_name()}, {"gemm_peak", parts.gemm_peak}}},
        {"machine", describe_machine(model.options().device)},
        {"memory", memory},
    };
}

std::string phase_text(const Json& phase) {
    std::string text = phase.contains("when") ? "when " + phase.at("when").get<std::string>() : "";
    if (phase.contains("after_step"))
        text += fmt::format("{}after step {}", text.empty() ? "" : ", ", phase.at("after_step").dump());
    text += ": recipe " + phase.at("recipe").get<std::string>();
    if (phase.contains("schedule")) {
        const Json& schedule = phase.at("schedule");
        text += fmt::format("; schedule {}, warm-up of {} steps", schedule.at("name").get<std::string>(),
                            schedule.at("warmup_steps").dump());
        if (schedule.contains("lr")) text += fmt::format(", lr {}", schedule.at("lr").dump());
        if (schedule.contains("final")) text += fmt::format(", final {}", schedule.at("final").dump());
    }
    if (phase.contains("extra_steps")) text += fmt::format("; {} steps more", phase.at("extra_steps").dump());
    return text;
}

std::string recipe_text(const std::string& table, const Json& products) {
    std::string text = table;
    if (text.ends_with('\n')) text.pop_back();
    for (const Json& product : products)
        text += fmt::format("\n{:<8} requested {}, executed {}", product.at("product").get<std::string>(),
                            product.at("requested").get<std::string>(),
                            product.at("executed").get<std::string>());
    return text;
}

std::string to_text(const Json& header) {
    const Json &model = header.at("model"), &data = header.at("data"), &memory = header.at("memory"),
               &machine = header.at("machine");
    const Device device =
        header.at("device").at("kind") == name_of(Device::cuda) ? Device::cuda : Device::cpu;
    std::string text = fmt::format("{}: {} parameters, {} steps of {} tokens\n",
                                   header.at("name").get<std::string>(), model.at("parameters").dump(),
                                   header.at("steps").dump(), header.at("tokens_per_step").dump());
    text += recipe_text(header.at("recipe").at("table").get<std::string>(), header.at("gemms"));
    text += fmt::format("\nattention executed {}\n", header.at("attention").get<std::string>());
    for (const Json& phase : header.at("phases")) text += fmt::format("phase    {}\n", phase_text(phase));
    if (!header.at("kept_blocks").empty())
        text += fmt::format("blocks   {} kept: requested bf16 x bf16, executed {}\n",
                            header.at("kept_blocks").dump(),
                            executed(device, {}, true, OperandSpec{}, OperandSpec{}));
    text += fmt::format("device   {} \"{}\", {} threads, {}, {}; bf16 products: {:.0f} GFLOP/s\n",
                        header.at("device").at("kind").get<std::string>(),
                        machine.value("gpu", header.at("device").at("cpu").get<std::string>()),
                        machine.at("threads").dump(), machine.at("cpu_isa").get<std::string>(),
                        machine.at("gemm").get<std::string>(),
                        header.at("device").at("gemm_peak").get<double>() * 1e-9);
    for (const char* part : {"train", "validation"})
        if (data.contains(part))
            text += fmt::format("data     {} {}: {} tokens, {} bytes of text, hash {}\n", part,
                                data.at(part).at("path").get<std::string>(),
                                data.at(part).at("tokens").dump(), data.at(part).at("text_bytes").dump(),
                                data.at(part).at("hash").get<std::string>());
    const Json& config = header.at("config");
    const std::string moments = config.at("optimizer").value("moments", "f32"),
                      gradients = config.at("train").value("gradients", "f32");
    if (moments != "f32" || gradients != "f32")
        text += fmt::format("storage  moments {}{}, gradients of linear layers {}\n", moments,
                            moments == "f32" ? "" : " (rounded stochastically)", gradients);
    if (config.contains("precision") && config.at("precision").value("logits", "fp32") != "fp32")
        text += "logits   rounded to bf16; softmax and loss in f32\n";
    text += fmt::format("memory   of {} available\n{}", bytes_text(memory.at("available").get<double>()),
                        memory_table(memory));
    text.pop_back();  // the last end of line
    return text;
}

size_t available_memory(Device device) {
    if (device == Device::cuda) return cuda_devices().front().available_memory;
    const std::string kib = proc_value("/proc/meminfo", "MemAvailable");
    return kib.empty() ? 0 : static_cast<size_t>(std::strtoull(kib.c_str(), nullptr, 10)) * 1024;
}

std::string bytes_text(double bytes) {
    if (bytes >= 1e9) return fmt::format("{:.1f} GB", bytes * 1e-9);
    if (bytes >= 1e6) return fmt::format("{:.1f} MB", bytes * 1e-6);
    return fmt::format("{:.1f} kB", bytes * 1e-3);
}

}  // namespace nibble
