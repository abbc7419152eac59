#include "gemm/matmul.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "gemm/test_tensors.h"

namespace nibble {
namespace {

// How an operand of a test is given.
enum class Kind { f32, bf16, f32_transposed, bf16_transposed, nvfp4, mxfp4 };
constexpr Kind kKinds[] = {Kind::f32,   Kind::bf16, Kind::f32_transposed, Kind::bf16_transposed,
                           Kind::nvfp4, Kind::mxfp4};

bool is_quantized(Kind kind) { return kind == Kind::nvfp4 || kind == Kind::mxfp4; }

// Random codes and scales (E4M3 near 1, E8M0 near 1): every element a value of its format.
QuantizedMatrix random_quantized(Arena& arena, Kind kind, int64_t rows, int64_t cols, uint64_t seed) {
    const QuantSpec spec = parse_spec(kind == Kind::nvfp4 ? "nvfp4 1x16" : "mxfp4 1x32 scale=three-quarters");
    QuantizedMatrix q = allocate_quantized(arena, spec, rows, cols);
    for (int64_t i = 0; i < q.codes.count(); ++i) {
        const int64_t col = i % (q.padded_cols / 2) * 2;
        const Philox draw = philox_draw(seed, Purpose::elements, static_cast<uint64_t>(i));
        uint8_t byte = static_cast<uint8_t>(draw.word[0]);
        if (col >= cols) byte = 0;
        if (col + 1 >= cols) byte &= 0x0f;
        q.codes.as<uint8_t>()[i] = byte;
    }
    for (int64_t i = 0; i < q.scales.count(); ++i) {
        const Philox draw = philox_draw(seed, Purpose::scales, static_cast<uint64_t>(i));
        q.scales.as<uint8_t>()[i] =
            static_cast<uint8_t>(kind == Kind::nvfp4 ? 0x30 + draw.word[0] % 16 : 125 + draw.word[0] % 4);
    }
    *q.tensor_scale_ptr() = kind == Kind::nvfp4 ? 0.37f : 4.0f / 3.0f;
    return q;
}

// An operand, its memory, and its values in double.
struct TestOperand {
    Kind kind;
    int64_t rows, cols;
    Buffer buffer;
    Tensor tensor;
    Arena arena{1 << 22};
    QuantizedMatrix quantized;

    TestOperand(Kind k, int64_t r, int64_t c, uint64_t seed) : kind(k), rows(r), cols(c) {
        if (is_quantized(kind)) {
            quantized = random_quantized(arena, kind, rows, cols, seed);
            return;
        }
        const bool transposed = kind == Kind::f32_transposed || kind == Kind::bf16_transposed;
        const DType dtype = kind == Kind::f32 || kind == Kind::f32_transposed ? DType::f32 : DType::bf16;
        buffer = random_buffer(dtype, transposed ? Shape{cols, rows} : Shape{rows, cols}, seed);
        tensor = buffer.tensor();
    }
    Operand operand() const {
        if (is_quantized(kind)) return quantized;
        if (kind == Kind::f32_transposed || kind == Kind::bf16_transposed) return Operand::transposed(tensor);
        return tensor;
    }
    std::vector<double> values(DType compute) const {
        std::vector<double> out(static_cast<size_t>(rows * cols));
        for (int64_t row = 0; row < rows; ++row) {
            for (int64_t col = 0; col < cols; ++col) {
                out[static_cast<size_t>(row * cols + col)] = value(row, col, compute);
            }
        }
        return out;
    }

