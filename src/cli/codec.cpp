// nibble codec: tensors of a safetensors file to and from 4 and 8 bits.
//
// The encoded file carries all that decode needs, in its metadata: "nibble.spec", "nibble.seed" and
// "nibble.tensors", a JSON object of name -> {"shape": [rows, cols], "dtype": "BF16", "index": i}. The index
// numbers the quantised tensors in the order of their names; it keys their coins and signs. docs/codec.md is
// the user's page.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "core/cuda.h"
#include "io/io.h"
#include "quant/quant.h"

namespace nibble {

namespace {

using Json = nlohmann::json;

constexpr const char* kSpecKey = "nibble.spec";
constexpr const char* kSeedKey = "nibble.seed";
constexpr const char* kTensorsKey = "nibble.tensors";

constexpr std::string_view kCodes = ".codes", kScales = ".scales", kFp32Scales = ".fp32_scales",
                           kTensorScale = ".tensor_scale", kDequantized = ".dequantized", kMask = ".mask";

// A tensor outside training has no layer: its index stands there, and beyond 65,535 in the step. So every
// tensor of a file has coins and signs of its own.
RandomKey key_of(uint64_t seed, size_t index) {
    RandomKey key;
    key.seed = seed;
    key.layer = static_cast<uint16_t>(index & 0xffff);
    key.step = static_cast<uint32_t>(index >> 16);
    return key;
}

bool can_be_encoded(const Tensor& tensor) {
    return tensor.shape.rank() == 2 && (tensor.dtype == DType::f32 || tensor.dtype == DType::bf16);
}

// Runs `work` twice: to plan its memory, then for good.
template <typename Work>
void with_arena(Device device, Work&& work) {
    Arena arena(device);
    Context context{.arena = arena};
    {
        const ArenaScope scope(arena);
        work(context);
    }
    arena.commit();
    work(context);
}

// The tensors of the file to be written, and the memory of those that it made.
struct Output {
    std::vector<NamedTensor> tensors;
    std::vector<Buffer> buffers;

