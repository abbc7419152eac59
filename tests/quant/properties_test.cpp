// What holds for every spec, shape and input.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/quantized.h"
#include "support/samples.h"
#include "support/specs.h"

namespace nibble {
namespace {

using test::kSpecs;
using test::Quantized;

bool is_deterministic(const QuantSpec& spec) { return !spec.is_stochastic(); }

struct Matrix {
    int64_t rows = 0, cols = 0;
    std::vector<float> values;
    Tensor tensor() { return view_of(values, {rows, cols}); }
};

// Normal values at any size, with rows and elements of other sizes among them.
Matrix random_matrix() {
    Matrix m;
    m.rows = *rc::gen::inRange<int64_t>(1, 40);
    m.cols = *rc::gen::inRange<int64_t>(1, 300);
    m.values = test::normals(m.rows * m.cols, *rc::gen::arbitrary<uint64_t>());
    const float size = std::ldexp(1.0f, *rc::gen::inRange(-60, 61));
    const int64_t outlier = *rc::gen::inRange<int64_t>(0, m.rows * m.cols);
    for (float& v : m.values) v *= size;
    m.values[static_cast<size_t>(outlier)] *= 100.0f;
    return m;
}

QuantSpec random_spec() { return parse_spec(*rc::gen::elementOf(kSpecs)); }

RC_GTEST_PROP(Quantize, ScalesAndValuesAreFinite, ()) {
    const QuantSpec spec = random_spec();
    Matrix x = random_matrix();
    const Quantized q(spec, x.tensor());
    const uint8_t most = spec.format == Format::nvfp4   ? kE4M3MaxByte
                         : spec.format == Format::mxfp8 ? 246
                                                        : 252;
    for (int64_t r = 0; r < q.rows(); ++r) {
        for (int64_t k = 0; k < q.cols(); ++k) {
            RC_ASSERT(q.scale(r, k) <= most);
            RC_ASSERT(std::isfinite(q.fp32_scale(r, k)) && q.fp32_scale(r, k) > 0.0f);
        }
    }
    RC_ASSERT(std::isfinite(q.tensor_scale()) && q.tensor_scale() > 0.0f);
    for (const float v : q.values()) RC_ASSERT(std::isfinite(v));
}

// Subnormal and huge inputs: nothing that is not finite, and nothing larger than four thirds of what came in.
TEST(Quantize, ExtremeInputsStayFinite) {
    for (const std::string& text : kSpecs) {
        const QuantSpec spec = parse_spec(text);
        for (const float size : {0x1p-149f, 0x1p-140f, 0x1p-127f, 0x1p-100f, 0x1p100f, 0x1p118f}) {
            Matrix x{16, 128, test::normals(16 * 128, 7)};
            for (float& v : x.values) v *= size;
            const Quantized q(spec, x.tensor());
            ASSERT_TRUE(std::isfinite(q.tensor_scale()) && q.tensor_scale() > 0.0f) << text << " " << size;
            for (const float v : q.values()) ASSERT_TRUE(std::isfinite(v)) << text << " " << size;
        }
    }
}

TEST(Quantize, T14_I18_ZeroGivesZero) {
    for (const std::string& text : kSpecs) {
        Matrix x{5, 70, std::vector<float>(5 * 70, 0.0f)};
        x.values[3] = -0.0f;
        const Quantized q(text, x.tensor());
        EXPECT_TRUE(std::isfinite(q.tensor_scale())) << text;
        for (int64_t r = 0; r < q.rows(); ++r) {
            for (int64_t k = 0; k < q.cols(); ++k) ASSERT_EQ(q.code(r, k), 0) << text;
        }
    }
}

TEST(Quantize, EmptyMatricesHaveNoCodes) {
    for (const std::string& text : kSpecs) {
        for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{0, 16}, {3, 0}, {0, 0}}) {
            std::vector<float> nothing;
            const Quantized q(text, view_of(nothing, {rows, cols}));
            EXPECT_EQ(q.matrix().codes.count(), 0);
            EXPECT_TRUE(std::isfinite(q.tensor_scale()));
        }
    }
}

