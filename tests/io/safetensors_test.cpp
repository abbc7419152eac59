#include "io/safetensors.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>
#include <unistd.h>

#include <cstring>

#include "io/io.h"
#include "numerics/philox.h"

namespace nibble {
namespace {

class Safetensors : public testing::Test {
  protected:
    void SetUp() override {
        folder_ = fs::temp_directory_path() / fmt::format("nibble-safetensors-{}", ::getpid());
        fs::create_directories(folder_);
    }
    void TearDown() override { fs::remove_all(folder_); }

    fs::path path(const std::string& name = "a.safetensors") const { return folder_ / name; }
    fs::path folder_;
};

// A file from a header text and a number of data bytes 0, 1, 2, ...
std::vector<std::byte> file_of(std::string_view header, size_t data_bytes) {
    std::vector<std::byte> file(8 + header.size() + data_bytes);
    const uint64_t length = header.size();
    std::memcpy(file.data(), &length, 8);
    std::memcpy(file.data() + 8, header.data(), header.size());
    for (size_t i = 0; i < data_bytes; ++i) file[8 + header.size() + i] = static_cast<std::byte>(i);
    return file;
}

std::string refusal_of(std::string_view header, size_t data_bytes) {
    try {
        parse_safetensors_header(file_of(header, data_bytes), "X");
    } catch (const Error& error) {
        return error.what();
    }
    return "accepted";
}

TEST_F(Safetensors, ReadsBackWhatWasWritten) {
    std::vector<float> a = {1.0f, -2.0f, 3.5f, 0.0f, 1e-40f, 7.0f};
    std::vector<uint8_t> b = {1, 2, 3};
    std::vector<int64_t> c = {-1, 1LL << 40};
    write_safetensors(path(), {{"b", view_of(b, {3})}, {"a", view_of(a, {2, 3})}, {"c", view_of(c, {2})}},
                      {{"note", "two\nlines"}});
    const SafetensorsFile file(path());
    EXPECT_EQ(file.metadata_value("note"), "two\nlines");
    EXPECT_EQ(file.metadata_value("format"), "pt");
    ASSERT_EQ(file.tensors().size(), 3u);
    EXPECT_EQ(file.tensor("a").shape, (Shape{2, 3}));
    EXPECT_TRUE(std::equal(a.begin(), a.end(), file.tensor("a").as<float>()));
    EXPECT_TRUE(std::equal(b.begin(), b.end(), file.tensor("b").as<uint8_t>()));
    EXPECT_TRUE(std::equal(c.begin(), c.end(), file.tensor("c").as<int64_t>()));
}

TEST_F(Safetensors, OrdersTensorsByDescendingAlignmentThenName) {
    std::vector<uint8_t> u(1);
    std::vector<float> f(1);
    std::vector<Bf16> h(1);
    write_safetensors(
        path(),
        {{"u", view_of(u, {1})}, {"y", view_of(f, {1})}, {"h", view_of(h, {1})}, {"x", view_of(f, {1})}});
    std::vector<std::string> names;
    const SafetensorsFile file(path());
    for (const auto& named : file.tensors()) names.push_back(named.name);
    EXPECT_EQ(names, (std::vector<std::string>{"x", "y", "h", "u"}));
}

// Recorded from the reference writer: save({"w": float32 [[1, 2]], "i": uint8 [7]}, metadata={"format":
// "pt"}).
TEST_F(Safetensors, WritesTheBytesOfTheReferenceWriter) {
    std::vector<float> w = {1.0f, 2.0f};
    std::vector<uint8_t> i = {7};
    write_safetensors(path(), {{"i", view_of(i, {1})}, {"w", view_of(w, {1, 2})}});
    const std::string header =
        R"({"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},)"
        R"("i":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}})";
    std::string expected(8, '\0');
    expected[0] = static_cast<char>((header.size() + 7) / 8 * 8);
    expected += header;
    expected.resize(8 + (header.size() + 7) / 8 * 8, ' ');
    expected += std::string("\x00\x00\x80\x3f\x00\x00\x00\x40\x07", 9);
    EXPECT_EQ(read_text(path()), expected);
}