  private:
    double value(int64_t row, int64_t col, DType compute) const {
        if (is_quantized(kind)) {
            const QuantizedMatrix& q = quantized;
            const uint8_t byte = q.codes.as<uint8_t>()[(row * q.padded_cols + col) / 2];
            const double element = e2m1_decode(col % 2 == 0 ? byte & 15 : byte >> 4);
            const int block = q.spec.block_size();
            const uint8_t scale = q.scales.as<uint8_t>()[(row * q.padded_cols + col) / block];
            if (kind == Kind::nvfp4) return element * e4m3_decode(scale) * double{*q.tensor_scale_ptr()};
            return element * e8m0_decode(scale) * (4.0 / 3.0);
        }
        const bool transposed = kind == Kind::f32_transposed || kind == Kind::bf16_transposed;
        const int64_t at = transposed ? col * rows + row : row * cols + col;
        if (tensor.dtype == DType::bf16) return bf16_decode(tensor.as<Bf16>()[at]);
        const float x = tensor.as<float>()[at];
        return compute == DType::bf16 ? round_to_bf16(x) : x;
    }
};

struct Expected {
    std::vector<double> sum, magnitude;  // of products, and of their absolute values
};

Expected naive(const TestOperand& a, const TestOperand& b, DType compute) {
    const int64_t m = a.rows, n = b.rows, k = a.cols;
    const auto x = a.values(compute), y = b.values(compute);
    Expected expected;
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            double sum = 0, magnitude = 0;
            for (int64_t l = 0; l < k; ++l) {
                const double product = x[static_cast<size_t>(i * k + l)] * y[static_cast<size_t>(j * k + l)];
                sum += product;
                magnitude += std::fabs(product);
            }
            expected.sum.push_back(sum);
            expected.magnitude.push_back(magnitude);
        }
    }
    return expected;
}

constexpr double kFp32Sum = 1e-6;  // of the magnitude: FP32 sums of up to 3000 products
constexpr double kBf16 = 1.0 / 256 + 1e-6;

void expect_near(const Tensor& c, const std::vector<double>& expected, const std::vector<double>& tolerance,
                 std::string_view what) {
    const auto got = values_of(c);
    for (size_t i = 0; i < got.size(); ++i) {
        const double allowed = tolerance[i] + (c.dtype == DType::bf16 ? kBf16 * std::fabs(expected[i]) : 0.0);
        ASSERT_NEAR(got[i], expected[i], allowed) << what << " at " << i;
    }
}

struct Size {
    int64_t m, n, k;
};
constexpr Size kSizes[] = {{1, 1, 1}, {5, 3, 17}, {16, 16, 32}, {33, 70, 40}, {131, 65, 96}};

std::string describe(Size s, Kind a, Kind b, DType c) {
    return fmt::format("{}x{}x{}, operands {} and {}, C {}", s.m, s.n, s.k, static_cast<int>(a),
                       static_cast<int>(b), name_of(c));
}

class MatmulSweep : public testing::TestWithParam<DType> {};  // what C is

TEST_P(MatmulSweep, EqualsTheNaiveProductOfEveryKindOfOperands) {
    for (const Size s : kSizes) {
        for (const Kind kind_a : kKinds) {
            for (const Kind kind_b : kKinds) {
                const TestOperand a(kind_a, s.m, s.k, 1), b(kind_b, s.n, s.k, 2);
                for (const DType compute : {DType::bf16, DType::f32}) {
                    const Buffer c(GetParam(), {s.m, s.n});
                    MatmulOptions options;
                    options.compute = compute;
                    run_planned([&](Context& context) {
                        matmul(context, a.operand(), b.operand(), c.tensor(), options);
                    });
                    Expected e = naive(a, b, compute);
                    for (double& m : e.magnitude) m *= kFp32Sum;
                    expect_near(c.tensor(), e.sum, e.magnitude, describe(s, kind_a, kind_b, GetParam()));
                }
            }
        }
    }
}

TEST_P(MatmulSweep, AppliesAlphaAndFactorsOfRowsAndColumns) {
    const Size s{37, 50, 48};
    const auto row = random_values(3, s.m), col = random_values(4, s.n);
    for (const Kind kind : {Kind::bf16, Kind::nvfp4}) {
        const TestOperand a(kind, s.m, s.k, 1), b(kind, s.n, s.k, 2);
        for (int which = 0; which < 4; ++which) {
            const Buffer c(GetParam(), {s.m, s.n});
            MatmulOptions options;
            options.alpha = -1.75f;
            if (which & 1) options.alpha_row = row.data();
            if (which & 2) options.alpha_col = col.data();
            run_planned(
                [&](Context& context) { matmul(context, a.operand(), b.operand(), c.tensor(), options); });
            Expected e = naive(a, b, DType::bf16);
            for (size_t i = 0; i < e.sum.size(); ++i) {
                const double factor = -1.75 * (which & 1 ? row[i / static_cast<size_t>(s.n)] : 1.0f) *
                                      (which & 2 ? col[i % static_cast<size_t>(s.n)] : 1.0f);
                e.sum[i] *= factor;
                e.magnitude[i] *= std::fabs(factor) * kFp32Sum;
            }
            expect_near(c.tensor(), e.sum, e.magnitude, "with factors");
        }
    }
}