// Users never pad: the bytes are those of the same matrix with zeros appended.
RC_GTEST_PROP(Quantize, PadsColumnsWithZeros, ()) {
    const QuantSpec spec = random_spec();
    Matrix x = random_matrix();
    Matrix padded{x.rows, spec.padded(x.cols), {}};
    for (int64_t r = 0; r < x.rows; ++r) {
        const auto row = x.values.begin() + r * x.cols;
        padded.values.insert(padded.values.end(), row, row + x.cols);
        padded.values.resize(static_cast<size_t>((r + 1) * padded.cols), 0.0f);
    }
    RC_ASSERT(Quantized(spec, x.tensor()).bytes() == Quantized(spec, padded.tensor()).bytes());
}

// A square block with rows missing is one whose missing rows are zero.
TEST(Quantize, PadsRowsOfSquareBlocksWithZeros) {
    for (const char* text :
         {"nvfp4 16x16", "nvfp4 16x16 scale=four-six:mae", "nvfp4 16x16 round=stochastic",
          "mxfp4 32x32 round=stochastic", "mxfp8 32x32", "fp4 32x32", "fp8:e4m3 128x128"}) {
        Matrix x{21, 48, test::normals(21 * 48, 9)};
        Matrix padded = x;
        padded.rows = 128;
        padded.values.resize(128 * 48, 0.0f);
        const Quantized q(text, x.tensor()), p(text, padded.tensor());
        for (int64_t r = 0; r < x.rows; ++r) {
            for (int64_t k = 0; k < x.cols; ++k) {
                ASSERT_EQ(q.code(r, k), p.code(r, k)) << text;
                ASSERT_EQ(q.scale(r, k), p.scale(r, k)) << text;
                ASSERT_EQ(q.fp32_scale(r, k), p.fp32_scale(r, k)) << text;
            }
        }
    }
}

RC_GTEST_PROP(Quantize, TakesBf16AsItsExactValues, ()) {
    const QuantSpec spec = random_spec();
    Matrix x = random_matrix();
    std::vector<Bf16> narrow;
    for (float& v : x.values) {
        narrow.push_back(bf16_encode(v));
        v = bf16_decode(narrow.back());
    }
    RC_ASSERT(Quantized(spec, x.tensor()).bytes() ==
              Quantized(spec, view_of(narrow, {x.rows, x.cols})).bytes());
}

// Twice the input has the same codes and twice the scale (MX formats: the next bytes; except for QuEST's
// 1e-8): the FP32 scales of its blocks, or the tensor's.
RC_GTEST_PROP(Quantize, ScalesWithPowersOfTwo, ()) {
    const QuantSpec spec = random_spec();
    RC_PRE(spec.tensor != TensorScale::none);
    RC_PRE(spec.scale != ScaleRule::quest_std && spec.scale != ScaleRule::quest_rms);
    Matrix x{16, 256, test::normals(16 * 256, *rc::gen::arbitrary<uint64_t>())};
    const Quantized q(spec, x.tensor());
    for (float& v : x.values) v *= 2.0f;
    const Quantized twice(spec, x.tensor());
    const bool blocks_double = spec.has_fp32_scales(), tensor_doubles = !blocks_double && !spec.is_mx();
    RC_ASSERT(twice.tensor_scale() == q.tensor_scale() * (tensor_doubles ? 2.0f : 1.0f));
    for (int64_t r = 0; r < q.rows(); ++r) {
        for (int64_t k = 0; k < q.cols(); ++k) {
            RC_ASSERT(twice.code(r, k) == q.code(r, k));
            RC_ASSERT(twice.scale(r, k) == q.scale(r, k) + (spec.is_mx() ? 1 : 0));
            RC_ASSERT(twice.fp32_scale(r, k) == q.fp32_scale(r, k) * (blocks_double ? 2.0f : 1.0f));
        }
    }
}

