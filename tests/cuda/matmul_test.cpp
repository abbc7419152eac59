// Products on a GPU against those of the CPU.
#include "gemm/matmul.h"

#include <cmath>
#include <limits>

#include "gemm/gpu_product.h"
#include "support/linear_run.h"
#include "support/on_gpu.h"
#include "support/samples.h"

namespace nibble {
namespace {

using Products = OnGpu;

// How an operand [rows, k] is given.
struct Kind {
    DType dtype = DType::bf16;
    bool is_transposed = false;
    std::string_view spec = {};  // quantised, if not empty
    float scale = 0.0f;          // what the values lack, if not 0

    std::string str() const {
        return spec.empty() ? fmt::format("{}{}", name_of(dtype), is_transposed ? " transposed" : "")
                            : std::string(spec);
    }
};

struct Size {
    int64_t m, n, k;
};

struct Product {
    Size size;
    Kind a, b;
    DType result = DType::f32;
    DType compute = DType::bf16;
    bool accumulates = false, has_alpha = false, has_rows = false, has_cols = false;
};

Buffer buffer_on(Device device, DType dtype, Shape shape, unsigned seed) {
    const test::Matrix here(dtype, 1, shape.count(), test::normals(shape.count(), seed));
    Buffer buffer(dtype, shape, device);
    copy(here.tensor().reshaped(shape), buffer.tensor());
    return buffer;
}

// The same random product on a device, in exactly the memory that was planned. C holds NaNs before, unless it
// is added to.
std::vector<float> multiply(Device device, const Product& p) {
    const auto [m, n, k] = p.size;
    const auto given = [&](const Kind& kind, int64_t rows, int64_t depth, unsigned seed) {
        return buffer_on(device, kind.dtype, kind.is_transposed ? Shape{depth, rows} : Shape{rows, depth},
                         seed);
    };
    const Buffer a = given(p.a, m, k, 1), b = given(p.b, n, k, 2);
    const Buffer of_rows = buffer_on(device, DType::f32, {m}, 3),
                 of_cols = buffer_on(device, DType::f32, {n}, 4);
    const auto scale_on = [&](float scale) {
        Buffer buffer(DType::f32, {1}, device);
        copy(test::Matrix(DType::f32, 1, 1, {scale}).tensor().reshaped({1}), buffer.tensor());
        return buffer;
    };
    const Buffer scale_a = scale_on(p.a.scale), scale_b = scale_on(p.b.scale);
    const std::vector<float> before =
        p.accumulates ? test::normals(m * n, 5) : std::vector<float>(static_cast<size_t>(m * n), NAN);
    const test::Matrix old(p.result, m, n, before);
    const Buffer c(p.result, {m, n}, device);

    MatmulOptions options;
    options.compute = p.compute;
    options.accumulate = p.accumulates;
    if (p.has_alpha) options.alpha = -1.75f;
    if (p.has_rows) options.alpha_row = of_rows.tensor().as<float>();
    if (p.has_cols) options.alpha_col = of_cols.tensor().as<float>();
    Arena arena(device);
    Context context{arena};
    const auto run = [&] {
        const ArenaScope scope(arena);
        QuantizedMatrix q_a, q_b;
        const auto operand = [&](const Kind& kind, const Tensor& x, const Tensor& scale, QuantizedMatrix& q) {
            if (!kind.spec.empty()) {
                const QuantSpec spec = parse_spec(kind.spec);
                q = allocate_quantized(arena, spec, x.rows(), x.cols());
                quantize(context, spec, x, {}, q);
                return Operand(q);
            }
            Operand result = kind.is_transposed ? Operand::transposed(x) : Operand(x);
            if (kind.scale != 0.0f) result.scale = scale;
            return result;
        };
        const Operand operand_a = operand(p.a, a.tensor(), scale_a.tensor(), q_a),
                      operand_b = operand(p.b, b.tensor(), scale_b.tensor(), q_b);
        matmul(context, operand_a, operand_b, c.tensor(), options);
    };
    run();
    arena.commit();
    copy(old.tensor(), c.tensor());
    run();
    const OnCpu result(c.tensor());
    test::Matrix back(p.result, m, n);
    copy(result.tensor(), back.tensor());
    return back.values();
}

void expect_as_on_the_cpu(const Product& p) {
    const auto expected = multiply(Device::cpu, p), found = multiply(Device::cuda, p);
    // FP32 sums in another order, and without the last bits in tensor cores; a BF16 result of one may be the
    // neighbour of the other's.
    const double allowed = p.result == DType::bf16 ? 1e-3 : 5e-6;
    const double error = test::relative_error(found, expected);
    EXPECT_TRUE(error < allowed) << fmt::format("{}x{}x{}, {} by {}, C {}, computed in {}{}: {}", p.size.m,
                                                p.size.n, p.size.k, p.a.str(), p.b.str(), name_of(p.result),
                                                name_of(p.compute), p.accumulates ? ", added" : "", error);
}

constexpr Kind kPlain[] = {
    {DType::bf16, false}, {DType::bf16, true}, {DType::f32, false}, {DType::f32, true}};

TEST_F(Products, AreTheCpusInEveryLayoutAndType) {
    for (const Size size : {Size{64, 128, 256}, Size{33, 70, 321}, Size{40, 24, 2100}}) {
        for (const Kind& a : kPlain) {
            for (const Kind& b : kPlain) {
                for (const DType compute : {DType::bf16, DType::f32}) {
                    expect_as_on_the_cpu({size, a, b, DType::f32, compute});
                    expect_as_on_the_cpu({size, a, b, DType::bf16, compute});
                    expect_as_on_the_cpu({size, a, b, DType::f32, compute, true});
                }
            }
        }
    }
}

TEST_F(Products, TakeMatricesOfAnySize) {
    for (const Size size : {Size{1, 1, 1}, Size{1, 300, 77}, Size{257, 1, 64}, Size{5, 3, 17},
                            Size{129, 255, 8}, Size{8, 8, 5001}, Size{1000, 999, 1001}}) {
        for (const bool is_transposed : {false, true}) {
            const Kind kind{DType::bf16, is_transposed};
            expect_as_on_the_cpu({size, kind, kind});
            expect_as_on_the_cpu({size, kind, kind, DType::bf16});
        }
    }
}

TEST_F(Products, OfQuantisedOperandsAreTheCpus) {
    const char* const specs[] = {"nvfp4",        "nvfp4 outer=1x128", "mxfp4 scale=three-quarters",
                                 "mxfp4 32x32",  "mxfp8:e4m3",        "fp8:e4m3",
                                 "fp8:e5m2 row", "fp8:e4m3 1x128",    "fp4 row",
                                 "int4 tensor",  "log4 row",          "nvfp4 rotate=hadamard:16"};
    for (const char* text : specs) {
        const Kind quantized{DType::f32, false, text};
        for (const Size size : {Size{64, 48, 256}, Size{33, 70, 40}}) {
            expect_as_on_the_cpu({size, quantized, quantized});
            expect_as_on_the_cpu({size, quantized, quantized, DType::bf16});
            expect_as_on_the_cpu({size, quantized, quantized, DType::f32, DType::bf16, true});
            // A rotated operand has its padding in it.
            if (parse_spec(text).rotates_columns() && size.k % 16 != 0) continue;
            expect_as_on_the_cpu({size, quantized, {DType::f32}});
            expect_as_on_the_cpu({size, {DType::bf16, true}, quantized});
        }
    }
}

// Tensor cores sum a group, FP32 the groups; the CPU rounds values with their scales to F32.
TEST_F(Products, OfGroupsWithFp32ScalesAreTheCpus) {
    const char *const outer = "nvfp4 outer=1x128", *const tiles = "fp4 32x32", *const e4m3 = "fp8:e4m3 1x128";
    const std::pair<const char*, const char*> pairs[] = {
        {outer, outer}, {tiles, tiles},   {e4m3, "fp8:e4m3 128x128"}, {outer, tiles},
        {e4m3, outer},  {outer, "nvfp4"}, {"int4 tensor", tiles},     {"mxfp4 scale=three-quarters", e4m3}};
    for (const auto& [a, b] : pairs) {
        for (const Size size : {Size{1, 1, 1}, Size{33, 70, 40}, Size{128, 256, 256}, Size{130, 259, 1000},
                                Size{1153, 150, 96}}) {
            Product p{size, {DType::f32, false, a}, {DType::f32, false, b}};
            expect_as_on_the_cpu(p);
            p.has_alpha = p.accumulates = true;
            expect_as_on_the_cpu(p);
            p.accumulates = false;
            p.result = DType::bf16;
            expect_as_on_the_cpu(p);
        }
    }
}

TEST_F(Products, AreMultipliedByScalesAlphaAndFactorsOfRowsAndColumns) {
    for (const Size size : {Size{64, 128, 96}, Size{33, 70, 321}}) {
        for (int which = 0; which < 16; ++which) {
            for (const char* spec : {"", "fp8:e5m2 row"}) {
                Product p{size, {DType::bf16, false, spec}, {DType::bf16, false, spec}};
                if (which & 8 && p.a.spec.empty()) p.a.scale = 0.37f, p.b.scale = 3.1f;
                p.has_alpha = which & 4;
                p.has_rows = which & 2;
                p.has_cols = which & 1;
                expect_as_on_the_cpu(p);
                p.accumulates = true;
                expect_as_on_the_cpu(p);
                p.accumulates = false;
                p.result = DType::bf16;
                expect_as_on_the_cpu(p);
            }
        }
    }
}

// 1 * 1 twice under a rule whose scale is 4/3: 16/9, rounded once.
TEST_F(Products, RoundTheProductOfTensorScalesOnce) {
    const QuantSpec spec = parse_spec("mxfp4 scale=three-quarters");
    Arena here(1 << 20);
    const QuantizedMatrix one = allocate_quantized(here, spec, 1, 32),
                          q = allocate_quantized(gpu().arena, spec, 1, 32);
    std::fill_n(one.codes.as<uint8_t>(), 16, uint8_t{0});
    one.codes.as<uint8_t>()[0] = 2;     // 1
    one.scales.as<uint8_t>()[0] = 127;  // 1
    *one.tensor_scale_ptr() = 4.0f / 3.0f;
    for (const auto part :
         {&QuantizedMatrix::codes, &QuantizedMatrix::scales, &QuantizedMatrix::tensor_scale})
        copy(gpu(), one.*part, q.*part);
    const Tensor c = allocate(DType::f32, {1, 1});
    matmul(gpu(), q, q, c);
    EXPECT_EQ(get<float>(c)[0], static_cast<float>(16.0 / 9.0));
}

TEST_F(Products, RepeatToTheBit) {
    for (const Size size : {Size{512, 384, 4096}, Size{64, 64, 16384}, Size{33, 70, 321}}) {
        for (const Kind kind :
             {Kind{DType::bf16, true}, Kind{DType::f32, false}, Kind{DType::bf16, false, "nvfp4"}}) {
            const Product p{size, kind, kind, DType::f32, kind.dtype, true};
            EXPECT_EQ(multiply(Device::cuda, p), multiply(Device::cuda, p)) << kind.str() << " " << size.k;
        }
    }
}

// Planning passes time the algorithms of large products. None of their choices changes a bit, also not the
// library's own, which a product without a planning pass has.
TEST_F(Products, AreTheSameBitsWhateverAlgorithmWasTheFastest) {
    constexpr int64_t kM = 2048, kN = 8960, kK = 1536;
    const Buffer a = buffer_on(Device::cuda, DType::bf16, {kM, kK}, 1),
                 b = buffer_on(Device::cuda, DType::bf16, {kN, kK}, 2);
    const Tensor measured = allocate(DType::f32, {kM, kN}), proposed = allocate(DType::f32, {kM, kN}),
                 workspace = allocate(DType::u8, {cuda::GpuProduct::kWorkspace});
    cuda::GpuProductShape shape{kM, kN, kK, {kK, false, 256}, {kK, false, 256}, {kN, false, 256}};
    const float one = 1.0f, zero = 0.0f;
    const auto run = [&](bool measure, const Tensor& c) {
        cuda::GpuProduct::get(shape, measure)
            .run(gpu(), &one, a.data(), b.data(), &zero, c.data, workspace, {});
    };
    run(true, measured);
    shape.a.alignment = 128;  // or it would be the same entry of the cache
    run(false, proposed);
    EXPECT_EQ(get<float>(measured), get<float>(proposed));
}

TEST_F(Products, ClearOrKeepCWhenThereIsNothingToSum) {
    std::vector<float> before = {1, 2, 3, 4, 5, 6};
    const Tensor c = put(view_of(before, {2, 3}));
    const Operand x = Operand::transposed({nullptr, DType::bf16, Device::cuda, {0, 2}});
    const Operand y = Operand::transposed({nullptr, DType::bf16, Device::cuda, {0, 3}});
    MatmulOptions options;
    options.accumulate = true;
    matmul(gpu(), x, y, c, options);
    EXPECT_EQ(get<float>(c), before);
    matmul(gpu(), x, y, c);
    EXPECT_EQ(get<float>(c), std::vector<float>(6));
}

// Operands that begin in the middle of a matrix, at addresses that the tensor cores do not read.
TEST_F(Products, TakeSlicesAtAnyAddress) {
    std::vector<float> values = test::normals(20 * 33, 1);
    std::vector<Bf16> narrow;
    for (const float v : values) narrow.push_back(bf16_encode(v));
    const Tensor here = view_of(narrow, {20, 33}), there = put(here);
    Arena arena(1 << 20);
    Context cpu{arena};
    std::vector<float> expected(49);
    matmul(cpu, here.slice(3, 10), here.slice(11, 18), view_of(expected, {7, 7}));
    const Tensor c = allocate(DType::f32, {64});
    const Tensor odd = c.slice(1, 50).reshaped({7, 7});
    matmul(gpu(), there.slice(3, 10), there.slice(11, 18), odd);
    EXPECT_LT(test::relative_error(get<float>(odd), expected), 5e-6);
}

TEST_F(Products, AreDescribedByTheirLibrary) {
    EXPECT_TRUE(matmul_description(Device::cuda).starts_with("cublaslt "))
        << matmul_description(Device::cuda);
}

}  // namespace
}  // namespace nibble