TEST_P(MatmulSweep, MultipliesTheScalesThatPlainValuesLack) {
    const Size s{37, 50, 48};
    std::vector<float> scale_a = {0.3f}, scale_b = {7.0f};
    for (const Kind kind_b : {Kind::bf16_transposed, Kind::nvfp4}) {
        const TestOperand a(Kind::bf16, s.m, s.k, 1), b(kind_b, s.n, s.k, 2);
        Operand scaled_a = a.operand(), scaled_b = b.operand();
        scaled_a.scale = view_of(scale_a, {1});
        if (!is_quantized(kind_b)) scaled_b.scale = view_of(scale_b, {1});
        const double factor = double{scale_a[0]} * (is_quantized(kind_b) ? 1.0 : double{scale_b[0]});
        const Buffer c(GetParam(), {s.m, s.n});
        run_planned([&](Context& context) { matmul(context, scaled_a, scaled_b, c.tensor()); });
        Expected e = naive(a, b, DType::bf16);
        for (size_t i = 0; i < e.sum.size(); ++i) {
            e.sum[i] *= factor;
            e.magnitude[i] *= factor * kFp32Sum;
        }
        expect_near(c.tensor(), e.sum, e.magnitude, "with scales");
    }
}

INSTANTIATE_TEST_SUITE_P(Results, MatmulSweep, testing::Values(DType::f32, DType::bf16),
                         [](const auto& test) { return std::string(name_of(test.param)); });

TEST(Matmul, AddsToCWhenAccumulating) {
    for (const Size s : {Size{37, 50, 48}, Size{40, 24, 2100}}) {
        for (const Kind kind : {Kind::bf16, Kind::f32_transposed, Kind::nvfp4}) {
            const TestOperand a(kind, s.m, s.k, 1), b(kind, s.n, s.k, 2);
            const Buffer before = random_buffer(DType::f32, {s.m, s.n}, 5);
            const Buffer c(DType::f32, {s.m, s.n});
            MatmulOptions options;
            options.accumulate = true;
            run_planned([&](Context& context) {
                std::memcpy(c.data(), before.data(), c.bytes());
                matmul(context, a.operand(), b.operand(), c.tensor(), options);
            });
            Expected e = naive(a, b, DType::bf16);
            const auto old = values_of(before.tensor());
            for (size_t i = 0; i < e.sum.size(); ++i) {
                e.sum[i] += old[i];
                e.magnitude[i] = (e.magnitude[i] + std::fabs(old[i])) * kFp32Sum;
            }
            expect_near(c.tensor(), e.sum, e.magnitude, "accumulated");
        }
    }
}

// Products that are cut into many tiles, with tails in every dimension, and sums that are cut.
TEST(Matmul, EqualsTheNaiveProductWhenCutIntoTiles) {
    for (const Size s : {Size{700, 90, 64}, Size{130, 1100, 33}, Size{60, 40, 2500}}) {
        for (const auto& [kind_a, kind_b] :
             {std::pair(Kind::bf16, Kind::bf16), std::pair(Kind::f32, Kind::bf16),
              std::pair(Kind::bf16_transposed, Kind::bf16_transposed),
              std::pair(Kind::bf16, Kind::bf16_transposed), std::pair(Kind::nvfp4, Kind::mxfp4)}) {
            const TestOperand a(kind_a, s.m, s.k, 1), b(kind_b, s.n, s.k, 2);
            Expected e = naive(a, b, DType::bf16);
            for (double& m : e.magnitude) m *= kFp32Sum;
            for (const DType result : {DType::f32, DType::bf16}) {
                const Buffer c(result, {s.m, s.n});
                run_planned([&](Context& context) { matmul(context, a.operand(), b.operand(), c.tensor()); });
                expect_near(c.tensor(), e.sum, e.magnitude, describe(s, kind_a, kind_b, result));
            }
        }
    }
}

