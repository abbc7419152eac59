// Operands, transposes and rotations against their definitions, on every instruction set of this machine.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "numerics/numerics.h"
#include "quant/for_each_target.h"
#include "quant/quant.h"

namespace nibble {
namespace {

struct MatrixShape {
    int64_t rows, cols;
};
const MatrixShape kShapes[] = {{1, 1}, {3, 16}, {16, 32}, {31, 33}, {32, 64}, {65, 200}, {130, 48}};

uint32_t draw(int64_t i) { return philox_draw(3, Purpose::sampling, static_cast<uint64_t>(i)).word[0]; }

// Any codes under any scales that quantise() could write.
QuantizedMatrix any_matrix(Arena& arena, const char* spec, int64_t rows, int64_t cols) {
    QuantizedMatrix q = allocate_quantized(arena, parse_spec(spec), rows, cols);
    const uint32_t last = q.spec.format == Format::mxfp4 ? 252 : kE4M3MaxByte;
    for (int64_t i = 0; i < q.codes.count(); ++i) q.codes.as<uint8_t>()[i] = static_cast<uint8_t>(draw(i));
    for (int64_t i = 0; i < q.scales.count(); ++i) {
        q.scales.as<uint8_t>()[i] = static_cast<uint8_t>(draw(-1 - i) % (last + 1));
    }
    return q;
}

float operand_at(const QuantizedMatrix& q, int64_t row, int64_t col) {
    const int64_t i = row * q.padded_cols + col;
    const uint8_t byte = q.codes.as<uint8_t>()[i / 2], code = i % 2 == 0 ? byte & 15 : byte >> 4;
    const uint8_t scale = q.scales.as<uint8_t>()[i / q.spec.block_size()];
    return q.spec.format == Format::mxfp4 ? mxfp4_operand(code, scale) : nvfp4_operand(code, scale);
}

uint32_t bits_at(const Tensor& t, int64_t i) {
    return t.dtype == DType::bf16 ? std::bit_cast<uint32_t>(bf16_decode(t.as<Bf16>()[i]))
                                  : std::bit_cast<uint32_t>(t.as<float>()[i]);
}

class DequantizedOperand : public testing::TestWithParam<const char*> {};

TEST_P(DequantizedOperand, IsTheProductOfCodeAndScaleInBothOrientations) {
    for (const MatrixShape& shape : kShapes) {
        const int64_t rows = shape.rows, cols = shape.cols;
        Arena arena(size_t{1} << 20);
        Context context{arena};
        const QuantizedMatrix q = any_matrix(arena, GetParam(), rows, cols);
        const int64_t padded = q.padded_cols;
        for (const DType dtype : {DType::bf16, DType::f32}) {
            const Tensor plain = arena.allocate(dtype, {rows, padded});
            const Tensor transposed = arena.allocate(dtype, {padded, rows});
            SCOPED_TRACE(plain.shape.str() + " " + std::string(name_of(dtype)));
            for_each_target([&] {
                std::memset(plain.data, 0xff, plain.bytes());
                std::memset(transposed.data, 0xff, transposed.bytes());
                dequantize_operand(context, q, plain);
                dequantize_operand_transposed(context, q, transposed);
                for (int64_t r = 0; r < rows; ++r) {
                    for (int64_t k = 0; k < padded; ++k) {
                        const uint32_t expected = std::bit_cast<uint32_t>(operand_at(q, r, k));
                        ASSERT_EQ(bits_at(plain, r * padded + k), expected) << "row " << r << " column " << k;
                        ASSERT_EQ(bits_at(transposed, k * rows + r), expected)
                            << "row " << r << " column " << k;
                    }
                }
            });
        }
    }
}
INSTANTIATE_TEST_SUITE_P(Formats, DequantizedOperand, testing::Values("nvfp4 1x16", "mxfp4 1x32"));

TEST(Transpose, MovesEveryElement) {
    for (const MatrixShape& shape : kShapes) {
        const int64_t rows = shape.rows, cols = shape.cols;
        std::vector<float> words(static_cast<size_t>(rows * cols));
        std::vector<Bf16> halves(words.size());
        for (size_t i = 0; i < words.size(); ++i) {
            words[i] = static_cast<float>(i);
            halves[i] = {static_cast<uint16_t>(i)};
        }
        for (const Tensor& x : {view_of(words, {rows, cols}), view_of(halves, {rows, cols})}) {
            const Buffer out(x.dtype, {cols, rows});
            SCOPED_TRACE(x.shape.str() + " " + std::string(name_of(x.dtype)));
            for_each_target([&] {
                std::memset(out.data(), 0xff, out.bytes());
                Arena arena(64);
                Context context{arena};
                transpose(context, x, out.tensor());
                for (int64_t i = 0; i < rows * cols; ++i) {
                    ASSERT_EQ(bits_at(out.tensor(), i % cols * rows + i / cols), bits_at(x, i))
                        << "element " << i;
                }
            });
        }
    }
}

TEST(Transpose, RefusesAnOutputOfAnotherShape) {
    std::vector<float> x(6), y(6);
    Arena arena(64);
    Context context{arena};
    EXPECT_THROW(transpose(context, view_of(x, {2, 3}), view_of(y, {2, 3})), Error);
}

class Rotation16To128 : public testing::TestWithParam<int> {};

TEST_P(Rotation16To128, AndItsInverseAreTheScalarTransforms) {
    const int size = GetParam();
    const SignBits signs(0x9e3779b97f4a7c15ull);
    for (const int64_t rows : {1, 7, 33}) {
        const int64_t cols = 3 * size;
        std::vector<float> x(static_cast<size_t>(rows * cols));
        for (size_t i = 0; i < x.size(); ++i)
            x[i] = static_cast<float>(draw(static_cast<int64_t>(i))) * 0x1p-31f - 1;
        std::vector<float> rotated = x, unrotated = x;
        for (size_t b = 0; b < x.size(); b += static_cast<size_t>(size)) {
            for (int j = 0; j < size; ++j) {
                if (signs[j]) rotated[b + j] = -rotated[b + j];
            }
            hadamard_transform(rotated.data() + b, size);
            hadamard_transform(unrotated.data() + b, size);
            for (int j = 0; j < size; ++j) {
                if (signs[j]) unrotated[b + j] = -unrotated[b + j];
            }
        }
        for_each_target([&] {
            Arena arena(64);
            Context context{arena};
            std::vector<float> y = x;
            rotate(context, size, signs, view_of(y, {rows, cols}));
            EXPECT_EQ(std::memcmp(y.data(), rotated.data(), y.size() * sizeof(float)), 0);
            y = x;
            unrotate(context, size, signs, view_of(y, {rows, cols}));
            EXPECT_EQ(std::memcmp(y.data(), unrotated.data(), y.size() * sizeof(float)), 0);
        });
    }
}
INSTANTIATE_TEST_SUITE_P(Sizes, Rotation16To128, testing::Values(16, 32, 64, 128));

}  // namespace
}  // namespace nibble