    Tensor add(std::string name, DType dtype, Shape shape) {
        const Tensor tensor = buffers.emplace_back(dtype, shape).tensor();
        tensors.push_back({std::move(name), tensor});
        return tensor;
    }
    Tensor add_copy(const Context& context, std::string name, const Tensor& tensor) {
        const Tensor here = add(std::move(name), tensor.dtype, tensor.shape);
        copy(context, tensor, here);
        return here;
    }
};

// --- encode

struct EncodeOptions {
    std::string spec, in, out, device = "cpu";
    uint64_t seed = 0;
};

void encode_tensor(Device device, const QuantSpec& spec, const RandomKey& key, const std::string& where,
                   const NamedTensor& input, Output& output) {
    const int64_t rows = input.tensor.shape[0], cols = input.tensor.shape[1];
    with_arena(device, [&](Context& context) {
        const Tensor x = context.arena.allocate(input.tensor.dtype, input.tensor.shape);
        QuantizedMatrix q = allocate_quantized(context.arena, spec, rows, cols);
        const Tensor dequantized = context.arena.allocate(DType::f32, {q.rows, q.padded_cols});
        const std::string name = fmt::format("{}: tensor '{}'", where, input.name);
        if (!context.planning()) copy(context, input.tensor, x);
        quantize(context, spec, x, key, q, {.name = name});
        dequantize(context, q, dequantized);
        if (context.planning()) return;
        const auto keep = [&](std::string_view suffix, const Tensor& tensor) {
            return output.add_copy(context, input.name + std::string(suffix), tensor);
        };
        keep(kDequantized, dequantized);
        keep(kCodes, q.codes);
        if (spec.has_scale_bytes()) keep(kScales, q.scales);
        if (spec.has_fp32_scales()) keep(kFp32Scales, q.fp32_scales);
        keep(kTensorScale, q.tensor_scale);
        if (q.mask.data == nullptr) return;
        const Tensor mask = output.add(input.name + std::string(kMask), DType::boolean, dequantized.shape);
        Buffer packed(DType::u8, q.mask.shape);
        copy(context, q.mask, packed.tensor());
        const uint8_t* bits = packed.tensor().as<uint8_t>();
        auto* bytes = static_cast<uint8_t*>(mask.data);
        for (int64_t i = 0; i < mask.count(); ++i) bytes[i] = bits[i / 8] >> (i % 8) & 1;
    });
}

void encode(const EncodeOptions& options) {
    const QuantSpec spec = parse_spec(options.spec);
    if (!spec.is_quantized())
        fail_usage("--spec \"{}\" has no codes; use a format such as nvfp4, mxfp4 or fp8", options.spec);
    const Device device = options.device == name_of(Device::cuda) ? Device::cuda : Device::cpu;
    if (device == Device::cuda) require_cuda();

    const SafetensorsFile input(options.in);
    std::vector<const NamedTensor*> chosen;
    Output output;
    for (const NamedTensor& named : input.tensors()) {
        if (can_be_encoded(named.tensor)) {
            chosen.push_back(&named);
        } else {
            output.tensors.push_back(named);
        }
    }
    require(!chosen.empty(),
            "{}: none of its {} tensors is a matrix of BF16 or F32; there is nothing to encode", options.in,
            input.tensors().size());
    std::sort(chosen.begin(), chosen.end(), [](const auto* a, const auto* b) { return a->name < b->name; });

    const size_t carried = output.tensors.size();
    Json tensors = Json::object();
    for (size_t index = 0; index < chosen.size(); ++index) {
        const NamedTensor& named = *chosen[index];
        encode_tensor(device, spec, key_of(options.seed, index), options.in, named, output);
        tensors[named.name] = {
            {"shape", named.tensor.shape.dims()}, {"dtype", name_of(named.tensor.dtype)}, {"index", index}};
    }
    SafetensorsMetadata metadata = input.metadata();
    metadata[kSpecKey] = to_string(spec);
    metadata[kSeedKey] = std::to_string(options.seed);
    metadata[kTensorsKey] = tensors.dump();
    write_safetensors(options.out, std::move(output.tensors), std::move(metadata));
    log()->info("{}: {} tensors as {}{}", options.out, chosen.size(), to_string(spec),
                carried == 0 ? std::string() : fmt::format(", {} others as they were", carried));
}

// --- decode

struct DecodeOptions {
    std::string in, out;
    bool unrotate = false;
};

// What an encoded file says of itself.
struct Encoded {
    struct Matrix {
        int64_t rows = 0, cols = 0;
        size_t index = 0;
    };
    QuantSpec spec;
    uint64_t seed = 0;
    std::map<std::string, Matrix> matrices;
};

Encoded read_encoding(const SafetensorsFile& file) {
    const std::string& where = file.where();
    for (const char* key : {kSpecKey, kSeedKey, kTensorsKey}) {
        require(file.metadata().contains(key),
                "{}: its metadata has no '{}'; 'nibble codec encode' did not write this file", where, key);
    }
    Encoded encoded;
    try {
        encoded.spec = parse_spec(file.metadata_value(kSpecKey));
    } catch (const UsageError& error) {
        fail("{}: {} in its metadata: {}", where, kSpecKey, error.what());
    }
    require(encoded.spec.is_quantized(), "{}: {} in its metadata is not a quantised format", where, kSpecKey);
    const std::string seed = file.metadata_value(kSeedKey);
    const auto parsed = std::from_chars(seed.data(), seed.data() + seed.size(), encoded.seed);
    require(parsed.ec == std::errc() && parsed.ptr == seed.data() + seed.size(),
            "{}: {} in its metadata is not a number", where, kSeedKey);
    const Json tensors = Json::parse(file.metadata_value(kTensorsKey), nullptr, /*allow_exceptions=*/false);
    constexpr int64_t kMost = int64_t{1} << 40;
    const auto whole = [](const Json& value) {
        return value.is_number_unsigned() && value.get<uint64_t>() <= kMost;
    };
    require(tensors.is_object(), "{}: {} in its metadata is not a JSON object", where, kTensorsKey);
    for (const auto& [name, entry] : tensors.items()) {
        const bool sound = entry.is_object() && entry.contains("shape") && entry["shape"].is_array() &&
                           entry["shape"].size() == 2 && whole(entry["shape"][0]) &&
                           whole(entry["shape"][1]) && entry.contains("index") && whole(entry["index"]);
        require(sound, "{}: {} in its metadata is damaged at '{}'", where, kTensorsKey, name);
        encoded.matrices[name] = {entry["shape"][0], entry["shape"][1], entry["index"]};
    }
    return encoded;
}

// Copies the stored part `suffix` of tensor `name` into `to`, which has the shape that it must have.
void take(const SafetensorsFile& file, const std::string& name, std::string_view suffix, const Tensor& to) {
    const Tensor& from = file.tensor(name + std::string(suffix));
    require(from.dtype == to.dtype && from.shape == to.shape,
            "{}: tensor '{}{}' is {} {}, but its matrix needs {} {}", file.where(), name, suffix,
            name_of(from.dtype), from.shape.str(), name_of(to.dtype), to.shape.str());
    if (to.bytes() > 0) std::memcpy(to.data, from.data, to.bytes());
}

void check_scales(const SafetensorsFile& file, const std::string& name, const QuantizedMatrix& q) {
    const int largest = q.spec.format == Format::nvfp4 ? 0x7e : 0xfe;
    for (int64_t i = 0; i < q.scales.count() && q.spec.has_scale_bytes(); ++i) {
        const uint8_t* bytes = q.scales.as<uint8_t>();
        require(bytes[i] <= largest, "{}: tensor '{}{}': byte {:#04x} at [{}, {}] is no scale", file.where(),
                name, kScales, bytes[i], i / q.scales.cols(), i % q.scales.cols());
    }
    for (int64_t i = 0; i < q.fp32_scales.count() && q.spec.has_fp32_scales(); ++i) {
        require(std::isfinite(q.fp32_scales.as<float>()[i]), "{}: tensor '{}{}' is not finite at [{}, {}]",
                file.where(), name, kFp32Scales, i / q.fp32_scales.cols(), i % q.fp32_scales.cols());
    }
    require(std::isfinite(*q.tensor_scale_ptr()), "{}: tensor '{}{}' is not finite", file.where(), name,
            kTensorScale);
}

void decode_tensor(const SafetensorsFile& file, const Encoded& encoded, const std::string& name,
                   const Encoded::Matrix& matrix, bool unrotated, Output& output) {
    const QuantSpec& spec = encoded.spec;
    const int64_t padded = spec.padded(matrix.cols), padded_rows = spec.padded_rows(matrix.rows);
    // In the rotated space the padding holds a part of every value; elsewhere it is zero and goes.
    const int64_t rows = unrotated ? matrix.rows : padded_rows;
    const int64_t cols = unrotated || !spec.rotates_columns() ? matrix.cols : padded;
    // The stored codes vouch for the size before any memory is taken for it.
    const Tensor& codes = file.tensor(name + std::string(kCodes));
    const Shape shape = {padded_rows, padded * spec.code_bits() / 8};
    require(codes.shape == shape, "{}: tensor '{}{}' is {}, but its matrix needs {}", file.where(), name,
            kCodes, codes.shape.str(), shape.str());
    const Tensor result = output.add(name, DType::f32, {rows, cols});
    with_arena(Device::cpu, [&](Context& context) {
        QuantizedMatrix q = allocate_quantized(context.arena, spec, matrix.rows, matrix.cols);
        const Tensor values = context.arena.allocate(DType::f32, {padded_rows, padded});
        if (!context.planning()) {
            take(file, name, kCodes, q.codes);
            if (spec.has_scale_bytes()) take(file, name, kScales, q.scales);
            if (spec.has_fp32_scales()) take(file, name, kFp32Scales, q.fp32_scales);
            take(file, name, kTensorScale, q.tensor_scale);
            check_scales(file, name, q);
        }
        dequantize(context, q, values);
        if (unrotated) {
            const SignBits signs = rotation_signs(spec, key_of(encoded.seed, matrix.index));
            (spec.rotates_rows() ? unrotate_rows : unrotate)(context, spec.rotation_size, signs, values,
                                                             spec.rotation_rounds());
        }
        if (context.planning()) return;
        for (int64_t row = 0; row < rows && cols > 0; ++row) {
            std::memcpy(result.as<float>() + row * cols, values.as<float>() + row * padded,
                        static_cast<size_t>(cols) * sizeof(float));
        }
    });
}

void decode(const DecodeOptions& options) {
    const SafetensorsFile file(options.in);
    const Encoded encoded = read_encoding(file);
    const bool rotated = encoded.spec.rotation != Rotation::none;
    Output output;
    std::map<std::string, bool> parts;
    for (const auto& [name, matrix] : encoded.matrices) {
        for (const std::string_view suffix :
             {kCodes, kScales, kFp32Scales, kTensorScale, kDequantized, kMask}) {
            parts[name + std::string(suffix)] = true;
        }
        decode_tensor(file, encoded, name, matrix, rotated && options.unrotate, output);
    }
    for (const NamedTensor& named : file.tensors()) {
        if (!parts.contains(named.name)) output.tensors.push_back(named);
    }
    SafetensorsMetadata metadata = file.metadata();
    for (const char* key : {kSpecKey, kSeedKey, kTensorsKey}) metadata.erase(key);
    write_safetensors(options.out, std::move(output.tensors), std::move(metadata));
    log()->info("{}: {} tensors{}", options.out, encoded.matrices.size(),
                !rotated           ? ""
                : options.unrotate ? ", rotated back"
                                   : " in the rotated space; --unrotate rotates them back");
}

void add_encode(CLI::App& codec) {
    auto options = std::make_shared<EncodeOptions>();
    CLI::App* command = codec.add_subcommand("encode", "Quantise every matrix of a safetensors file");
    command->add_option("--spec", options->spec, "The quantiser, e.g. \"nvfp4 1x16 scale=four-six:mse\"")
        ->required()
        ->type_name("SPEC");
    command->add_option("--in", options->in, "Tensors to quantise: every 2-D tensor of BF16 or F32")
        ->required()
        ->type_name("X.safetensors");
    command->add_option("--out", options->out, "Where the bytes go")->required()->type_name("Q.safetensors");
    command
        ->add_option("--seed", options->seed, "Seed of stochastic rounding and rotation signs (default: 0)")
        ->check(kWholeNumber)
        ->type_name("S");
    command
        ->add_option("--device", options->device, "Where to quantise; the bytes are the same (default: cpu)")
        ->check(CLI::IsMember({"cpu", "cuda"}))
        ->type_name("cpu|cuda");
    command->footer(
        "For each tensor t it writes t.codes U8 [rows, cols/2] (even column in the low nibble; [rows, cols]\n"
        "of 8-bit elements), t.tensor_scale F32 [1], t.dequantized F32 [rows, cols], and where the spec has\n"
        "them t.scales U8 [rows, cols/block], t.fp32_scales F32 [rows, cols/block] (or [rows, 1] of rows) "
        "and\n"
        "t.mask BOOL; cols is padded as the spec asks. Other tensors are carried as they are.\n"
        "\n"
        "Coins and signs are those of (seed, step 0, layer i, product fprop, side a), where i numbers the\n"
        "quantised tensors in the order of their names.");
    command->callback([options] { encode(*options); });
}

void add_decode(CLI::App& codec) {
    auto options = std::make_shared<DecodeOptions>();
    CLI::App* command =
        codec.add_subcommand("decode", "Turn the bytes that encode wrote back into F32 tensors");
    command->add_option("--in", options->in, "What encode wrote")->required()->type_name("Q.safetensors");
    command->add_option("--out", options->out, "Where the F32 tensors go")
        ->required()
        ->type_name("X.safetensors");
    command->add_flag("--unrotate", options->unrotate, "Rotate back what the spec rotated");
    command->callback([options] { decode(*options); });
}

}  // namespace

void add_codec_command(CLI::App& app) {
    CLI::App* codec = app.add_subcommand("codec", "Quantise the tensors of a file to 4 or 8 bits, and back");
    codec->require_subcommand(1);
    add_encode(*codec);
    add_decode(*codec);
}

}  // namespace nibble
