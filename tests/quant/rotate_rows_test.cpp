// rotate=...@rows: rotations along the other dimension.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "support/linear_run.h"
#include "support/samples.h"

namespace nibble {
namespace {

using test::Matrix;
using test::transposed;

Matrix normal(DType dtype, int64_t rows, int64_t cols) {
    return Matrix(dtype, rows, cols, test::normals(rows * cols));
}

SignBits signs_for(const QuantSpec& spec) { return rotation_signs(spec, {.seed = 3, .step = 2}); }

struct Bytes {
    std::vector<uint8_t> codes, scales;
    float tensor_scale = 0;
    friend bool operator==(const Bytes&, const Bytes&) = default;
};

// Quantises into `rows` rows, in memory that was planned.
Bytes quantized(const QuantSpec& spec, const Matrix& x, int64_t rows, int64_t cols,
                QuantizeOptions options = {}, bool by_reference = false) {
    Arena arena;
    Context context{arena};
    QuantizedMatrix q;
    const auto run = [&] {
        q = allocate_quantized(arena, spec, rows, cols);
        (by_reference ? quantize_reference : quantize)(context, spec, x.tensor(), {.seed = 3, .step = 2}, q,
                                                       options);
    };
    {
        const ArenaScope plan(arena);
        run();
    }
    arena.commit();
    run();
    return {test::bytes_of(q.codes), test::bytes_of(q.scales), *q.tensor_scale_ptr()};
}

TEST(RotateRows, IsTheRotationOfTheTranspose) {
    for (const char* text :
         {"nvfp4 rotate=hadamard:16@rows", "nvfp4 rotate=rht:32@rows", "nvfp4 rotate=rht2:128@rows"}) {
        const QuantSpec spec = parse_spec(text);
        const Matrix x = normal(DType::f32, 256, 77), other = transposed(x);
        Arena none(0);
        Context context{none};
        rotate_rows(context, spec.rotation_size, signs_for(spec), x.tensor(), spec.rotation_rounds());
        rotate(context, spec.rotation_size, signs_for(spec), other.tensor(), spec.rotation_rounds());
        EXPECT_EQ(x.values(), transposed(other).values()) << text;
        unrotate_rows(context, spec.rotation_size, signs_for(spec), x.tensor(), spec.rotation_rounds());
        unrotate(context, spec.rotation_size, signs_for(spec), other.tensor(), spec.rotation_rounds());
        EXPECT_EQ(x.values(), transposed(other).values()) << text;
        EXPECT_LT(test::relative_error(x.values(), normal(DType::f32, 256, 77).values()), 1e-6) << text;
    }
}

TEST(RotateRows, RefusesRowsThatAreNoWholeBlocks) {
    const Matrix x = normal(DType::f32, 24, 8);
    Arena none(0);
    Context context{none};
    EXPECT_THROW(rotate_rows(context, 16, {}, x.tensor()), Error);
    EXPECT_THROW(unrotate_rows(context, 8, {}, x.tensor()), Error);
}

TEST(RotateRows, IsFollowedByTheQuantiserOfTheRest) {
    const QuantSpec rotated = parse_spec("nvfp4 1x16 round=stochastic rotate=rht:64@rows"),
                    plain = parse_spec("nvfp4 1x16 round=stochastic");
    for (const DType dtype : {DType::f32, DType::bf16}) {
        const Matrix x = normal(dtype, 100, 48);
        Matrix wide(DType::f32, 128, 48);  // rows of zeros are added
        for (int64_t r = 0; r < 100; ++r) {
            for (int64_t c = 0; c < 48; ++c) wide.tensor().as<float>()[r * 48 + c] = x.at(r, c);
        }
        Arena none(0);
        Context context{none};
        rotate_rows(context, 64, signs_for(rotated), wide.tensor());
        const Bytes expected = quantized(plain, wide, 128, 48);
        EXPECT_EQ(quantized(rotated, x, 100, 48), expected);
        EXPECT_EQ(quantized(rotated, x, 100, 48, {}, true), expected);
        QuantizeOptions options;
        options.transposed = true;
        EXPECT_EQ(quantized(rotated, transposed(x), 100, 48, options), expected);
    }
}

TEST(RotateRows, RoundsToBf16WhereTheSpecSaysSo) {
    const Matrix x = normal(DType::f32, 32, 32);
    Arena none(0);
    Context context{none};
    const Bytes unrounded = quantized(parse_spec("nvfp4 rotate=hadamard:32@rows"), x, 32, 32);
    const Bytes rounded = quantized(parse_spec("nvfp4 rotate=hadamard:32@rows out=bf16"), x, 32, 32);
    EXPECT_NE(rounded, unrounded);
    rotate_rows(context, 32, {}, x.tensor());
    EXPECT_EQ(rounded, quantized(parse_spec("nvfp4"), Matrix(DType::bf16, 32, 32, x.values()), 32, 32));
}

TEST(RotateRows, NamesTheElementThatIsNotFinite) {
    const Matrix x = normal(DType::f32, 20, 32);
    x.tensor().as<float>()[5 * 32 + 7] = NAN;
    QuantizeOptions options;
    options.name = "dgrad.dy";
    for (const bool by_reference : {false, true}) {
        try {
            quantized(parse_spec("nvfp4 rotate=hadamard:16@rows"), x, 20, 32, options, by_reference);
            FAIL() << "a NaN was quantised";
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find("dgrad.dy: element [5, 7] is NaN"), std::string::npos)
                << error.what();
        }
    }
}

}  // namespace
}  // namespace nibble