// Multiples of 1/4 whose sums stay below 2^22: every partial sum is an FP32 number.
// Scales of rows are factors of the result; others vary along the sum and are multiplied in FP32. 2200
// columns are cut into tiles, and 40 are fewer than one block.
TEST(Matmul, EqualsTheProductOfDequantizedValuesInEveryFormat) {
    const char* const specs[] = {"nvfp4",    "nvfp4 outer=1x128", "mxfp4 32x32",    "mxfp8:e4m3",
                                 "fp8:e4m3", "fp8:e5m2 row",      "fp8:e4m3 1x128", "fp8:e4m3 128x128",
                                 "fp4 row",  "fp4 32x32",         "int4 tensor",    "int4 row",
                                 "log4 row"};
    for (const Size s : {Size{37, 50, 40}, Size{30, 26, 2200}}) {
        const Buffer x = random_buffer(DType::f32, {s.m, s.k}, 1),
                     w = random_buffer(DType::f32, {s.n, s.k}, 2);
        const Buffer plain = random_buffer(DType::f32, {s.n, s.k}, 3);
        const auto row = random_values(3, s.m), col = random_values(4, s.n);
        for (const char* text : specs) {
            for (const bool other_is_plain : {false, true}) {
                const QuantSpec spec = parse_spec(text);
                const Buffer c(DType::f32, {s.m, s.n}), values_a(DType::f32, {s.m, spec.padded(s.k)}),
                    values_b(DType::f32, {s.n, spec.padded(s.k)});
                MatmulOptions options;
                if (!other_is_plain) {
                    options.alpha_row = row.data();
                    options.alpha_col = col.data();
                }
                run_planned([&](Context& context) {
                    const ArenaScope scope(context.arena);
                    QuantizedMatrix a = allocate_quantized(context.arena, spec, s.m, s.k),
                                    b = allocate_quantized(context.arena, spec, s.n, s.k);
                    quantize(context, spec, x.tensor(), {}, a);
                    quantize(context, spec, w.tensor(), {}, b);
                    dequantize(context, a, values_a.tensor());
                    dequantize(context, b, values_b.tensor());
                    matmul(context, a, other_is_plain ? Operand(plain.tensor()) : Operand(b), c.tensor(),
                           options);
                });
                const auto got = values_of(c.tensor());
                const float *av = values_a.tensor().as<float>(), *bv = values_b.tensor().as<float>();
                for (int64_t i = 0; i < s.m; ++i) {
                    for (int64_t j = 0; j < s.n; ++j) {
                        double sum = 0, magnitude = 0;
                        for (int64_t k = 0; k < s.k; ++k) {
                            const float of_b = other_is_plain
                                                   ? round_to_bf16(plain.tensor().as<float>()[j * s.k + k])
                                                   : bv[j * spec.padded(s.k) + k];
                            const double product = double{av[i * spec.padded(s.k) + k]} * of_b;
                            sum += product;
                            magnitude += std::fabs(product);
                        }
                        const auto r = static_cast<size_t>(i), n = static_cast<size_t>(j);
                        const double factor = other_is_plain ? 1.0 : double{row[r]} * col[n];
                        ASSERT_NEAR(got[r * static_cast<size_t>(s.n) + n], sum * factor,
                                    magnitude * std::fabs(factor) * kFp32Sum)
                            << text << " " << s.k << " " << other_is_plain;
                    }
                }
            }
        }
    }
}

TEST(Matmul, IsExactWhenSumsOfQuantisedOperandsAreRepresentable) {
    for (const Size s : {Size{50, 30, 160}, Size{20, 24, 3072}}) {
        TestOperand a(Kind::nvfp4, s.m, s.k, 1), b(Kind::nvfp4, s.n, s.k, 2);
        for (TestOperand* o : {&a, &b}) {
            std::fill_n(o->quantized.scales.as<uint8_t>(), o->quantized.scales.count(), uint8_t{0x38});  // 1
            *o->quantized.tensor_scale_ptr() = 1.0f;
        }
        const Buffer c(DType::f32, {s.m, s.n});
        run_planned([&](Context& context) { matmul(context, a.operand(), b.operand(), c.tensor()); });
        EXPECT_EQ(values_of(c.tensor()), naive(a, b, DType::bf16).sum);
    }
}

