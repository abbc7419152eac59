// A whole linear layer against an independent implementation (tests/golden/layer): every operand byte for
// byte, and its products to the order of their sums.
#include <gtest/gtest.h>

#include <map>

#include "support/golden.h"
#include "support/linear_run.h"

namespace nibble {
namespace {

using test::Bytes;
using test::Matrix;

const SafetensorsFile& layer_file() {
    static const SafetensorsFile file = test::golden("layer");
    return file;
}

Matrix recorded(const std::string& name, DType dtype) {
    const Tensor& t = layer_file().tensor(name);
    return Matrix(dtype, t.rows(), t.cols(), test::floats_of(t));
}

SignBits recorded_signs(const std::string& name) {
    SignBits signs;
    const std::vector<float> values = test::floats_of(layer_file().tensor(name));
    for (size_t i = 0; i < values.size(); ++i) signs[i] = values[i] < 0;
    return signs;
}

Recipe recipe_of(const std::array<std::pair<Source, const char*>, 6>& rows) {
    Recipe recipe;
    recipe.name = "recorded";
    for (size_t i = 0; i < rows.size(); ++i) {
        operand(recipe, kOperandNames[i]) = {rows[i].first, parse_spec(rows[i].second)};
    }
    return recipe;
}

struct Recorded {
    std::string name;
    Recipe recipe;
    std::string signs;  // the tensor that holds those of dgrad and wgrad, if they are random
};

std::vector<Recorded> recorded_layers() {
    constexpr Source o = Source::original, f = Source::forward;
    const char *nearest = "nvfp4 1x16", *four_six = "nvfp4 1x16 scale=four-six:mse";
    const char* rotated = "nvfp4 1x16 rotate=rht:128 signs=step";
    return {
        {"nearest",
         recipe_of({{{o, nearest}, {o, nearest}, {o, nearest}, {o, nearest}, {o, nearest}, {o, nearest}}}),
         ""},
        {"foursix_rht",
         recipe_of({{{o, four_six}, {o, four_six}, {o, rotated}, {f, rotated}, {o, rotated}, {f, rotated}}}),
         "signs128"},
        {"quartet", find_recipe("quartet"), "signs32"}};
}

class RecordedLayer : public testing::TestWithParam<Recorded> {
  protected:
    RecordedLayer()
        : layer_(GetParam().recipe, 256, 384, 0),
          input_{recorded("x", DType::bf16), recorded("w", DType::f32), recorded("dy", DType::bf16)} {
        if (!GetParam().signs.empty()) {
            layer_.fix_signs(Gemm::dgrad, recorded_signs(GetParam().signs));
            layer_.fix_signs(Gemm::wgrad, recorded_signs(GetParam().signs));
        }
    }
    const Tensor& expected(const std::string& what) const {
        return layer_file().tensor(GetParam().name + "." + what);
    }

    QuantLinear layer_;
    test::LinearInput input_;
};

TEST_P(RecordedLayer, HasEveryOperandByteForByte) {
    std::vector<Bytes> operands;
    test::collect_operands(layer_, operands);
    test::run_linear(layer_, input_);
    ASSERT_EQ(operands.size(), kOperandNames.size());
    for (const Bytes& q : operands) {
        EXPECT_EQ(q.codes, test::bytes_of(expected(q.operand + ".codes"))) << q.operand;
        EXPECT_EQ(q.scales, test::bytes_of(expected(q.operand + ".scales"))) << q.operand;
        EXPECT_EQ(q.tensor_scale, *expected(q.operand + ".tensor_scale").as<float>()) << q.operand;
        const Tensor* mask = layer_file().find(GetParam().name + "." + q.operand + ".mask");
        ASSERT_EQ(mask != nullptr, !q.mask.empty()) << q.operand;
        if (mask == nullptr) continue;
        const std::vector<uint8_t> inside = test::bytes_of(*mask);
        for (size_t i = 0; i < inside.size(); ++i) {
            ASSERT_EQ(q.mask[i / 8] >> (i % 8) & 1, inside[i]) << q.operand << " element " << i;
        }
    }
}

// Products are exact and summed in FP32 here, in FP64 there: over at most 384 terms that is a few units of
// the 24th bit, relative to the size of the whole product (|error| / |product|, Frobenius).
TEST_P(RecordedLayer, HasTheSameProducts) {
    constexpr double kTolerance = 1e-6;
    const test::LinearOutput out = test::run_linear(layer_, input_);
    EXPECT_LT(test::relative_error(out.y, test::floats_of(expected("y"))), kTolerance);
    EXPECT_LT(test::relative_error(out.dx, test::floats_of(expected("dx"))), kTolerance);
    EXPECT_LT(test::relative_error(out.dw, test::floats_of(expected("dw"))), kTolerance);
}

INSTANTIATE_TEST_SUITE_P(Golden, RecordedLayer, testing::ValuesIn(recorded_layers()),
                         [](const auto& test_info) { return test_info.param.name; });

}  // namespace
}  // namespace nibble
