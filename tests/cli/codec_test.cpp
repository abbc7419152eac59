#include <cmath>
#include <cstring>
#include <limits>

#include "cli/support.h"
#include "core/cuda.h"
#include "io/io.h"
#include "numerics/philox.h"

namespace nibble {
namespace {

// Numbers that look like a trained tensor's, in F32.
std::vector<float> numbers(size_t count, uint64_t seed = 1) {
    std::vector<float> values(count);
    for (size_t i = 0; i < count; ++i) {
        const Philox draw = philox_draw(seed, Purpose::sampling, i);
        float sum = 0;
        for (int j = 0; j < 8; ++j) sum += static_cast<float>(draw.coin(j)) / 65536.0f - 0.5f;
        values[i] = sum;
    }
    return values;
}

struct Case {
    Workspace work;
    std::vector<float> w = numbers(8 * 64), v = numbers(3 * 20, 2);

    void write(std::vector<NamedTensor> more = {}) {
        more.push_back({"w", view_of(w, {8, 64})});
        more.push_back({"v", view_of(v, {3, 20})});
        write_safetensors(work / "x.safetensors", more);
    }
    RunResult encode(const std::string& spec, std::vector<std::string> more = {},
                     const std::string& out = "q.safetensors") {
        more.insert(more.begin(), {"codec", "encode", "--spec", spec, "--in", "x.safetensors", "--out", out});
        return work.nibble(more);
    }
    RunResult decode(std::vector<std::string> more = {}) {
        more.insert(more.begin(), {"codec", "decode", "--in", "q.safetensors", "--out", "y.safetensors"});
        return work.nibble(more);
    }
    SafetensorsFile file(const std::string& name) const { return SafetensorsFile(work / name); }
};

bool same_bytes(const Tensor& a, const Tensor& b) {
    return a.dtype == b.dtype && a.shape == b.shape && std::memcmp(a.data, b.data, a.bytes()) == 0;
}

// Codes 0 and 8 are both zero: implementations differ in the sign of a value that rounds to it.
bool same_codes(const Tensor& a, const Tensor& b) {
    const auto magnitude_of_zero = [](int code) { return code == 8 ? 0 : code; };
    const auto same = [&](uint8_t x, uint8_t y) {
        return magnitude_of_zero(x & 15) == magnitude_of_zero(y & 15) &&
               magnitude_of_zero(x >> 4) == magnitude_of_zero(y >> 4);
    };
    return a.shape == b.shape &&
           std::equal(a.as<uint8_t>(), a.as<uint8_t>() + a.count(), b.as<uint8_t>(), same);
}

double relative_error(const Tensor& from, const Tensor& to) {
    double error = 0, power = 0;
    for (int64_t i = 0; i < from.count(); ++i) {
        const double x = from.as<float>()[i], d = to.as<float>()[i] - x;
        error += d * d;
        power += x * x;
    }
    return error / power;
}

TEST(CodecCommand, WritesTheTensorsOfItsContract) {
    Case c;
    c.write();
    const RunResult result = c.encode("nvfp4 1x16 scale=four-six:mse");
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const SafetensorsFile q = c.file("q.safetensors");
    EXPECT_EQ(q.tensors().size(), 8u);
    EXPECT_EQ(q.tensor("w.codes").dtype, DType::u8);
    EXPECT_EQ(q.tensor("w.codes").shape, (Shape{8, 32}));
    EXPECT_EQ(q.tensor("w.scales").dtype, DType::u8);
    EXPECT_EQ(q.tensor("w.scales").shape, (Shape{8, 4}));
    EXPECT_EQ(q.tensor("w.tensor_scale").dtype, DType::f32);
    EXPECT_EQ(q.tensor("w.tensor_scale").shape, (Shape{1}));
    EXPECT_EQ(q.tensor("w.dequantized").dtype, DType::f32);
    EXPECT_EQ(q.tensor("w.dequantized").shape, (Shape{8, 64}));
    // 20 columns are stored as two blocks of 16.
    EXPECT_EQ(q.tensor("v.codes").shape, (Shape{3, 16}));
    EXPECT_EQ(q.tensor("v.scales").shape, (Shape{3, 2}));
    EXPECT_EQ(q.metadata_value("nibble.spec"), "nvfp4 1x16 scale=four-six:mse");
}

// Six values whose codes are known by hand: block maximum 6, tensor maximum 6, so the scale byte is 448
// (0x7e).
TEST(CodecCommand, PutsTheEvenColumnInTheLowNibble) {
    Case c;
    std::vector<float> row(16, 0.0f);
    row[0] = 6.0f;   // code 7
    row[1] = -0.5f;  // code 9
    row[2] = 3.0f;   // code 5
    write_safetensors(c.work / "x.safetensors", {{"t", view_of(row, {1, 16})}});
    ASSERT_EQ(c.encode("nvfp4 1x16").exit_code, 0);
    const SafetensorsFile q = c.file("q.safetensors");
    EXPECT_EQ(q.tensor("t.codes").as<uint8_t>()[0], 0x97);
    EXPECT_EQ(q.tensor("t.codes").as<uint8_t>()[1], 0x05);
    EXPECT_EQ(q.tensor("t.scales").as<uint8_t>()[0], 0x7e);
    EXPECT_EQ(q.tensor("t.dequantized").as<float>()[1], -0.5f);
}

TEST(CodecCommand, MatchesTransformerEngineByteForByte) {
    Case c;
    const fs::path golden = fs::path(NIBBLE_SOURCE_DIR) / "tests/golden";
    fs::copy_file(golden / "inputs.safetensors", c.work / "x.safetensors");
    ASSERT_EQ(c.encode("nvfp4 1x16 scale=amax").exit_code, 0);
    const SafetensorsFile q = c.file("q.safetensors"), reference(golden / "transformer_engine.safetensors");
    EXPECT_TRUE(same_codes(q.tensor("x.normal.codes"), reference.tensor("te.1x16.data.normal")));
    EXPECT_TRUE(same_bytes(q.tensor("x.normal.scales"), reference.tensor("te.1x16.scale.normal")));
}

TEST(CodecCommand, DecodesTheDequantizedValues) {
    Case c;
    c.write();
    for (const char* spec :
         {"nvfp4 1x16", "nvfp4 16x16", "mxfp4 1x32 scale=three-quarters", "nvfp4 1x16 scale=eden",
          "nvfp4 1x16 outer=1x128", "mxfp4 32x32", "mxfp8:e4m3 1x32", "fp8:e5m2 tensor", "fp8:e4m3 1x128",
          "fp4 row", "int4 row", "fp4 32x32"}) {
        ASSERT_EQ(c.encode(spec).exit_code, 0) << spec;
        const RunResult result = c.decode();
        ASSERT_EQ(result.exit_code, 0) << result.err;
        const SafetensorsFile q = c.file("q.safetensors"), y = c.file("y.safetensors");
        EXPECT_EQ(y.tensors().size(), 2u);
        const Tensor &decoded = y.tensor("w"), &padded = q.tensor("w.dequantized");
        ASSERT_EQ(decoded.shape, (Shape{8, 64})) << spec;
        for (int64_t row = 0; row < 8; ++row) {
            EXPECT_EQ(std::memcmp(decoded.as<float>() + row * 64, padded.as<float>() + row * padded.cols(),
                                  64 * sizeof(float)),
                      0)
                << spec << ", row " << row;
        }
        ASSERT_EQ(y.tensor("v").shape, (Shape{3, 20})) << spec;
        EXPECT_LT(relative_error(view_of(c.v, {3, 20}), y.tensor("v")), 0.03) << spec;
    }
}

TEST(CodecCommand, WritesTheScalesThatAFormatHas) {
    Case c;
    c.write();
    struct Row {
        const char* spec;
        Shape codes, scales, fp32_scales;  // of w, [8, 64]; {0}: none
    };
    for (const Row& row :
         {Row{"mxfp8:e4m3 1x32", {8, 64}, {8, 2}, {0}}, Row{"fp8:e5m2 tensor", {8, 64}, {0}, {0}},
          Row{"fp8:e4m3 row", {8, 64}, {0}, {8, 1}}, Row{"fp8:e4m3 1x128", {8, 128}, {0}, {8, 1}},
          Row{"fp4 32x32", {8, 32}, {0}, {8, 2}}, Row{"log4 row", {8, 32}, {0}, {8, 1}},
          Row{"nvfp4 1x16 outer=1x128", {8, 64}, {8, 8}, {8, 1}}}) {
        ASSERT_EQ(c.encode(row.spec).exit_code, 0) << row.spec;
        const SafetensorsFile q = c.file("q.safetensors");
        const auto shape_of = [&](const char* name) {
            return q.find(name) != nullptr ? q.tensor(name).shape : Shape{0};
        };
        EXPECT_EQ(shape_of("w.codes"), row.codes) << row.spec;
        EXPECT_EQ(shape_of("w.scales"), row.scales) << row.spec;
        EXPECT_EQ(shape_of("w.fp32_scales"), row.fp32_scales) << row.spec;
    }
}

TEST(CodecCommand, RotatesBackWithTheSignsOfItsSeed) {
    Case c;
    c.write();
    for (const char* spec : {"nvfp4 1x16 rotate=rht:64", "nvfp4 1x16 rotate=rht:16@rows"}) {
        ASSERT_EQ(c.encode(spec, {"--seed", "77"}).exit_code, 0);
        ASSERT_EQ(c.decode({"--unrotate"}).exit_code, 0);
        const SafetensorsFile y = c.file("y.safetensors");
        ASSERT_EQ(y.tensor("v").shape, (Shape{3, 20})) << spec;
        EXPECT_LT(relative_error(view_of(c.w, {8, 64}), y.tensor("w")), 0.03) << spec;
        EXPECT_LT(relative_error(view_of(c.v, {3, 20}), y.tensor("v")), 0.03) << spec;
    }
}

TEST(CodecCommand, LeavesTheRotatedSpaceAloneUnlessAsked) {
    Case c;
    c.write();
    ASSERT_EQ(c.encode("nvfp4 1x16 rotate=hadamard:32").exit_code, 0);
    ASSERT_EQ(c.decode().exit_code, 0);
    const SafetensorsFile q = c.file("q.safetensors"), y = c.file("y.safetensors");
    EXPECT_TRUE(same_bytes(y.tensor("w"), q.tensor("w.dequantized")));
    EXPECT_TRUE(same_bytes(y.tensor("v"), q.tensor("v.dequantized")));
    EXPECT_GT(relative_error(view_of(c.w, {8, 64}), y.tensor("w")), 0.5);
}

TEST(CodecCommand, WritesTheMaskOfClippedElements) {
    Case c;
    c.write();
    ASSERT_EQ(c.encode("mxfp4 1x32 scale=quest:std mask=clip").exit_code, 0);
    const SafetensorsFile q = c.file("q.safetensors");
    const Tensor& mask = q.tensor("w.mask");
    EXPECT_EQ(mask.dtype, DType::boolean);
    ASSERT_EQ(mask.shape, (Shape{8, 64}));
    const Tensor& values = q.tensor("w.dequantized");
    const auto* inside = static_cast<const uint8_t*>(mask.data);
    int clipped = 0;
    for (int64_t i = 0; i < mask.count(); ++i) {
        ASSERT_LE(inside[i], 1);
        if (inside[i] == 1) continue;
        ++clipped;
        EXPECT_LE(std::abs(values.as<float>()[i]), std::abs(c.w[static_cast<size_t>(i)])) << i;
    }
    EXPECT_GT(clipped, 0);
    EXPECT_LT(clipped, mask.count() / 4);
}

TEST(CodecCommand, RepeatsItselfForOneSeedAndDiffersForAnother) {
    Case c;
    c.write();
    const std::string spec = "nvfp4 1x16 round=stochastic";
    ASSERT_EQ(c.encode(spec, {"--seed", "5", "--threads", "1"}, "a").exit_code, 0);
    ASSERT_EQ(c.encode(spec, {"--seed", "5", "--threads", "2"}, "b").exit_code, 0);
    ASSERT_EQ(c.encode(spec, {"--seed", "6"}, "c").exit_code, 0);
    EXPECT_EQ(read_text(c.work / "a"), read_text(c.work / "b"));
    EXPECT_NE(read_text(c.work / "a"), read_text(c.work / "c"));
}

TEST(CodecCommand, GivesEachTensorCoinsOfItsOwn) {
    Case c;
    std::vector<float> same = c.w;
    c.write({{"w2", view_of(same, {8, 64})}});
    ASSERT_EQ(c.encode("nvfp4 1x16 round=stochastic").exit_code, 0);
    const SafetensorsFile q = c.file("q.safetensors");
    EXPECT_FALSE(same_bytes(q.tensor("w.codes"), q.tensor("w2.codes")));
    EXPECT_TRUE(same_bytes(q.tensor("w.scales"), q.tensor("w2.scales")));
}

TEST(CodecCommand, CarriesOtherTensorsAsTheyAre) {
    Case c;
    std::vector<float> norm = {1, 2, 3};
    std::vector<int64_t> ids = {7, 8, 9, 10};
    c.write({{"norm", view_of(norm, {3})}, {"ids", view_of(ids, {2, 2})}});
    const RunResult result = c.encode("mxfp4 1x32");
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.err.find("2 others as they were"), std::string::npos) << result.err;
    ASSERT_EQ(c.decode().exit_code, 0);
    const SafetensorsFile x = c.file("x.safetensors"), y = c.file("y.safetensors");
    EXPECT_TRUE(same_bytes(y.tensor("norm"), x.tensor("norm")));
    EXPECT_TRUE(same_bytes(y.tensor("ids"), x.tensor("ids")));
}

TEST(CodecCommand, AcceptsMatricesWithoutElements) {
    Case c;
    std::vector<float> none;
    write_safetensors(c.work / "x.safetensors",
                      {{"rows", view_of(none, {0, 16})}, {"cols", view_of(none, {4, 0})}});
    ASSERT_EQ(c.encode("nvfp4 1x16").exit_code, 0);
    const RunResult result = c.decode();
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(c.file("y.safetensors").tensor("cols").shape, (Shape{4, 0}));
}

TEST(CodecCommand, NamesTheIndexOfANanOrInfinity) {
    Case c;
    c.w[3 * 64 + 17] = std::numeric_limits<float>::quiet_NaN();
    c.write();
    expect_refusal(c.encode("nvfp4 1x16"), 1, {"x.safetensors", "'w'", "[3, 17]", "NaN"});
    EXPECT_FALSE(fs::exists(c.work / "q.safetensors"));
    c.w[3 * 64 + 17] = 0;
    c.v[21] = -std::numeric_limits<float>::infinity();
    c.write();
    expect_refusal(c.encode("mxfp4 1x32"), 1, {"'v'", "[1, 1]", "-inf"});
}

TEST(CodecCommand, PointsAtTheWrongWordOfASpec) {
    Case c;
    c.write();
    expect_refusal(c.encode("nvfp4 1x16 scale=amx"), 2, {"amx", "amax"});
    expect_refusal(c.encode("nvfp4 1x17"), 2, {"1x17"});
    expect_refusal(c.encode("mxfp4 1x32 range=2/3"), 2, {"range"});
    expect_refusal(c.encode("bf16"), 2, {"bf16"});
}

TEST(CodecCommand, SaysWhyThereIsNoGpu) {
    if (!cuda_devices().empty()) GTEST_SKIP() << "there is a GPU";
    Case c;
    c.write();
    expect_refusal(c.encode("nvfp4 1x16", {"--device", "cuda"}), 1, {"choose the device cpu"});
    expect_refusal(c.encode("nvfp4 1x16", {"--device", "tpu"}), 2, {"--device", "tpu"});
}

TEST(CodecCommand, RefusesDamagedInputsInOneLine) {
    Case c;
    expect_refusal(c.encode("nvfp4 1x16"), 1, {"x.safetensors", "No such file"});
    write_text(c.work / "x.safetensors", "");
    expect_refusal(c.encode("nvfp4 1x16"), 1, {"x.safetensors", "too few"});
    write_text(c.work / "x.safetensors", std::string("\x05\0\0\0\0\0\0\0hello", 13));
    expect_refusal(c.encode("nvfp4 1x16"), 1, {"x.safetensors", "not a JSON object"});
    std::string overlapping = R"({"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},)"
                              R"("b":{"dtype":"F32","shape":[1,1],"data_offsets":[2,6]}})";
    std::string file(8, '\0');
    file[0] = static_cast<char>(overlapping.size());
    write_text(c.work / "x.safetensors", file + overlapping + "123456");
    expect_refusal(c.encode("nvfp4 1x16"), 1, {"x.safetensors", "'b' overlaps"});
    c.write();
    const std::string whole = read_text(c.work / "x.safetensors");
    write_text(c.work / "x.safetensors", whole.substr(0, whole.size() - 1));
    expect_refusal(c.encode("nvfp4 1x16"), 1, {"x.safetensors", "cut short"});
}