RC_GTEST_PROP(Quantize, I03_NearestRoundingIsOdd, ()) {
    const QuantSpec spec = random_spec();
    RC_PRE(spec.round != Rounding::stochastic);
    Matrix x = random_matrix();
    const std::vector<float> values = Quantized(spec, x.tensor()).values();
    for (float& v : x.values) v = -v;
    const std::vector<float> negated = Quantized(spec, x.tensor()).values();
    for (size_t i = 0; i < values.size(); ++i) RC_ASSERT(negated[i] == -values[i]);
}

// Rows do not see each other but through the tensor's amax.
RC_GTEST_PROP(Quantize, RowsOfNarrowBlocksAreIndependent, ()) {
    const QuantSpec spec = random_spec();
    RC_PRE(!spec.is_square() && is_deterministic(spec));
    Matrix x = random_matrix();
    Matrix reversed{x.rows, x.cols, {}};
    for (int64_t r = x.rows; r-- > 0;) {
        reversed.values.insert(reversed.values.end(), x.values.begin() + r * x.cols,
                               x.values.begin() + (r + 1) * x.cols);
    }
    const Quantized q(spec, x.tensor()), other(spec, reversed.tensor());
    for (int64_t r = 0; r < q.rows(); ++r) {
        for (int64_t k = 0; k < q.cols(); ++k) {
            RC_ASSERT(q.code(r, k) == other.code(x.rows - 1 - r, k));
            RC_ASSERT(q.scale(r, k) == other.scale(x.rows - 1 - r, k));
            RC_ASSERT(q.fp32_scale(r, k) == other.fp32_scale(x.rows - 1 - r, k));
        }
    }
}

TEST(Quantize, BytesDoNotDependOnTheNumberOfThreads) {
    Matrix x{300, 350, test::normals(300 * 350, 17)};
    const int threads = thread_count();
    for (const std::string& text : kSpecs) {
        set_thread_count(1);
        const std::vector<uint8_t> one = Quantized(text, x.tensor(), {.seed = 3}).bytes();
        for (const int count : {2, 3, 7}) {
            set_thread_count(count);
            EXPECT_EQ(Quantized(text, x.tensor(), {.seed = 3}).bytes(), one) << text << " with " << count;
        }
    }
    set_thread_count(threads);
}

// Values of the format come back as they are: random codes with a 6 in every block, random scales, one at
// 448.
RC_GTEST_PROP(Quantize, RepresentableNvfp4ValuesRoundTrip, ()) {
    const std::string text = *rc::gen::element<std::string>("nvfp4", "nvfp4 16x16", "nvfp4 round=stochastic",
                                                            "nvfp4 round=nearest-away");
    const QuantSpec spec = parse_spec(text);
    const float tensor_scale = std::ldexp(1.0f, *rc::gen::inRange(-40, 40));
    const uint64_t seed = *rc::gen::arbitrary<uint64_t>();
    const int64_t rows = 16, cols = 32;
    Matrix x{rows, cols, std::vector<float>(static_cast<size_t>(rows * cols))};
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t k = 0; k < cols; ++k) {
            const int64_t tile = spec.is_square() ? r / 16 * 16 : r;
            const Philox block = test::draw_for_test(seed, static_cast<uint64_t>(tile * cols + k / 16), 1);
            const uint8_t byte = tile == 0 && k < 16 ? 0x7e : static_cast<uint8_t>(8 + block.word[0] % 119);
            const Philox draw = test::draw_for_test(seed, static_cast<uint64_t>(r * cols + k));
            const uint8_t code = k % 16 == 5 ? 7 : draw.word[0] & 15;
            x.values[static_cast<size_t>(r * cols + k)] = nvfp4_operand(code, byte) * tensor_scale;
        }
    }
    RC_ASSERT(Quantized(spec, x.tensor()).values() == x.values);
}

