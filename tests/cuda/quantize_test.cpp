// The quantisers on a GPU give the bytes of the CPU's.
#include <cmath>

#include "gemm/test_tensors.h"
#include "quant/digest.h"
#include "quant/quantize_both.h"
#include "recipe/recipe.h"
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
// Rows that begin at multiples of 16 bytes are read another way than others.
class QuantisersOfLarge : public OnGpu, public testing::WithParamInterface<std::tuple<int64_t, DType>> {};
std::string name_of_large(const testing::TestParamInfo<std::tuple<int64_t, DType>>& info) {
    return fmt::format("{}_rows_of_{}", std::get<0>(info.param), name_of(std::get<1>(info.param)));
}
INSTANTIATE_TEST_SUITE_P(Rows, QuantisersOfLarge,
                         testing::Combine(testing::Values(331, 336),
                                          testing::Values(DType::bf16, DType::f32)),
                         name_of_large);

TEST_P(QuantisersOfLarge, MatricesGiveTheBytesOfTheCpu) {
    const auto [rows, dtype] = GetParam();
    constexpr int64_t cols = 776;
    const Buffer values = buffer_of(dtype, {rows, cols}, test::normals(rows * cols, 1));
    const RandomKey key = {.seed = 7, .step = 3, .micro_step = 1, .layer = 5, .gemm = Gemm::wgrad};
    Arena here(64 << 20);
    Context cpu{here};
    for (const RecordedDigest& recorded : recorded_digests()) {
        const QuantSpec spec = parse_spec(recorded.spec);
        for (const bool transposed : {false, true}) {
            const ArenaScope scope(here);
            const Tensor x = values.tensor().reshaped(transposed ? Shape{cols, rows} : Shape{rows, cols});
            QuantizedMatrix expected = allocate_quantized(here, spec, rows, cols),
                            found = allocate_quantized(here, spec, rows, cols);
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

constexpr std::string_view kWithFastKernels[] = {
    "nvfp4 1x16",
    "nvfp4 1x16 round=stochastic",
    "nvfp4 1x16 rotate=rht:16",
    "nvfp4 1x16 round=stochastic rotate=rht:16",
    "nvfp4 1x16 scale=four-six:mse",
    "nvfp4 1x16 scale=four-six:mse rotate=rht:16",
    "nvfp4 1x16 scale=four-six:mse range=16/17 round=stochastic",
    "nvfp4 1x16 scale=four-six:mse range=16/17 round=stochastic rotate=rht:16",
    "nvfp4 1x16 scale=eden rotate=rht:128",
    "nvfp4 1x16 scale=eden rotate=rht2:128",
    "nvfp4 1x16 outer=1x128",
    "nvfp4 1x16 round=stochastic outer=1x128 rotate=rht:16",
    "mxfp4 1x32 scale=three-quarters rotate=rht:32",
    "mxfp4 1x32 scale=three-quarters round=stochastic rotate=rht:32",
    "mxfp4 1x32 scale=rceil",
    "mxfp4 1x32 scale=rceil round=stochastic",
    "mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip",
    "mxfp8:e4m3 1x32",
    "fp8:e4m3 tensor",
    "fp8:e5m2 tensor",
    "log4 tensor round=stochastic",
    "fp4 tensor",
    "fp4 tensor rotate=hadamard:128",
    "fp4 row",
    "fp4 32x32",
    "int4 row",
};

// What products read, alone and beside the bytes, of the specs that have kernels of their own. The numbers of
// a tensor may be of any size: blocks whose scale is 0, scales of few bits, tensors beyond ordinary ones.
TEST_F(Quantisers, GiveTheOperandOfTensorsOfAnySize) {
    constexpr int64_t kRows = 100, kCols = 200;
    Arena here(16 << 20), there(16 << 20, Device::cuda);
    Context cpu{here}, other{there};
    const RandomKey key = {.seed = 8, .step = 2, .layer = 1, .gemm = Gemm::dgrad};
    for (const float size : {1.0f, 0x1p-45f, 0x1p-110f, 0x1p-122f, 0x1p65f, 0x1p118f, 0.0f}) {
        std::vector<float> normals = test::normals(kRows * kCols, 11);
        for (size_t i = 0; i < normals.size(); ++i) {
            const auto block = static_cast<int>(i / 32 % 25);  // some far smaller than others, one of zeros
            normals[i] *= block == 0 ? 0.0f : std::ldexp(size, block < 20 ? -block : 0);
        }
        std::vector<Bf16> values = rounded(normals);
        for (const std::string_view text : kWithFastKernels) {
            const QuantSpec spec = parse_spec(text);
            for (const bool transposed : {false, true}) {
                const ArenaScope scope(here), scope_there(there);
                const Tensor x = view_of(values, transposed ? Shape{kCols, kRows} : Shape{kRows, kCols});
                const Tensor on_gpu = there.allocate(DType::bf16, x.shape);
                copy(other, x, on_gpu);
                QuantizeOptions options;
                options.transposed = transposed;
                QuantizedMatrix expected = allocate_quantized(here, spec, kRows, kCols, Keep::both);
                quantize(cpu, spec, x, key, expected, options);
                for (const Keep keep : {Keep::operand, Keep::both}) {
                    QuantizedMatrix found = allocate_quantized(there, spec, kRows, kCols, keep);
                    quantize(other, spec, on_gpu, key, found, options);
                    for (const auto part : {&QuantizedMatrix::operand, &QuantizedMatrix::codes,
                                            &QuantizedMatrix::scales, &QuantizedMatrix::tensor_scale}) {
                        if ((found.*part).data == nullptr) continue;
                        const Tensor back = here.allocate((found.*part).dtype, (found.*part).shape);
                        copy(other, found.*part, back);
                        EXPECT_TRUE(bytes_of(expected.*part) == bytes_of(back))
                            << text << (transposed ? ", transposed, " : ", ") << size;
                    }
                }
            }
        }
    }
}

// One tensor as two operands, along its rows and along its columns: what they are made of, and how.
struct BothOf {
    QuantSpec specs[2];
    std::array<Keep, 2> keep = {Keep::operand, Keep::operand};
    bool gives_amaxes = false;  // larger ones than those of the tensor
    bool is_padded = false;     // the contractions, further than the specs ask for

    std::string name() const {
        const auto kept = [&](size_t i) { return keep[i] == Keep::bytes ? "bytes" : "values"; };
        return fmt::format("{} of \"{}\" and {} of \"{}\"", kept(0), to_string(specs[0]), kept(1),
                           to_string(specs[1]));
    }
};
class BothOrientations : public OnGpu, public testing::WithParamInterface<std::pair<int64_t, int64_t>> {
  protected:
    // quantize_both() gives what two calls on a CPU do.
    static void expect_two_calls_bytes(const BothOf& of) {
        const auto [rows, cols] = GetParam();
        std::vector<Bf16> values = rounded(test::normals(rows * cols, 6));
        Arena here(16 << 20), there(16 << 20, Device::cuda);
        Context cpu{here}, other{there};
        const Tensor x = view_of(values, {rows, cols}), on_gpu = there.allocate(DType::bf16, x.shape),
                     amaxes = there.allocate(DType::f32, {4});
        copy(other, x, on_gpu);
        QuantizedMatrix expected[2], found[2];
        OperandOfBoth operands[2];
        float expected_amaxes[2], found_amaxes[4];
        const float given_amax = 64.0f;
        for (const int i : {0, 1}) {
            const QuantSpec& spec = of.specs[i];
            const int64_t r = i == 0 ? rows : cols, plain = i == 0 ? cols : rows,
                          c = of.is_padded ? (plain / 128 + 2) * 128 : plain;
            found[i] = allocate_quantized(there, spec, r, c, of.keep[static_cast<size_t>(i)]);
            operands[i] = {&found[i],
                           {.seed = 4, .step = 9, .micro_step = 2, .layer = 3, .gemm = Gemm(1 + i)}};
            operands[i].options.amax = amaxes.as<float>() + i;
            if (of.gives_amaxes) operands[i].options.known_amax = amaxes.as<float>() + 2 + i;
            expected[i] = allocate_quantized(here, spec, r, c, Keep::both);
            QuantizeOptions options;
            options.transposed = i == 1;
            options.amax = &expected_amaxes[i];
            if (of.gives_amaxes) options.known_amax = &given_amax;
            const Buffer padded = buffer_of(DType::bf16, {rows, c}, {});
            for (int64_t row = 0; row < rows && i == 0; ++row)
                std::copy_n(values.data() + row * cols, cols, padded.tensor().as<Bf16>() + row * c);
            quantize(cpu, spec, i == 0 ? padded.tensor() : x, operands[i].key, expected[i], options);
        }
        float given[2] = {given_amax, given_amax};
        copy(other, {given, DType::f32, Device::cpu, {2}}, amaxes.slice(2, 4));
        quantize_both(other, on_gpu, operands[0], operands[1]);
        copy(other, amaxes, {found_amaxes, DType::f32, Device::cpu, {4}});
        for (const int i : {0, 1}) {
            if (of.specs[i].takes_amax_of_tensor()) {
                EXPECT_EQ(found_amaxes[i], expected_amaxes[i]) << of.name();
            }
            for (const auto part :
                 {&QuantizedMatrix::operand, &QuantizedMatrix::codes, &QuantizedMatrix::scales,
                  &QuantizedMatrix::fp32_scales, &QuantizedMatrix::mask, &QuantizedMatrix::tensor_scale}) {
                if ((found[i].*part).shape.rank() == 0) continue;
                const Tensor back = here.allocate((found[i].*part).dtype, (found[i].*part).shape);
                copy(other, found[i].*part, back);
                EXPECT_TRUE(bytes_of(expected[i].*part) == bytes_of(back))
                    << of.name() << ", " << rows << " x " << cols << (i == 0 ? ", rows" : ", columns");
            }
        }
    }
    static bool can_quantize(const BothOf& of) {
        Arena there(1 << 10, Device::cuda);
        return can_quantize_both(Context{there}, DType::bf16, of.specs[0], of.specs[1]);
    }
};
INSTANTIATE_TEST_SUITE_P(Sizes, BothOrientations,
                         testing::Values(std::pair(331, 776), std::pair(128, 256), std::pair(1, 43),
                                         std::pair(300, 21)),
                         [](const auto& sizes) {
                             return fmt::format("{}_by_{}", sizes.param.first, sizes.param.second);
                         });

TEST_P(BothOrientations, OfGradientsOfBuiltInRecipesComeFromOneRead) {
    for (const Recipe& recipe : builtin_recipes()) {
        const QuantSpec &rows = recipe.dgrad_dy.spec, &columns = recipe.wgrad_dy.spec;
        if (!rows.is_quantized() || !columns.is_quantized()) continue;
        const BothOf of = {{rows, columns}};
        EXPECT_TRUE(can_quantize(of)) << recipe.name;
        expect_two_calls_bytes(of);
        expect_two_calls_bytes({.specs = {rows, columns}, .is_padded = true});
        if (!rows.rotates_rows()) expect_two_calls_bytes({.specs = {rows, columns}, .gives_amaxes = true});
        expect_two_calls_bytes({{rows, columns}, {Keep::bytes, Keep::bytes}});
    }
}

// The product reads one of them at once; the other is kept for the backward.
TEST_P(BothOrientations, OfInputsOfBuiltInRecipesComeFromOneRead) {
    int64_t from_one_read = 0;
    for (const Recipe& recipe : builtin_recipes()) {
        const QuantSpec &rows = recipe.fprop_x.spec, &columns = recipe.wgrad_x.spec;
        if (recipe.wgrad_x.source != Source::original || !columns.is_quantized()) continue;
        EXPECT_TRUE(can_quantize({{rows, columns}})) << recipe.name;
        for (const Keep keep : {Keep::operand, Keep::bytes})
            expect_two_calls_bytes({{rows, columns}, {keep, Keep::bytes}});
        ++from_one_read;
    }
    EXPECT_EQ(from_one_read, 7);
}

TEST_P(BothOrientations, OfEverySpecComeFromOneRead) {
    std::vector<std::string_view> specs(std::begin(kWithFastKernels), std::end(kWithFastKernels));
    for (const RecordedDigest& recorded : recorded_digests()) specs.push_back(recorded.spec);
    for (const std::string_view text : specs) {
        const QuantSpec spec = parse_spec(text);
        EXPECT_TRUE(can_quantize({{spec, spec}})) << text;
        expect_two_calls_bytes({{spec, spec}});
    }
    // Coins of scales that eight threads do not share.
    const QuantSpec eden = parse_spec("nvfp4 1x16 scale=eden rotate=rht:128@rows");
    expect_two_calls_bytes({{eden, eden}});
}

TEST_P(BothOrientations, OfTwoSpecsComeFromOneReadUnlessBothHaveFastKernels) {
    int64_t from_one_read = 0;
    for (size_t i = 0; i < recorded_digests().size(); ++i) {
        const QuantSpec spec = parse_spec(recorded_digests()[i].spec),
                        next = parse_spec(recorded_digests()[(i + 1) % recorded_digests().size()].spec);
        const BothOf of = {{spec, next}, {Keep::bytes, Keep::operand}};
        if (!can_quantize(of)) continue;
        expect_two_calls_bytes(of);
        ++from_one_read;
    }
    EXPECT_GT(from_one_read, 20);
}

// The weight gradient's x: the forward's bytes, turned, and what a product multiplies beside the bytes.
TEST_F(Quantisers, ReadTheForwardsBytesAlongTheirRows) {
    constexpr int64_t kRows = 200, kCols = 330, kKept = 312;
    std::vector<Bf16> values = rounded(test::normals(kRows * kCols, 5));
    Arena here(16 << 20), there(16 << 20, Device::cuda);
    Context cpu{here}, other{there};
    for (const std::string_view of_forward :
         {"nvfp4 1x16 scale=four-six:mse", "mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip"}) {
        for (const RecordedDigest& recorded : recorded_digests()) {
            const ArenaScope scope(here), scope_there(there);
            const QuantSpec spec = parse_spec(recorded.spec);
            if (spec.rotates_rows()) continue;
            QuantizedMatrix forward = allocate_quantized(here, parse_spec(of_forward), kRows, kCols),
                            on_gpu = allocate_quantized(there, forward.spec, kRows, kCols),
                            expected = allocate_quantized(here, spec, kKept, kRows, Keep::both),
                            found = allocate_quantized(there, spec, kKept, kRows, Keep::both),
                            back = allocate_quantized(here, spec, kKept, kRows, Keep::both);
            quantize(cpu, forward.spec, view_of(values, {kRows, kCols}), {}, forward);
            for (const auto part :
                 {&QuantizedMatrix::codes, &QuantizedMatrix::scales, &QuantizedMatrix::tensor_scale})
                copy(other, forward.*part, on_gpu.*part);
            const RandomKey key = {.seed = 3, .step = 2, .layer = 4, .gemm = Gemm::wgrad, .side = Side::b};
            requantize_transposed(cpu, forward, key, expected);
            requantize_transposed(other, on_gpu, key, found);
            for (const auto part :
                 {&QuantizedMatrix::codes, &QuantizedMatrix::scales, &QuantizedMatrix::fp32_scales,
                  &QuantizedMatrix::tensor_scale, &QuantizedMatrix::mask, &QuantizedMatrix::operand}) {
                if ((found.*part).data == nullptr) continue;
                copy(other, found.*part, back.*part);
                EXPECT_TRUE(bytes_of(expected.*part) == bytes_of(back.*part))
                    << recorded.spec << " of " << of_forward;
            }
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
        // Scales that numbers of ordinary size do not have, each in one column of blocks.
        const uint8_t rare[] = {0, 1, 7, 8, spec.is_mx() ? uint8_t{240} : uint8_t{126}};
        for (int64_t row = 0; row < q.rows && spec.has_scale_bytes(); ++row)
            std::ranges::copy(rare, q.scales.as<uint8_t>() + row * q.scales.cols());
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
        if (spec.has_fp32_groups())
            expect_same(dequantize_groups, DType::bf16, rows, "values of groups");
        else
            expect_same(dequantize_operand, DType::bf16, rows, "BF16 operand");
        if (spec.has_fp32_groups() && spec.is_square()) {
            const QuantizedMatrix expected = transposed_groups(cpu, q),
                                  found = transposed_groups(other, on_gpu);
            for (const auto part : {&QuantizedMatrix::operand, &QuantizedMatrix::fp32_scales}) {
                const Tensor back = here.allocate((found.*part).dtype, (found.*part).shape);
                copy(other, found.*part, back);
                EXPECT_TRUE(bytes_of(expected.*part) == bytes_of(back))
                    << "transposed groups of " << recorded.spec;
            }
        }
        if (!spec.has_fp32_scales())
            expect_same(dequantize_operand_transposed, DType::bf16, columns, "transposed BF16 operand");
    }
}

TEST_F(Quantisers, NameTheElementThatIsNotFinite) {
    std::vector<float> values = test::normals(40 * 64, 3);
    values[5 * 64 + 17] = NAN;
    std::vector<Bf16> narrow = rounded(values);
    const Tensor x = put(view_of(values, {40, 64})), gradient = put(view_of(narrow, {40, 64}));
    for (const char* text :
         {"nvfp4 1x16", "mxfp4 1x32 rotate=rht:32", "fp8:e4m3 row", "nvfp4 1x16 tensor=posthoc"}) {
        const QuantSpec spec = parse_spec(text);
        Arena there(1 << 20, Device::cuda);
        Context other{there};
        QuantizedMatrix q = allocate_quantized(there, spec, 40, 64, Keep::operand),
                        columns = allocate_quantized(there, spec, 64, 40, Keep::operand);
        const auto expect_error = [&](const char* message, auto&& work) {
            try {
                work();
                ADD_FAILURE() << text << " took a NaN";
            } catch (const Error& error) {
                EXPECT_EQ(std::string(error.what()), message);
            }
        };
        expect_error("fprop.x: element [5, 17] is NaN; a quantised format has no code for it",
                     [&] { quantize(other, spec, x, {}, q, {.name = "fprop.x"}); });
        expect_error("dgrad.dy: element [5, 17] is NaN; a quantised format has no code for it", [&] {
            quantize_both(other, gradient, {&q, {}, {.name = "dgrad.dy"}},
                          {&columns, {}, {.name = "wgrad.dy"}});
        });
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