TEST(CodecCommand, RefusesAFileWithoutMatrices) {
    Case c;
    write_safetensors(c.work / "x.safetensors", {{"v", view_of(c.v, {60})}});
    expect_refusal(c.encode("nvfp4 1x16"), 1, {"x.safetensors", "nothing to encode"});
}

TEST(CodecCommand, RefusesToDecodeWhatEncodeDidNotWrite) {
    Case c;
    write_safetensors(c.work / "q.safetensors", {{"w", view_of(c.w, {8, 64})}});
    expect_refusal(c.decode(), 1, {"q.safetensors", "codec encode"});
}

// Changes one tensor or the metadata of a good encoded file, and decodes that.
TEST(CodecCommand, RefusesToDecodeDamagedParts) {
    Case c;
    c.write();
    ASSERT_EQ(c.encode("nvfp4 1x16").exit_code, 0);
    const std::string good = read_text(c.work / "q.safetensors");
    auto decode_changed = [&](auto change) {
        write_text(c.work / "good", good);
        const SafetensorsFile file(c.work / "good");
        std::vector<NamedTensor> tensors = file.tensors();
        SafetensorsMetadata metadata = file.metadata();
        change(tensors, metadata);
        write_safetensors(c.work / "q.safetensors", tensors, metadata);
        return c.decode();
    };
    std::vector<uint8_t> scales(32, 0x7f);
    expect_refusal(decode_changed([&](auto& tensors, auto&) {
                       for (auto& named : tensors) {
                           if (named.name == "w.scales") named.tensor = view_of(scales, {8, 4});
                       }
                   }),
                   1, {"q.safetensors", "'w.scales'", "0x7f", "[0, 0]"});
    expect_refusal(decode_changed([&](auto& tensors, auto&) {
                       for (auto& named : tensors) {
                           if (named.name == "w.codes") named.tensor = named.tensor.reshaped({4, 64});
                       }
                   }),
                   1, {"'w.codes'", "[4, 64]", "[8, 32]"});
    expect_refusal(decode_changed([&](auto& tensors, auto&) {
                       std::erase_if(tensors,
                                     [](const auto& named) { return named.name == "v.tensor_scale"; });
                   }),
                   1, {"'v.tensor_scale'"});
    expect_refusal(decode_changed([&](auto&, auto& metadata) { metadata["nibble.spec"] = "nvfp4 1x1"; }), 1,
                   {"nibble.spec", "1x1"});
    expect_refusal(decode_changed([&](auto&, auto& metadata) { metadata["nibble.seed"] = "x"; }), 1,
                   {"nibble.seed"});
    for (const char* tensors :
         {"", "[]", "{\"w\":1}", "{\"w\":{\"shape\":[8],\"index\":0}}",
          "{\"w\":{\"shape\":[8,-64],\"index\":0}}", "{\"w\":{\"shape\":[8,1e9],\"index\":0}}"}) {
        expect_refusal(decode_changed([&](auto&, auto& metadata) { metadata["nibble.tensors"] = tensors; }),
                       1, {"q.safetensors", "nibble.tensors"});
    }
    expect_refusal(decode_changed([&](auto&, auto& metadata) {
                       metadata["nibble.tensors"] =
                           "{\"w\":{\"shape\":[1099511627776,1099511627776],\"index\":0}}";
                   }),
                   1, {"'w.codes'"});
}

TEST(CodecCommand, NamesTheOptionsThatAreMissing) {
    const Workspace work;
    expect_refusal(work.nibble({"codec"}), 2, {"encode", "decode"});
    expect_refusal(work.nibble({"codec", "encode", "--in", "x", "--out", "y"}), 2, {"--spec", "required"});
    expect_refusal(
        work.nibble({"codec", "encode", "--spec", "nvfp4 1x16", "--in", "x", "--out", "y", "--seed", "-1"}),
        2, {"--seed"});
}

}  // namespace
}  // namespace nibble