TEST_F(Safetensors, HoldsEmptyTensorsAndScalars) {
    std::vector<float> none, one = {4.0f};
    write_safetensors(path(), {{"none", view_of(none, {0, 5})}, {"one", view_of(one, {})}});
    const SafetensorsFile file(path());
    EXPECT_EQ(file.tensor("none").shape, (Shape{0, 5}));
    EXPECT_EQ(file.tensor("one").shape.rank(), 0);
    EXPECT_EQ(*file.tensor("one").as<float>(), 4.0f);
}

TEST_F(Safetensors, RefusesToWriteANameTwice) {
    std::vector<float> x(1);
    EXPECT_THROW(write_safetensors(path(), {{"x", view_of(x, {1})}, {"x", view_of(x, {1})}}), Error);
    EXPECT_THROW(write_safetensors(path(), {{"__metadata__", view_of(x, {1})}}), Error);
    EXPECT_FALSE(fs::exists(path()));
}

TEST_F(Safetensors, NamesFileTensorAndNearestWhenATensorIsMissing) {
    std::vector<float> x(1);
    write_safetensors(path(), {{"model.norm.weight", view_of(x, {1})}});
    try {
        (void)SafetensorsFile(path()).tensor("model.norm.wieght");
        FAIL();
    } catch (const Error& error) {
        const std::string what = error.what();
        EXPECT_NE(what.find(path().string()), std::string::npos) << what;
        EXPECT_NE(what.find("'model.norm.wieght'; the nearest name is 'model.norm.weight'"),
                  std::string::npos)
            << what;
    }
}

TEST_F(Safetensors, LendsMisalignedDataAligned) {
    // A header of odd length: legal, and every F32 behind it is misaligned in the file.
    const std::string header = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
    const std::string padded = header.size() % 2 == 1 ? header : header + " ";
    const auto bytes = file_of(padded, 8);
    write_text(path(), std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    const SafetensorsFile file(path());
    const float* x = file.tensor("x").as<float>();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(x) % alignof(float), 0u);
    EXPECT_EQ(std::memcmp(x, bytes.data() + 8 + padded.size(), 8), 0);
}

TEST(SafetensorsHeader, ReadsTheReferenceOutputs) {
    for (const char* name : {"inputs", "layer", "torchao", "transformer_engine", "microxcaling", "mseden"}) {
        const SafetensorsFile file(fs::path(NIBBLE_SOURCE_DIR) / "tests/golden" /
                                   (std::string(name) + ".safetensors"));
        EXPECT_GT(file.tensors().size(), 0u) << name;
    }
}

struct BadHeader {
    const char* why;
    const char* header;
    size_t data_bytes;
    const char* message;
};

class BadHeaders : public testing::TestWithParam<BadHeader> {};

