// The quantisers on a GPU give the bytes of the CPU's.
#include <cmath>

#include "quant/digest.h"
#include "quant/quant.h"
#include "support/on_gpu.h"
#include "support/samples.h"

namespace nibble {
namespace {

using Quantisers = OnGpu;

std::vector<Bf16> rounded(const std::vector<float>& values) {
    std::vector<Bf16> result;
    for (const float v : values) result.push_back(bf16_encode(v));
    return result;
}

std::vector<uint8_t> bytes_of(const Tensor& t) {
    const auto* data = static_cast<const uint8_t*>(t.data);
    return data == nullptr ? std::vector<uint8_t>() : std::vector<uint8_t>(data, data + t.bytes());
}

TEST_F(Quantisers, GiveTheRecordedDigestsOfEverySpec) {
    const std::vector<uint64_t> digests = quantizer_digests(quantize_on_gpu);
    for (size_t i = 0; i < digests.size(); ++i)
        EXPECT_EQ(digests[i], recorded_digests()[i].digest) << recorded_digests()[i].spec;
}

// Digests are of small matrices: these have many tiles in both directions, whole and partial.
TEST_F(Quantisers, GiveTheBytesOfTheCpuOfLargeMatrices) {
    constexpr int64_t kRows = 331, kCols = 776;
    std::vector<Bf16> values = rounded(test::normals(kRows * kCols, 1));
    const RandomKey key = {.seed = 7, .step = 3, .micro_step = 1, .layer = 5, .gemm = Gemm::wgrad};
    Arena here(64 << 20);
    Context cpu{here};
    for (const RecordedDigest& recorded : recorded_digests()) {
        const QuantSpec spec = parse_spec(recorded.spec);
        for (const bool transposed : {false, true}) {
            const ArenaScope scope(here);
            const Tensor x = view_of(values, transposed ? Shape{kCols, kRows} : Shape{kRows, kCols});
            QuantizedMatrix expected = allocate_quantized(here, spec, kRows, kCols),
                            found = allocate_quantized(here, spec, kRows, kCols);
            QuantizeOptions options;
            options.transposed = transposed;
            quantize(cpu, spec, x, key, expected, options);
            quantize_on_gpu(cpu, spec, x, key, found, options);
            for (const auto part :
                 {&QuantizedMatrix::codes, &QuantizedMatrix::scales, &QuantizedMatrix::fp32_scales,
                  &QuantizedMatrix::tensor_scale, &QuantizedMatrix::mask})
                EXPECT_TRUE(bytes_of(expected.*part) == bytes_of(found.*part))
                    << recorded.spec << (transposed ? ", transposed" : "");
        }
    }
}

TEST_F(Quantisers, AreReadBackAsTheCpuReadsThem) {
    constexpr int64_t kRows = 45, kCols = 330;
    std::vector<float> values = test::normals(kRows * kCols, 2);
    Arena here(16 << 20), there(16 << 20, Device::cuda);
    Context cpu{here}, other{there};
    for (const RecordedDigest& recorded : recorded_digests()) {
        const QuantSpec spec = parse_spec(recorded.spec);
        const ArenaScope scope(here), scope_there(there);
        QuantizedMatrix q = allocate_quantized(here, spec, kRows, kCols),
                        on_gpu = allocate_quantized(there, spec, kRows, kCols);
        quantize(cpu, spec, view_of(values, {kRows, kCols}), {}, q);
        for (const auto part : {&QuantizedMatrix::codes, &QuantizedMatrix::scales,
                                &QuantizedMatrix::fp32_scales, &QuantizedMatrix::tensor_scale})
            if ((q.*part).data != nullptr) copy(other, q.*part, on_gpu.*part);
        using Read = void (*)(Context&, const QuantizedMatrix&, const Tensor&);
        const auto expect_same = [&](Read read, DType dtype, Shape shape, const char* what) {
            const Tensor expected = here.allocate(dtype, shape), found = there.allocate(dtype, shape),
                         back = here.allocate(dtype, shape);
            read(cpu, q, expected);
            read(other, on_gpu, found);
            copy(other, found, back);
            EXPECT_TRUE(bytes_of(expected) == bytes_of(back)) << what << " of " << recorded.spec;
        };
        const Shape rows = {q.rows, q.padded_cols}, columns = {q.padded_cols, q.rows};
        expect_same(dequantize, DType::f32, rows, "values");
        expect_same(dequantize_operand, DType::f32, rows, "F32 operand");
        expect_same(dequantize_operand_transposed, DType::f32, columns, "transposed F32 operand");
        if (!spec.has_fp32_groups()) expect_same(dequantize_operand, DType::bf16, rows, "BF16 operand");
        if (!spec.has_fp32_scales())
            expect_same(dequantize_operand_transposed, DType::bf16, columns, "transposed BF16 operand");
    }
}

TEST_F(Quantisers, NameTheElementThatIsNotFinite) {
    std::vector<float> values = test::normals(40 * 64, 3);
    values[5 * 64 + 17] = NAN;
    const Tensor x = put(view_of(values, {40, 64}));
    for (const char* text :
         {"nvfp4 1x16", "mxfp4 1x32 rotate=rht:32", "fp8:e4m3 row", "nvfp4 1x16 tensor=posthoc"}) {
        const QuantSpec spec = parse_spec(text);
        Arena there(1 << 20, Device::cuda);
        QuantizedMatrix q = allocate_quantized(there, spec, 40, 64);
        try {
            quantize(gpu(), spec, x, {}, q, {.name = "fprop.x"});
            ADD_FAILURE() << text << " took a NaN";
        } catch (const Error& error) {
            EXPECT_EQ(std::string(error.what()),
                      "fprop.x: element [5, 17] is NaN; a quantised format has no code for it");
        }
    }
}

// Inside a training step nothing waits for the GPU: the fault is raised, and read at the end of the step.
TEST_F(Quantisers, RaiseTheFaultOfAContextThatHasOne) {
    std::vector<float> values = test::normals(40 * 64, 4);
    const QuantSpec spec = parse_spec("nvfp4 1x16 scale=four-six:mse");
    const Tensor fault = allocate(DType::u32, {1}), good = put(view_of(values, {40, 64}));
    fill_zero(gpu(), fault);
    values[100] = INFINITY;
    const Tensor bad = put(view_of(values, {40, 64}));
    gpu().fault = fault.as<uint32_t>();
    Arena there(1 << 20, Device::cuda);
    QuantizedMatrix q = allocate_quantized(there, spec, 40, 64);
    quantize(gpu(), spec, good, {}, q);
    EXPECT_EQ(get<uint32_t>(fault)[0], 0u);
    quantize(gpu(), spec, bad, {}, q);
    EXPECT_NE(get<uint32_t>(fault)[0], 0u);
    gpu().fault = nullptr;
}

TEST_F(Quantisers, RotateAndTurnBackAsTheCpuDoes) {
    constexpr int64_t kRows = 256, kCols = 384;
    const SignBits signs = rotation_signs(parse_spec("nvfp4 1x16 rotate=rht2:128"), {.seed = 9});
    Arena none(0);
    Context cpu{none};
    using Turn = void (*)(Context&, int, const SignBits&, const Tensor&, int);
    for (const Turn turn : {rotate, unrotate, rotate_rows, unrotate_rows}) {
        for (const int size : {16, 32, 64, 128}) {
            std::vector<float> values = test::normals(kRows * kCols, 5);
            const Tensor x = view_of(values, {kRows, kCols}), there = put(x);
            turn(cpu, size, signs, x, 2);
            turn(gpu(), size, signs, there, 2);
            EXPECT_TRUE(get<float>(there) == values) << size;
        }
    }
}

TEST_F(Quantisers, TransposeAsTheCpuDoes) {
    std::vector<Bf16> values = rounded(test::normals(70 * 33, 6)), expected(70 * 33);
    Arena none(0);
    Context cpu{none};
    transpose(cpu, view_of(values, {70, 33}), view_of(expected, {33, 70}));
    const Tensor there = allocate(DType::bf16, {33, 70});
    transpose(gpu(), put(view_of(values, {70, 33})), there);
    EXPECT_TRUE(get<Bf16>(there) == expected);
}

}  // namespace
}  // namespace nibble
