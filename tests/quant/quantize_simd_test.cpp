// The fast path against the definition: the same bytes for every spec that it takes, on every instruction set
// of this machine.
#include "quant/quantize_simd.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "numerics/numerics.h"
#include "quant/for_each_target.h"
#include "quant/quant.h"

namespace nibble {
namespace {

// Numbers of one kind, by index. Each kind stresses another branch.
enum class Data { normal, ties, zeros, subnormal, tiny, huge, outlier, powers, constant };
constexpr Data kAllData[] = {Data::normal, Data::ties,    Data::zeros,  Data::subnormal, Data::tiny,
                             Data::huge,   Data::outlier, Data::powers, Data::constant};

float uniform(uint32_t bits) { return static_cast<float>(bits >> 8) * 0x1p-24f; }

float value_of(Data data, int64_t i) {
    const Philox r = philox_draw(7, Purpose::sampling, static_cast<uint64_t>(i), static_cast<uint32_t>(data));
    const float sign = (r.word[0] & 1) != 0 ? -1.0f : 1.0f;
    const float normal =
        uniform(r.word[0]) + uniform(r.word[1]) + uniform(r.word[2]) + uniform(r.word[3]) - 2.0f;
    const int k = static_cast<int>(r.word[1] % 64);
    switch (data) {
        case Data::normal:
            return normal;
        case Data::ties:
            return sign * 0.125f * static_cast<float>(k);  // 6 and 4 and the midpoints, often
        case Data::zeros:
            return r.word[2] % 8 == 0 && i / 64 % 3 != 0 ? normal : sign * 0.0f;
        case Data::subnormal:
            return normal * 0x1p-130f;
        case Data::tiny:
            return normal * (r.word[2] % 4 == 0 ? 0x1p-20f : 0x1p-80f);
        case Data::huge:
            return normal * 0x1p100f;
        case Data::outlier:
            return i % 1000 == 123 ? 1e4f : normal * 1e-3f;
        case Data::powers:
            return sign * std::ldexp(1.0f, k % 12 - 6);
        case Data::constant:
            return 0.3f;
    }
    return 0.0f;
}

struct Input {
    std::vector<float> f32;
    std::vector<Bf16> bf16;
    Tensor tensor;
};
void fill(Input& in, Data data, DType dtype, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows * cols; ++i) in.f32.push_back(value_of(data, i));
    for (const float v : in.f32) in.bf16.push_back(bf16_encode(v));
    in.tensor = dtype == DType::f32 ? view_of(in.f32, {rows, cols}) : view_of(in.bf16, {rows, cols});
}
// Made once, for all specs.
const Input& input(Data data, DType dtype, int64_t rows, int64_t cols) {
    static std::map<std::tuple<Data, DType, int64_t, int64_t>, Input> inputs;
    Input& in = inputs[{data, dtype, rows, cols}];
    if (in.f32.empty()) fill(in, data, dtype, rows, cols);
    return in;
}

constexpr size_t kArenaBytes = size_t{1} << 20;
const RandomKey kKey{.seed = 0x123456789abcdef0u,
                     .step = 3,
                     .micro_step = 2,
                     .layer = 5,
                     .gemm = Gemm::wgrad,
                     .side = Side::b};

struct Result {
    explicit Result(Arena& arena, const QuantSpec& spec, const Tensor& x, bool transposed = false)
        : out(transposed ? allocate_quantized(arena, spec, x.cols(), x.rows())
                         : allocate_quantized(arena, spec, x.rows(), x.cols())) {
        for (const Tensor& t : {out.codes, out.scales, out.fp32_scales, out.mask, out.tensor_scale}) {
            if (t.data != nullptr) std::memset(t.data, 0xa5, t.bytes());
        }
    }
    QuantizedMatrix out;
    float amax = -1.0f;
};

void expect_equal_bytes(const Tensor& fast, const Tensor& slow, const char* what) {
    ASSERT_EQ(fast.bytes(), slow.bytes());
    if (fast.data == nullptr || std::memcmp(fast.data, slow.data, fast.bytes()) == 0) return;
    const auto* a = static_cast<const uint8_t*>(fast.data);
    const auto* b = static_cast<const uint8_t*>(slow.data);
    size_t i = 0, different = 0;
    for (size_t j = fast.bytes(); j-- > 0;) {
        if (a[j] != b[j]) i = j, ++different;
    }
    ADD_FAILURE() << what << ": " << different << " of " << fast.bytes() << " bytes differ, the first at "
                  << i << ": " << int{a[i]} << ", not " << int{b[i]};
}

// Under every instruction set; whether a kernel took it under all of them.
bool expect_same_as_reference(const QuantSpec& spec, const Tensor& x, QuantizeOptions options = {}) {
    Arena arena(kArenaBytes);
    Context context{arena};
    Result slow(arena, spec, x, options.transposed);
    const bool reports = options.amax != nullptr;
    if (reports) options.amax = &slow.amax;
    quantize_reference(context, spec, x, kKey, slow.out, options);
    bool is_fast = true;
    for_each_target([&] {
        Result fast(arena, spec, x, options.transposed);
        if (reports) options.amax = &fast.amax;
        if (!quantize_simd(context, spec, x, kKey, fast.out, options)) {
            is_fast = false;
            return;
        }
        expect_equal_bytes(fast.out.codes, slow.out.codes, "codes");
        expect_equal_bytes(fast.out.scales, slow.out.scales, "scales");
        expect_equal_bytes(fast.out.fp32_scales, slow.out.fp32_scales, "FP32 scales");
        expect_equal_bytes(fast.out.mask, slow.out.mask, "mask");
        expect_equal_bytes(fast.out.tensor_scale, slow.out.tensor_scale, "tensor scale");
        EXPECT_EQ(fast.amax, slow.amax);
    });
    return is_fast;
}

// Every operand of the built-in recipes, and what else has a kernel.
const char* const kSpecs[] = {
    "nvfp4 1x16",
    "nvfp4 1x16 range=2/3 cap=256",
    "nvfp4 1x16 round=nearest-away",
    "nvfp4 1x16 round=nearest-down",
    "nvfp4 1x16 round=stochastic",
    "nvfp4 1x16 tensor=none",
    "nvfp4 1x16 tensor=posthoc",
    "nvfp4 1x16 range=16/17 round=stochastic rotate=rht:16 signs=te out=bf16",
    "nvfp4 1x16 rotate=rht:16 signs=run",
    "nvfp4 1x16 rotate=rht:32",
    "nvfp4 1x16 rotate=hadamard:64 round=stochastic",
    "nvfp4 1x16 scale=four-six:mse",
    "nvfp4 1x16 scale=four-six:mae",
    "nvfp4 1x16 scale=four-six:amax cap=448",
    "nvfp4 1x16 scale=four-six:mse range=16/17 round=stochastic rotate=rht:16 signs=run",
    "nvfp4 1x16 scale=four-six:mae round=stochastic",
    "nvfp4 1x16 scale=four-six:amax round=stochastic",
    "nvfp4 1x16 scale=eden rotate=rht:128",
    "nvfp4 1x16 scale=eden rotate=rht:64",
    "nvfp4 1x16 scale=eden rotate=rht:16",
    "nvfp4 1x16 scale=eden tensor=posthoc rotate=rht:128",
    "nvfp4 1x16 scale=eden tensor=posthoc round=stochastic rotate=rht:32",
    "nvfp4 16x16",
    "nvfp4 16x16 round=stochastic",
    "nvfp4 16x16 scale=four-six:mse",
    "nvfp4 16x16 scale=four-six:mae",
    "nvfp4 16x16 scale=four-six:amax",
    "nvfp4 16x16 scale=four-six:mse round=stochastic",
    "mxfp4 1x32",
    "mxfp4 1x32 scale=ceil round=nearest-away",
    "mxfp4 1x32 scale=rceil round=nearest-down",
    "mxfp4 1x32 scale=even",
    "mxfp4 1x32 scale=three-quarters rotate=rht:32",
    "mxfp4 1x32 scale=three-quarters round=stochastic rotate=rht:32",
    "mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip",
    "mxfp4 1x32 scale=quest:rms rotate=rht:128 mask=clip",
    "mxfp4 1x32 scale=quest:std mult=1.25 rotate=hadamard:16 mask=clip",
    "mxfp4 1x32 scale=rceil round=stochastic",
    "mxfp8:e4m3 1x32",
    "mxfp8:e4m3 1x32 scale=floor round=stochastic rotate=rht:128",
    "mxfp8:e5m2 1x32 scale=even rotate=hadamard:16",
    "mxfp8:e5m2 1x32 scale=ceil",
    "fp8:e4m3 tensor",
    "fp8:e4m3 row round=stochastic",
    "fp8:e5m2 tensor",
    "fp8:e5m2 tensor round=stochastic rotate=rht:32",
    "fp4 row",
    "fp4 tensor round=stochastic",
    "fp4 tensor rotate=hadamard:128",
    "int4 row",
    "int4 tensor round=stochastic rotate=rht:16",
    "fp4 32x32",
    "fp8:e4m3 1x128",
    "fp8:e5m2 128x128 round=stochastic",
    "nvfp4 1x16 outer=1x128",
    "nvfp4 1x16 round=stochastic outer=1x128 rotate=rht:16",
    "nvfp4 1x16 outer=1x128 rotate=hadamard:64 range=16/17",
    "log4 row",
    "log4 tensor round=stochastic",
};

class FastQuantizer : public testing::TestWithParam<const char*> {};

TEST_P(FastQuantizer, GivesTheBytesOfTheReferenceForEveryKindOfData) {
    const QuantSpec spec = parse_spec(GetParam());
    for (const Data data : kAllData) {
        for (const DType dtype : {DType::f32, DType::bf16}) {
            SCOPED_TRACE(std::to_string(static_cast<int>(data)) + " " + std::string(name_of(dtype)));
            const Input& in = input(data, dtype, 7, 384);
            const bool is_fast = expect_same_as_reference(spec, in.tensor);
            EXPECT_TRUE(is_fast || data != Data::normal);
        }
    }
}

TEST_P(FastQuantizer, GivesTheBytesOfTheReferenceForEveryShape) {
    const QuantSpec spec = parse_spec(GetParam());
    const int64_t shapes[][2] = {{1, 1},   {1, 16},   {17, 31},  {5, 129},
                                 {33, 72}, {2, 1000}, {129, 16}, {16, 320}};
    for (const auto& [rows, cols] : shapes) {
        for (const DType dtype : {DType::f32, DType::bf16}) {
            const Input& in = input(Data::normal, dtype, rows, cols);
            SCOPED_TRACE(in.tensor.shape.str() + " " + std::string(name_of(dtype)));
            EXPECT_TRUE(expect_same_as_reference(spec, in.tensor));
        }
    }
}

TEST_P(FastQuantizer, ReadsATransposeAsTheReferenceReadsIt) {
    const QuantSpec spec = parse_spec(GetParam());
    QuantizeOptions options;
    options.transposed = true;
    const int64_t shapes[][2] = {{1, 1}, {16, 1}, {128, 16}, {129, 33}, {200, 48}, {256, 70}};
    for (const auto& [cols, rows] : shapes) {
        for (const DType dtype : {DType::f32, DType::bf16}) {
            const Input& in = input(Data::normal, dtype, cols, rows);
            SCOPED_TRACE(in.tensor.shape.str() + " " + std::string(name_of(dtype)));
            EXPECT_EQ(expect_same_as_reference(spec, in.tensor, options), !spec.is_square());
        }
    }
}

TEST_P(FastQuantizer, ReportsAndUsesTheAmaxAsTheReferenceDoes) {
    const Input& in = input(Data::normal, DType::f32, 3, 256);
    const float known = 7.5f;
    float reported = 0;
    for (const TensorScale tensor : {TensorScale::current, TensorScale::delayed}) {
        QuantSpec spec = parse_spec(GetParam());
        const bool has_tensor_scale = spec.format == Format::nvfp4 || spec.block == Block::tensor;
        if (has_tensor_scale && !spec.outer_1x128) spec.tensor = tensor;
        for (const float previous : {0.0f, 0.25f, 30.0f}) {
            for (const float* given : {static_cast<const float*>(nullptr), &known}) {
                QuantizeOptions options;
                options.previous_amax = &previous;
                options.known_amax = given;
                options.amax = &reported;
                expect_same_as_reference(spec, in.tensor, options);
            }
        }
    }
}

TEST_P(FastQuantizer, NamesTheFirstValueThatIsNotFinite) {
    const QuantSpec spec = parse_spec(GetParam());
    const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    const float known = 1.0f;
    for_each_target([&] {
        for (const float bad : {inf, -inf, nan, std::bit_cast<float>(0x7fffffffu)}) {
            for (const float* given : {static_cast<const float*>(nullptr), &known}) {
                Input in;
                fill(in, Data::normal, DType::f32, 20, 136);
                in.f32[5 * 136 + 131] = bad;
                in.f32[19 * 136 + 2] = nan;
                QuantizeOptions options;
                options.known_amax = given;
                options.name = "w";
                Arena arena(kArenaBytes);
                Context context{arena};
                Result fast(arena, spec, in.tensor);
                std::string message;
                try {
                    quantize(context, spec, in.tensor, kKey, fast.out, options);
                } catch (const Error& error) {
                    message = error.what();
                }
                EXPECT_NE(message.find("w: element [5, 131]"), std::string::npos) << message;
            }
        }
    });
}

TEST_P(FastQuantizer, DoesNotDependOnTheNumberOfThreads) {
    const QuantSpec spec = parse_spec(GetParam());
    const Input& in = input(Data::normal, DType::f32, 300, 256);
    const int threads = thread_count();
    for (const bool is_transposed : {false, true}) {
        Arena arena(kArenaBytes);
        Context context{arena};
        QuantizeOptions options;
        options.transposed = is_transposed;
        Result one(arena, spec, in.tensor, is_transposed), three(arena, spec, in.tensor, is_transposed);
        set_thread_count(1);
        quantize(context, spec, in.tensor, kKey, one.out, options);
        set_thread_count(3);
        quantize(context, spec, in.tensor, kKey, three.out, options);
        set_thread_count(threads);
        expect_equal_bytes(three.out.codes, one.out.codes, "codes");
        expect_equal_bytes(three.out.scales, one.out.scales, "scales");
        expect_equal_bytes(three.out.fp32_scales, one.out.fp32_scales, "FP32 scales");
        expect_equal_bytes(three.out.tensor_scale, one.out.tensor_scale, "tensor scale");
    }
}

std::string name_of_spec(const testing::TestParamInfo<const char*>& info) {
    std::string name;
    for (const char c : std::string(info.param))
        name += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
    return name;
}
INSTANTIATE_TEST_SUITE_P(Specs, FastQuantizer, testing::ValuesIn(kSpecs), name_of_spec);

TEST(Quantize, OfATransposeIsThatOfTheTransposedTensor) {
    const Input& in = input(Data::normal, DType::bf16, 100, 72);
    const int64_t used = 40;  // columns of x beyond the output's rows are left out
    Arena arena(kArenaBytes);
    Context context{arena};
    const Tensor transposed = arena.allocate(DType::bf16, {72, 100});
    transpose(context, in.tensor, transposed);
    for (const char* text :
         {"nvfp4 1x16 scale=eden rotate=rht:128", "nvfp4 16x16", "nvfp4 1x16 round=stochastic"}) {
        const QuantSpec spec = parse_spec(text);
        QuantizedMatrix plain = allocate_quantized(arena, spec, used, 100);
        QuantizedMatrix direct = allocate_quantized(arena, spec, used, 100);
        quantize(context, spec, transposed.slice(0, used), kKey, plain);
        QuantizeOptions options;
        options.transposed = true;
        quantize(context, spec, in.tensor, kKey, direct, options);
        SCOPED_TRACE(text);
        expect_equal_bytes(direct.codes, plain.codes, "codes");
        expect_equal_bytes(direct.scales, plain.scales, "scales");
        expect_equal_bytes(direct.tensor_scale, plain.tensor_scale, "tensor scale");
    }
}

}  // namespace
}  // namespace nibble