RC_GTEST_PROP(Quantize, RepresentableMxfp4ValuesRoundTrip, ()) {
    const std::string text =
        *rc::gen::element<std::string>("mxfp4", "mxfp4 round=stochastic", "mxfp4 round=nearest-down");
    const uint64_t seed = *rc::gen::arbitrary<uint64_t>();
    const int64_t rows = 8, cols = 96;
    Matrix x{rows, cols, std::vector<float>(static_cast<size_t>(rows * cols))};
    for (int64_t i = 0; i < rows * cols; ++i) {
        const Philox block = test::draw_for_test(seed, static_cast<uint64_t>(i / 32), 1);
        const Philox draw = test::draw_for_test(seed, static_cast<uint64_t>(i));
        const uint8_t code = i % 32 == 9 ? 6 + (draw.word[0] & 1) : draw.word[0] & 15;
        x.values[static_cast<size_t>(i)] = mxfp4_operand(code, static_cast<uint8_t>(1 + block.word[0] % 252));
    }
    RC_ASSERT(Quantized(text, x.tensor()).values() == x.values);
}

// Values of elements under FP32 scales come back as they are where each block holds its largest element.
RC_GTEST_PROP(Quantize, RepresentableValuesOfFp32ScalesRoundTrip, ()) {
    const std::string text = *rc::gen::element<std::string>(
        "fp8:e4m3 tensor", "fp8:e5m2 row", "fp8:e4m3 1x128 round=stochastic", "fp4 row", "fp4 32x32",
        "int4 tensor round=stochastic", "int4 row", "log4 row round=stochastic", "log4 tensor");
    const QuantSpec spec = parse_spec(text);
    const int size = *rc::gen::inRange(-40, 40);
    const float scale = std::ldexp(1.0f, size);
    const uint64_t seed = *rc::gen::arbitrary<uint64_t>();
    Matrix x{4, 256, {}};
    for (int64_t i = 0; i < 4 * 256; ++i) {
        const Philox draw = test::draw_for_test(seed, static_cast<uint64_t>(i));
        const auto code = static_cast<uint8_t>(draw.word[0] & ((1u << spec.code_bits()) - 1));
        const float value = element_decode(spec.element, code), largest = largest_of(spec.element);
        const bool exists = std::fabs(value) <= largest;  // not of codes that are infinity or NaN elsewhere
        x.values.push_back((i % 16 == 3 || !exists ? largest : value) * scale);
    }
    RC_ASSERT(Quantized(spec, x.tensor()).values() == x.values);
}

TEST(Quantize, L28_BlocksOfZerosUnderAnOuterScaleHaveTheSmallestInnerOne) {
    Matrix x{1, 256, std::vector<float>(256, 0.0f)};
    x.values[200] = 3;  // the first 128 columns have nothing
    const Quantized q("nvfp4 1x16 outer=1x128", x.tensor());
    for (int64_t k = 0; k < 128; ++k) {
        EXPECT_EQ(q.scale(0, k), 1);  // 2^-9
        EXPECT_EQ(q.code(0, k), 0);
        EXPECT_EQ(q.values()[static_cast<size_t>(k)], 0.0f);  // not NaN
    }
}

TEST(Quantize, L14_SquareBlocksQuantiseTheTransposeToTheTranspose) {
    for (const char* text :
         {"nvfp4 16x16", "mxfp4 32x32", "mxfp8:e5m2 32x32", "fp4 32x32", "fp8:e4m3 128x128"}) {
        Matrix x{48, 160, test::normals(48 * 160, 13)};
        Matrix t{160, 48, std::vector<float>(x.values.size())};
        for (int64_t r = 0; r < x.rows; ++r) {
            for (int64_t k = 0; k < x.cols; ++k) t.values[k * x.rows + r] = x.values[r * x.cols + k];
        }
        const Quantized q(text, x.tensor()), qt(text, t.tensor());
        for (int64_t r = 0; r < x.rows; ++r) {
            for (int64_t k = 0; k < x.cols; ++k) {
                ASSERT_EQ(q.code(r, k), qt.code(k, r)) << text;
                ASSERT_EQ(q.scale(r, k), qt.scale(k, r)) << text;
                ASSERT_EQ(q.fp32_scale(r, k), qt.fp32_scale(k, r)) << text;
            }
        }
    }
}