TEST(Matmul, T13_L15_RoundsTheProductOfTensorScalesOnce) {
    TestOperand a(Kind::mxfp4, 1, 32, 1), b(Kind::mxfp4, 1, 32, 2);
    for (TestOperand* o : {&a, &b}) {
        std::fill_n(o->quantized.codes.as<uint8_t>(), 16, uint8_t{0});
        o->quantized.codes.as<uint8_t>()[0] = 2;     // 1
        o->quantized.scales.as<uint8_t>()[0] = 127;  // 1
    }
    const Buffer c(DType::f32, {1, 1});
    run_planned([&](Context& context) { matmul(context, a.operand(), b.operand(), c.tensor()); });
    EXPECT_EQ(*c.tensor().as<float>(), static_cast<float>(16.0 / 9.0));
}

TEST(Matmul, GivesTheSameBytesWithAnyNumberOfThreads) {
    const int before = thread_count();
    for (const Size s : {Size{600, 200, 96}, Size{96, 130, 2300}}) {
        for (const Kind kind : {Kind::bf16, Kind::f32, Kind::nvfp4}) {
            const TestOperand a(kind, s.m, s.k, 1), b(kind, s.n, s.k, 2);
            std::vector<double> first;
            for (const int threads : {1, 2, 3}) {
                set_thread_count(threads);
                const Buffer c(DType::f32, {s.m, s.n});
                MatmulOptions options;
                options.compute = kind == Kind::f32 ? DType::f32 : DType::bf16;
                run_planned([&](Context& context) {
                    matmul(context, a.operand(), b.operand(), c.tensor(), options);
                });
                if (threads == 1) first = values_of(c.tensor());
                EXPECT_EQ(values_of(c.tensor()), first) << threads << " threads";
            }
        }
    }
    set_thread_count(before);
}

TEST(Matmul, ClearsOrKeepsCWhenThereIsNothingToSum) {
    const Buffer c = random_buffer(DType::f32, {3, 4}, 1);
    const auto before = values_of(c.tensor());
    MatmulOptions options;
    options.accumulate = true;
    const Operand x = Operand::transposed({nullptr, DType::bf16, Device::cpu, {0, 3}});
    const Operand y = Operand::transposed({nullptr, DType::bf16, Device::cpu, {0, 4}});
    run_planned([&](Context& context) { matmul(context, x, y, c.tensor(), options); });
    EXPECT_EQ(values_of(c.tensor()), before);
    run_planned([&](Context& context) { matmul(context, x, y, c.tensor()); });
    EXPECT_EQ(values_of(c.tensor()), std::vector<double>(12, 0.0));
}

TEST(Matmul, RefusesWhatDoesNotFit) {
    Arena arena(1 << 20);
    Context context{arena};
    const Buffer a(DType::bf16, {4, 8}), b(DType::bf16, {5, 8}), b_short(DType::bf16, {5, 7});
    const Buffer c(DType::f32, {4, 5}), c_wrong(DType::f32, {5, 4}), c_bf16(DType::bf16, {4, 5});
    const Buffer bytes(DType::u8, {4, 8});
    EXPECT_THROW(matmul(context, a.tensor(), b_short.tensor(), c.tensor()), Error);
    EXPECT_THROW(matmul(context, a.tensor(), b.tensor(), c_wrong.tensor()), Error);
    EXPECT_THROW(matmul(context, bytes.tensor(), b.tensor(), c.tensor()), Error);
    MatmulOptions options;
    options.accumulate = true;
    EXPECT_THROW(matmul(context, a.tensor(), b.tensor(), c_bf16.tensor(), options), Error);
    const TestOperand q(Kind::nvfp4, 4, 8, 1);
    Operand transposed = q.operand();
    transposed.is_transposed = true;
    EXPECT_THROW(matmul(context, transposed, b.tensor(), c.tensor()), Error);
    std::vector<float> scale = {1.0f};
    Operand scaled = q.operand();
    scaled.scale = view_of(scale, {1});
    EXPECT_THROW(matmul(context, scaled, b.tensor(), c.tensor()), Error);
}

TEST(Matmul, SaysHowThisMachineMultiplies) {
    EXPECT_TRUE(matmul_description().starts_with("onednn ")) << matmul_description();
}

}  // namespace
}  // namespace nibble