TEST_P(BadHeaders, AreRefusedInOneLineThatNamesTheFault) {
    const std::string message = refusal_of(GetParam().header, GetParam().data_bytes);
    EXPECT_EQ(message.rfind("X: ", 0), 0u) << message;
    EXPECT_NE(message.find(GetParam().message), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(
    Safetensors, BadHeaders,
    testing::Values(
        BadHeader{"Empty", "", 0, "not a JSON object"},
        BadHeader{"NotJson", "{\"x\":", 0, "not JSON (at byte"},
        BadHeader{"NotAnObject", "[]", 0, "not a JSON object"},
        BadHeader{"TextAfterObject", "{} x", 0, "not JSON"},
        BadHeader{"TensorIsNumber", R"({"x":3})", 0, "'x' is the number 3"},
        BadHeader{"DeepNesting", R"({"x":{"shape":[[[[)", 0, "'x' has a list in the field 'shape'"},
        BadHeader{"UnknownDtype", R"({"x":{"dtype":"F3","shape":[1],"data_offsets":[0,1]}})", 1,
                  "'x' has the dtype 'F3'"},
        BadHeader{"MissingField", R"({"x":{"dtype":"F32","shape":[1]}})", 4, "'x' lacks one of"},
        BadHeader{"UnknownField", R"({"x":{"dtype":"F32","shape":[1],"offsets":[0,4]}})", 4,
                  "unknown field 'offsets'"},
        BadHeader{"FieldTwice", R"({"x":{"dtype":"F32","dtype":"F32"}})", 4, "'dtype' twice"},
        BadHeader{
            "NameTwice",
            R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
            2, "'x' is there twice"},
        BadHeader{"MetadataTwice", R"({"__metadata__":{},"__metadata__":{}})", 0,
                  "'__metadata__' is there twice"},
        BadHeader{"MetadataKeyTwice", R"({"__metadata__":{"a":"1","a":"2"}})", 0, "'a' is there twice"},
        BadHeader{"MetadataNotText", R"({"__metadata__":{"a":1}})", 0, "metadata key 'a' is the number 1"},
        BadHeader{"NegativeSize", R"({"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4,
                  "the number -1"},
        BadHeader{"FractionalSize", R"({"x":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", 4,
                  "the number '1.5'"},
        BadHeader{"ShapeOverflow",
                  R"({"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0,
                  "do not need"},
        BadHeader{"HugeDimension",
                  R"({"x":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,1]}})", 1,
                  "do not need"},
        BadHeader{"SpanTooSmall", R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4,
                  "do not need"},
        BadHeader{"FiveDimensions", R"({"x":{"dtype":"U8","shape":[1,1,1,1,1],"data_offsets":[0,1]}})", 1,
                  "5 dimensions"},
        BadHeader{"ThreeOffsets", R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", 2,
                  "3 data_offsets"},
        BadHeader{"Backwards", R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1,
                  "before it begins"},
        BadHeader{"PastTheEnd", R"({"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 1, "cut short"},
        BadHeader{
            "Overlap",
            R"({"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
            3, "'y' overlaps"},
        BadHeader{
            "Hole",
            R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"y":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
            3, "hole of 1 bytes before tensor 'y'"},
        BadHeader{"BytesAtTheEnd", R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 5,
                  "4 bytes after"},
        BadHeader{"NameWithLineBreak", R"({"a\nb":{"dtype":"U8","shape":[1],"data_offsets":[0,9]}})", 1,
                  "'a?b'"}),
    [](const auto& tested) { return std::string(tested.param.why); });

TEST(SafetensorsHeader, RefusesNulBytesInTheHeader) {
    EXPECT_NE(refusal_of(std::string_view("{}\0\0", 4), 0), "accepted");
    EXPECT_EQ(refusal_of("{}  ", 0), "accepted");
}

TEST(SafetensorsHeader, RefusesALengthThatIsTooLargeOrMissing) {
    std::vector<std::byte> file = file_of("{}", 0);
    const uint64_t huge = uint64_t{1} << 63;
    std::memcpy(file.data(), &huge, 8);
    EXPECT_THROW(parse_safetensors_header(file, "X"), Error);
    const uint64_t beyond = 3;
    std::memcpy(file.data(), &beyond, 8);
    EXPECT_THROW(parse_safetensors_header(file, "X"), Error);
    EXPECT_THROW(parse_safetensors_header(std::span(file).first(7), "X"), Error);
    EXPECT_THROW(parse_safetensors_header({}, "X"), Error);
}

// Any file either loads, with every tensor inside it, or throws Error. The copy on the heap lets the address
// sanitizer see a read past the end.
void load_or_refuse(const std::vector<std::byte>& file) {
    try {
        const SafetensorsHeader header = parse_safetensors_header(file, "X");
        for (const auto& entry : header.entries) {
            ASSERT_LE(entry.begin, entry.end);
            ASSERT_LE(entry.end, file.size());
            ASSERT_EQ(static_cast<size_t>(entry.shape.count()) * size_of(entry.dtype),
                      entry.end - entry.begin);
        }
    } catch (const Error& error) {
        ASSERT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos) << error.what();
    }
}

TEST_F(Safetensors, LoadsOrRefusesEveryTruncationOfAFile) {
    std::vector<float> a(6, 1.0f);
    std::vector<uint8_t> b(3, 9);
    write_safetensors(path(), {{"a", view_of(a, {2, 3})}, {"b", view_of(b, {3})}});
    const std::vector<std::byte> whole = read_bytes(path());
    for (size_t size = 0; size < whole.size(); ++size) {
        const std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
        EXPECT_THROW(parse_safetensors_header(cut, "X"), Error) << size;
    }
}

TEST_F(Safetensors, LoadsOrRefusesRandomlyDamagedFiles) {
    std::vector<float> a(6, 1.0f);
    std::vector<Bf16> h(4);
    std::vector<uint8_t> b(3, 9);
    write_safetensors(path(), {{"a", view_of(a, {2, 3})}, {"h", view_of(h, {2, 2})}, {"b", view_of(b, {3})}});
    const std::vector<std::byte> whole = read_bytes(path());
    // Bytes that are likely to make another legal or nearly legal header.
    constexpr std::string_view kLikely = "0123456789-,:[]{}\"\\ eEu.";
    for (uint32_t trial = 0; trial < 20'000; ++trial) {
        std::vector<std::byte> file = whole;
        const Philox dice = philox_draw(1, Purpose::sampling, 0, trial);
        const int changes = 1 + dice.coin(0) % 3;
        for (int change = 0; change < changes; ++change) {
            const size_t at = dice.coin(1 + change) % file.size();
            const uint16_t value = dice.coin(4 + change);
            if (value & 0x100) {
                file[at] = static_cast<std::byte>(kLikely[value % kLikely.size()]);
            } else {
                file[at] ^= static_cast<std::byte>(1u << (value % 8));
            }
        }
        if (dice.coin(7) % 8 == 0) file.resize(dice.coin(7) / 8 % file.size());
        load_or_refuse(file);
        if (HasFatalFailure()) FAIL() << "trial " << trial;
    }
}

RC_GTEST_FIXTURE_PROP(Safetensors, RoundTripsAnyNamesShapesAndDtypes, ()) {
    const auto dtypes =
        std::vector{DType::f32, DType::bf16, DType::u8, DType::i64, DType::boolean, DType::e4m3};
    const int count = *rc::gen::inRange(0, 6);
    std::vector<Buffer> buffers;
    std::vector<NamedTensor> tensors;
    for (int i = 0; i < count; ++i) {
        const DType dtype = *rc::gen::elementOf(dtypes);
        const auto dims = *rc::gen::container<std::vector<int64_t>>(*rc::gen::inRange(0, 5),
                                                                    rc::gen::inRange<int64_t>(0, 5));
        buffers.emplace_back(dtype, Shape(std::span<const int64_t>(dims)));
        for (size_t k = 0; k < buffers.back().bytes(); ++k)
            buffers.back().data()[k] = static_cast<std::byte>(k * 37 + i);
        const std::string odd =
            *rc::gen::elementOf(std::vector<std::string>{"", "\"\\\n", "\xc3\xa9", "__metadata__."});
        tensors.push_back({odd + std::to_string(i), buffers.back().tensor()});
    }
    write_safetensors(path("r.safetensors"), tensors);
    const SafetensorsFile file(path("r.safetensors"));
    RC_ASSERT(file.tensors().size() == tensors.size());
    for (const auto& [name, tensor] : tensors) {
        const Tensor& read = file.tensor(name);
        RC_ASSERT(read.dtype == tensor.dtype);
        RC_ASSERT(read.shape == tensor.shape);
        RC_ASSERT(tensor.bytes() == 0 || std::memcmp(read.data, tensor.data, tensor.bytes()) == 0);
    }
}

}  // namespace
}  // namespace nibble