// What a product over the rows reads holds every scale but the tensor's; what one over the columns reads, all
// but those of rows and tensor.
TEST(Quantize, OperandsHoldTheScalesThatVaryAlongTheContraction) {
    Matrix x{40, 200, test::normals(40 * 200, 21)};
    for (const std::string& text : kSpecs) {
        const Quantized q(text, x.tensor(), {.seed = 3});
        const QuantizedMatrix& m = q.matrix();
        const std::vector<float> values = q.values();
        std::vector<float> along(values.size()), across(values.size());
        Arena none(64);
        Context context{none};
        dequantize_operand(context, m, view_of(along, {q.rows(), q.cols()}));
        dequantize_operand_transposed(context, m, view_of(across, {q.cols(), q.rows()}));
        for (int64_t r = 0; r < q.rows(); ++r) {
            for (int64_t k = 0; k < q.cols(); ++k) {
                const auto i = static_cast<size_t>(r * q.cols() + k),
                           t = static_cast<size_t>(k * q.rows() + r);
                ASSERT_EQ(across[t] * q.tensor_scale(), values[i]) << text;
                const float of_row = m.spec.has_row_scales() ? q.fp32_scale(r, k) : 1.0f;
                ASSERT_EQ(along[i] * of_row * q.tensor_scale(), values[i]) << text;
            }
        }
    }
}

// What a product by groups reads: FP32 scales apart, and of square tiles also transposed, padded with zeros.
TEST(Quantize, ValuesOfGroupsTimesTheirFp32ScalesAreTheOperand) {
    Matrix x{20, 200, test::normals(20 * 200, 21)};
    int64_t squares = 0;
    for (const std::string& text : kSpecs) {
        const Quantized q(text, x.tensor(), {.seed = 3});
        const QuantizedMatrix& m = q.matrix();
        if (!m.spec.has_fp32_groups()) continue;
        const auto count = static_cast<size_t>(q.rows() * q.cols());
        std::vector<float> operand(count);
        std::vector<Bf16> groups(count);
        Arena arena(1 << 20);
        Context context{arena};
        dequantize_operand(context, m, view_of(operand, {q.rows(), q.cols()}));
        dequantize_groups(context, m, view_of(groups, {q.rows(), q.cols()}));
        for (int64_t r = 0; r < q.rows(); ++r) {
            for (int64_t k = 0; k < q.cols(); ++k) {
                const auto i = static_cast<size_t>(r * q.cols() + k);
                ASSERT_EQ(bf16_decode(groups[i]) * q.fp32_scale(r, k), operand[i]) << text;
            }
        }
        if (!m.spec.is_square()) continue;
        const QuantizedMatrix t = transposed_groups(context, m);
        ASSERT_EQ(t.rows, q.cols());
        const int64_t tile = m.spec.fp32_block_size();
        ASSERT_EQ(t.padded_cols, tile);
        ASSERT_FALSE(t.spec.rotates_columns());
        for (int64_t k = 0; k < t.rows; ++k) {
            for (int64_t r = 0; r < t.padded_cols; ++r) {
                const Bf16 value = t.operand.as<Bf16>()[k * t.padded_cols + r];
                const float scale = t.fp32_scales.as<float>()[k * t.fp32_scales.cols() + r / tile];
                const bool is_there = r < q.rows();
                ASSERT_EQ(value.bits, is_there ? groups[static_cast<size_t>(r * q.cols() + k)].bits : 0)
                    << text;
                if (is_there) {
                    ASSERT_EQ(scale, q.fp32_scale(r, k)) << text;
                }
            }
        }
        ++squares;
    }
    EXPECT_GE(squares, 2);
}

