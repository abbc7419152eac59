#include "quant/digest.h"

#include <algorithm>

#include "core/cuda.h"
#include "quant/internal.h"
#include "quant/simd_targets.h"
// After the choice of targets.
#include <hwy/highway.h>
#include <hwy/targets.h>

namespace nibble {

namespace {

// To record after a deliberate change of the contract: run the test of digests and copy what it prints.
constexpr RecordedDigest kRecorded[] = {
    {"fp4 32x32", 0xf148ea95f82e4028},
    {"fp4 32x32 round=nearest-down rotate=hadamard:64", 0xbb4094e0ff8c30a7},
    {"fp4 row", 0xe64fa79fd4a5ee90},
    {"fp4 tensor rotate=hadamard:128@rows", 0x50af6d6cf84a33e8},
    {"fp4 tensor round=stochastic", 0x14f1d10a45d7bd77},
    {"fp8:e4m3 128x128", 0x2bc95d94bd64eb88},
    {"fp8:e4m3 1x128", 0x744ec77269c8c0f4},
    {"fp8:e4m3 row round=stochastic", 0xcade4d002126f226},
    {"fp8:e4m3 tensor", 0x8294e95a5c2074b5},
    {"fp8:e4m3 tensor tensor=delayed", 0xdf3ce6ba1d7f0952},
    {"fp8:e5m2 1x128 rotate=rht:128", 0x0d0681a7f3a05eb7},
    {"fp8:e5m2 tensor round=stochastic rotate=rht:32", 0x0ab143746f68df88},
    {"int4 row", 0xde8e20aa69a103fd},
    {"int4 tensor round=stochastic rotate=rht:16", 0xbb894efcad9b45d1},
    {"log4 row", 0x549ffd6676154308},
    {"log4 tensor round=stochastic", 0x3dd698ec49a2b3a7},
    {"mxfp4 1x32 scale=ceil round=stochastic", 0x253625df617d937d},
    {"mxfp4 1x32 scale=even", 0xa7fc1e3e9a8c1335},
    {"mxfp4 1x32 scale=floor", 0xc4c0da40cada606e},
    {"mxfp4 1x32 scale=floor round=nearest-down", 0x312a0864d10c7952},
    {"mxfp4 1x32 scale=quest:rms mult=1.5 rotate=hadamard:128 mask=clip", 0x76f71b6d36fd62ed},
    {"mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip", 0xe3b4075c6e1d4786},
    {"mxfp4 1x32 scale=quest:std round=nearest-down rotate=hadamard:32 mask=clip arithmetic=emulation",
     0x8b69f2ab228a97a3},
    {"mxfp4 1x32 scale=rceil rotate=rht2:16", 0xb56a0edd7cddad58},
    {"mxfp4 1x32 scale=rceil rotate=rht:16", 0x1365672b976d60b0},
    {"mxfp4 1x32 scale=three-quarters round=stochastic rotate=rht:32", 0xe8417380cb8e909d},
    {"mxfp4 32x32 scale=rceil round=stochastic", 0xd03e1efee4b97813},
    {"mxfp4 32x32 scale=three-quarters rotate=rht:64", 0xa0096c5c2a865594},
    {"mxfp8:e4m3 1x32", 0x2ce1fa6838248fdc},
    {"mxfp8:e4m3 1x32 rotate=rht2:64@rows", 0xe6d402189be4fbdd},
    {"mxfp8:e4m3 32x32 scale=floor round=stochastic", 0x34dfdaa7eb9bf26a},
    {"mxfp8:e5m2 1x32 scale=ceil", 0x3220d559d703ea43},
    {"mxfp8:e5m2 1x32 scale=even rotate=hadamard:16", 0xa8e65345f1c11b3e},
    {"nvfp4 16x16", 0x16ab45d9483b6071},
    {"nvfp4 16x16 round=stochastic", 0x69233f1f7501ff4d},
    {"nvfp4 16x16 scale=four-six:amax rotate=rht:32", 0x9f2510accd2f3db5},
    {"nvfp4 16x16 scale=four-six:mse", 0x50fa5faf3575460f},
    {"nvfp4 16x16 tensor=posthoc scale-round=stochastic", 0x6e7db17956647e8b},
    {"nvfp4 1x16", 0x442d7e12b1cd609b},
    {"nvfp4 1x16 correct=eden-block range=1600/1581 scale-round=stochastic rotate=rht:32",
     0x508802365debd638},
    {"nvfp4 1x16 outer=1x128", 0xc83a15e4af869e38},
    {"nvfp4 1x16 range=16/17 round=stochastic", 0x045f6be4467c5a64},
    {"nvfp4 1x16 rotate=hadamard:128", 0xf32b407272eeae71},
    {"nvfp4 1x16 rotate=rht:16 signs=te out=bf16", 0x05b6ddb495351da7},
    {"nvfp4 1x16 round=stochastic outer=1x128 rotate=rht:16", 0x7a1dc551c218d69f},
    {"nvfp4 1x16 round=stochastic rotate=rht:32@rows", 0xb471beefebe74739},
    {"nvfp4 1x16 scale=eden", 0xcb8ce5cc18ae6522},
    {"nvfp4 1x16 scale=eden outer=1x128 rotate=rht:32", 0xfe87d83822e277aa},
    {"nvfp4 1x16 scale=eden rotate=rht2:128", 0x19b93dbc48df13bf},
    {"nvfp4 1x16 scale=eden rotate=rht:128", 0x5fcea05a92617049},
    {"nvfp4 1x16 scale=eden tensor=posthoc rotate=rht:64", 0xcd9d17a8cd45d174},
    {"nvfp4 1x16 scale=four-six:amax", 0xf53f23f8a7ba23b5},
    {"nvfp4 1x16 scale=four-six:mae", 0x111596b764aafd6b},
    {"nvfp4 1x16 scale=four-six:mse", 0xecd37daa94412651},
    {"nvfp4 1x16 scale=four-six:mse outer=1x128", 0x0b08e77c96ed3513},
    {"nvfp4 1x16 scale=four-six:mse round=nearest-away arithmetic=emulation", 0xe2794f77d50f1111},
    {"nvfp4 1x16 scale=four-six:mse round=stochastic rotate=rht:16", 0xa54071c4183fa439},
    {"nvfp4 1x16 scale=max4", 0xea76dfc665418427},
    {"nvfp4 1x16 tensor=delayed", 0x339be5fe2e3503d1},
    {"nvfp4 1x16 tensor=none", 0xf2877f7cb4eef023},
    {"nvfp4 1x16 tensor=none round=nearest-away", 0xf6bc0122d68f2665},
    {"nvfp4 1x16 tensor=posthoc", 0xb2367f144f7fda23},
};

constexpr uint64_t kStart = 0xcbf29ce484222325ull, kPrime = 0x100000001b3ull;

uint64_t hash_of(uint64_t hash, const Tensor& tensor) {
    if (tensor.data == nullptr) return hash;
    const auto* bytes = static_cast<const uint8_t*>(tensor.data);
    for (size_t i = 0; i < tensor.bytes(); ++i) hash = (hash ^ bytes[i]) * kPrime;
    return hash;
}

enum class Data { normal, ties, sparse, outliers };
constexpr int kKinds = 4;

// Exact: small integers times powers of two.
float sample(Data data, uint64_t seed, int64_t row, int64_t col) {
    const Philox draw =
        philox_draw(seed, Purpose::sampling, static_cast<uint64_t>(col), 0, static_cast<uint16_t>(row));
    const float sign = (draw.word[3] & 1) != 0 ? -1.0f : 1.0f;
    int sum = -2 * 65535;
    for (int i = 0; i < 4; ++i) sum += draw.coin(i);
    const float normal = static_cast<float>(sum) * power_of_two(-16 - static_cast<int>(row % 5));
    switch (data) {
        case Data::ties:
            return sign * 0.25f * static_cast<float>(draw.word[2] % 25);
        case Data::sparse:
            return draw.word[2] % 8 == 0 ? normal : sign * 0.0f;
        case Data::outliers:
            return draw.word[2] % 64 == 0 ? normal * 0x1p12f : normal * 0x1p-12f;
        case Data::normal:
            break;
    }
    return normal;
}

// One case: the hash of what each spec makes of it.
void digest_case(const std::vector<QuantSpec>& specs, Quantizer quantizer, int number, uint64_t* hashes) {
    const auto seed = static_cast<uint64_t>(number) + 1;
    const Philox draw = philox_draw(seed, Purpose::data_order, 0);
    const int64_t rows = 1 + draw.word[0] % 24, cols = 1 + draw.word[1] % 160;
    const bool is_transposed = (draw.word[2] & 1) != 0, is_bf16 = (draw.word[2] & 2) != 0;
    const auto data = static_cast<Data>(draw.word[2] / 4 % kKinds);
    const Shape shape = is_transposed ? Shape{cols, rows} : Shape{rows, cols};
    std::vector<float> values;
    for (int64_t r = 0; r < shape[0]; ++r)
        for (int64_t c = 0; c < shape[1]; ++c) values.push_back(sample(data, seed, r, c));
    std::vector<Bf16> rounded;
    for (const float v : values) rounded.push_back(bf16_encode(v));
    const Tensor x = is_bf16 ? view_of(rounded, shape) : view_of(values, shape);
    const RandomKey key = {seed,
                           draw.word[3] & 0xffffu,
                           static_cast<uint8_t>(draw.word[3] >> 24),
                           static_cast<uint16_t>(draw.word[3] >> 8 & 0xfffu),
                           static_cast<Gemm>(number % 3),
                           static_cast<Side>(number / 3 % 2)};
    QuantizeOptions options;
    options.transposed = is_transposed;
    const float previous = 0.75f;
    if (number % 3 != 0) options.previous_amax = &previous;

    Arena arena;
    Context context{arena};
    const auto run = [&] {
        for (size_t i = 0; i < specs.size(); ++i) {
            const ArenaScope scope(arena);
            QuantizedMatrix q = allocate_quantized(arena, specs[i], rows, cols);
            quantizer(context, specs[i], x, key, q, options);
            if (context.planning()) continue;
            hashes[i] = kStart;
            for (const Tensor& t : {q.codes, q.scales, q.fp32_scales, q.tensor_scale, q.mask})
                hashes[i] = hash_of(hashes[i], t);
        }
    };
    run();
    arena.commit();
    run();
}

QuantizerCheck check(std::string form, Quantizer quantizer) {
    QuantizerCheck result{std::move(form), {}};
    const std::vector<uint64_t> digests = quantizer_digests(quantizer);
    for (size_t i = 0; i < digests.size(); ++i)
        if (digests[i] != kRecorded[i].digest) result.different.push_back(kRecorded[i].spec);
    return result;
}

}  // namespace

std::span<const RecordedDigest> recorded_digests() { return kRecorded; }

void quantize_on_gpu(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                     QuantizedMatrix& out, const QuantizeOptions& options) {
    if (context.planning()) return;
    thread_local Arena arena(size_t{4} << 20, Device::cuda);
    const ArenaScope scope(arena);
    Context gpu{arena};
    const Tensor there = arena.allocate(x.dtype, x.shape);
    copy(gpu, x, there);
    QuantizedMatrix q = allocate_quantized(arena, spec, out.rows, out.cols);
    QuantizeOptions there_options = options;
    if (options.previous_amax != nullptr) {
        float previous = *options.previous_amax;
        there_options.previous_amax = on_device(gpu, {&previous, DType::f32, Device::cpu, {1}}).as<float>();
    }
    quantize(gpu, spec, there, key, q, there_options);
    for (const auto part : {&QuantizedMatrix::codes, &QuantizedMatrix::scales, &QuantizedMatrix::fp32_scales,
                            &QuantizedMatrix::tensor_scale, &QuantizedMatrix::mask})
        if ((out.*part).data != nullptr) copy(gpu, q.*part, out.*part);
}

std::vector<uint64_t> quantizer_digests(Quantizer quantizer) {
    std::vector<QuantSpec> specs;
    for (const RecordedDigest& recorded : kRecorded) specs.push_back(parse_spec(recorded.spec));
    std::vector<uint64_t> hashes(kDigestCases * specs.size());
    parallel_for(kDigestCases, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            digest_case(specs, quantizer, static_cast<int>(i),
                        &hashes[static_cast<size_t>(i) * specs.size()]);
    });
    std::vector<uint64_t> digests(specs.size(), kStart);
    for (size_t i = 0; i < hashes.size(); ++i) {
        uint64_t& digest = digests[i % specs.size()];
        digest = (digest ^ hashes[i]) * kPrime;
    }
    return digests;
}

std::vector<QuantizerCheck> check_quantizers() {
    std::vector<QuantizerCheck> checks = {check("reference", quantize_reference)};
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
        if (target == HWY_STATIC_TARGET && !NIBBLE_HAS_LANES) continue;
        hwy::SetSupportedTargetsForTest(target);
        checks.push_back(check(hwy::TargetName(target), quantize));
        hwy::SetSupportedTargetsForTest(0);
    }
    if (const auto gpus = cuda_devices(); !gpus.empty())
        checks.push_back(check(gpus.front().name, quantize_on_gpu));
    return checks;
}

}  // namespace nibble