// --- what a call refuses ---

std::string error_of(std::string_view spec, const Tensor& x, std::string_view name = "x") {
    try {
        Quantized(spec, x, {}, {.name = name});
    } catch (const Error& error) {
        return error.what();
    }
    return "(no error)";
}

TEST(Quantize, NamesTheFirstValueThatIsNotFinite) {
    for (const std::string& text : kSpecs) {
        Matrix x{400, 50, test::normals(400 * 50, 1)};
        x.values[331 * 50 + 7] = std::numeric_limits<float>::infinity();
        x.values[317 * 50 + 49] = std::numeric_limits<float>::quiet_NaN();
        x.values[399 * 50] = -std::numeric_limits<float>::infinity();
        EXPECT_EQ(error_of(text, x.tensor(), "layers.3.dy"),
                  "layers.3.dy: element [317, 49] is NaN; a quantised format has no code for it")
            << text;
    }
    std::vector<Bf16> narrow(64, Bf16{0x3f80});
    narrow[33] = Bf16{0xff80};
    EXPECT_EQ(error_of("nvfp4", view_of(narrow, {2, 32}), "w"),
              "w: element [1, 1] is -infinity; a quantised format has no code for it");
}

TEST(Quantize, NamesANanEvenWhereTheAmaxIsKnown) {
    Matrix x{2, 16, std::vector<float>(32, 1.0f)};
    x.values[20] = std::numeric_limits<float>::quiet_NaN();
    const float amax = 1.0f;
    EXPECT_THROW(Quantized("nvfp4", x.tensor(), {}, {.known_amax = &amax}), Error);
}

TEST(Quantize, RefusesValuesWhoseRotationOverflows) {
    Matrix x{1, 128, std::vector<float>(128, 3e38f)};
    EXPECT_NE(
        error_of("nvfp4 rotate=rht:128", x.tensor(), "dy").find("dy: its values are too large to rotate"),
        std::string::npos);
}

TEST(Quantize, RefusesOutputsThatDoNotFit) {
    Matrix x{4, 32, test::normals(128, 1)};
    Arena arena(4096);
    Context context{arena};
    QuantizedMatrix other = allocate_quantized(arena, parse_spec("nvfp4"), 4, 16);
    EXPECT_THROW(quantize(context, parse_spec("nvfp4"), x.tensor(), {}, other), Error);
    QuantizedMatrix mx = allocate_quantized(arena, parse_spec("mxfp4"), 4, 32);
    EXPECT_THROW(quantize(context, parse_spec("nvfp4"), x.tensor(), {}, mx), Error);
    EXPECT_THROW(allocate_quantized(arena, parse_spec("bf16"), 4, 32), Error);
    std::vector<uint8_t> bytes(128);
    EXPECT_THROW(quantize(context, parse_spec("mxfp4"), view_of(bytes, {4, 32}), {}, mx), Error);
}

TEST(Quantize, ReturnsBeforeTouchingMemoryWhilePlanning) {
    Arena arena;  // planning: it hands out addresses that must not be used
    Context context{arena};
    const QuantSpec spec = parse_spec("nvfp4 scale=eden rotate=rht:128");
    QuantizedMatrix q = allocate_quantized(arena, spec, 100, 100);
    const Tensor x{nullptr, DType::f32, Device::cpu, {100, 100}};
    quantize(context, spec, x, {}, q);
    quantize_reference(context, spec, x, {}, q);
    dequantize_operand(context, q, {nullptr, DType::bf16, Device::cpu, {100, 128}});
    EXPECT_EQ(q.codes.shape, (Shape{100, 64}));
    EXPECT_EQ(q.scales.shape, (Shape{100, 8}));
    EXPECT_EQ(q.mask.data, nullptr);
}

}  // namespace
}  // namespace nibble
