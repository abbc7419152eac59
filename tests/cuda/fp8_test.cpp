// Products on FP8 tensor cores, which a run must allow by name, against sums in FP64 and against the CPU.
// Skipped where the GPU has none.
#include <cmath>

#include "cli/tiny_run.h"
#include "gemm/gpu_product.h"
#include "gemm/matmul.h"
#include "nn/cross_entropy.h"
#include "nn/quant_linear.h"
#include "quant/fp8_codes.h"
#include "support/both_devices.h"
#include "support/linear_run.h"
#include "support/on_gpu.h"
#include "support/samples.h"
#include "train/run_header.h"

namespace nibble {
namespace {

class Fp8OnAGpu : public OnGpu {
  protected:
    void SetUp() override {
        OnGpu::SetUp();
        if (!IsSkipped() && !has_fp8_products(Device::cuda)) GTEST_SKIP() << "this GPU does not multiply FP8";
    }
};

struct Size {
    int64_t m, n, k;
};
struct Product {
    Size size;
    const char *a = "fp8:e4m3 tensor", *b = "fp8:e4m3 tensor";
    DType result = DType::f32;
    bool accumulates = false, has_lines = false;

    std::string str() const {
        return fmt::format("{}x{}x{}, {} by {}, C {}{}{}", size.m, size.n, size.k, a, b, name_of(result),
                           accumulates ? ", added" : "", has_lines ? ", factors of lines" : "");
    }
};
struct Result {
    std::vector<float> c;
    std::vector<double> exact;  // from the dequantised operands
    size_t arena_bytes = 0;
};

constexpr float kAlpha = -1.75f;

Result multiply(const Product& p, std::optional<Fp8Sums> fp8) {
    const auto [m, n, k] = p.size;
    const auto on_gpu = [](DType dtype, Shape shape, uint64_t seed) {
        const test::Matrix here(dtype, 1, shape.count(), test::normals(shape.count(), seed));
        Buffer there(dtype, shape, Device::cuda);
        copy(here.tensor().reshaped(shape), there.tensor());
        return there;
    };
    const Buffer a = on_gpu(DType::bf16, {m, k}, 1), b = on_gpu(DType::bf16, {n, k}, 2),
                 of_rows = on_gpu(DType::f32, {m}, 3), of_cols = on_gpu(DType::f32, {n}, 4),
                 old = on_gpu(p.result, {m, n}, 5), c(p.result, {m, n}, Device::cuda);
    MatmulOptions options;
    options.fp8 = fp8;
    options.alpha = kAlpha;
    options.accumulate = p.accumulates;
    if (p.has_lines) {
        options.alpha_row = of_rows.tensor().as<float>();
        options.alpha_col = of_cols.tensor().as<float>();
    }
    Arena arena(Device::cuda);
    Context context{arena};
    Result result;
    std::vector<float> a_values, b_values;
    const auto values_of = [](const Tensor& t) {
        const OnCpu here(t);
        std::vector<float> values;
        for (int64_t i = 0; i < t.count(); ++i)
            values.push_back(t.dtype == DType::bf16 ? bf16_decode(here.tensor().as<Bf16>()[i])
                                                    : here.tensor().as<float>()[i]);
        return values;
    };
    const auto run = [&] {
        const ArenaScope scope(arena);
        const auto quantized = [&](const char* spec, const Tensor& x) {
            QuantizedMatrix q = allocate_quantized(arena, parse_spec(spec), x.rows(), x.cols());
            quantize(context, q.spec, x, {}, q);
            return q;
        };
        const QuantizedMatrix qa = quantized(p.a, a.tensor()), qb = quantized(p.b, b.tensor());
        matmul(context, qa, qb, c.tensor(), options);
        if (context.planning()) result.arena_bytes = arena.peak();
        const auto decoded = [&](const QuantizedMatrix& q) {
            const Tensor all = arena.allocate(DType::f32, {q.rows, q.padded_cols});
            dequantize(context, q, all);
            return context.planning() ? std::vector<float>() : values_of(all);
        };
        a_values = decoded(qa);
        b_values = decoded(qb);
    };
    run();
    arena.commit();
    copy(old.tensor(), c.tensor());
    run();
    result.c = values_of(c.tensor());
    const std::vector<float> before = values_of(old.tensor()), rows = values_of(of_rows.tensor()),
                             cols = values_of(of_cols.tensor());
    const int64_t depth = static_cast<int64_t>(a_values.size()) / m;
    for (int64_t i = 0; i < m * n; ++i) {
        double sum = 0;
        for (int64_t l = 0; l < depth; ++l)
            sum += double{a_values[static_cast<size_t>(i / n * depth + l)]} *
                   double{b_values[static_cast<size_t>(i % n * depth + l)]};
        sum *= double{kAlpha};
        if (p.has_lines)
            sum *= double{rows[static_cast<size_t>(i / n)]} * double{cols[static_cast<size_t>(i % n)]};
        if (p.accumulates) sum += double{before[static_cast<size_t>(i)]};
        result.exact.push_back(sum);
    }
    return result;
}

// Relative errors of sums that keep 13 bits inside an instruction: partial sums go to FP32 every few
// products, or stay there for all of K. A BF16 result is rounded once more.
double allowed_error(Fp8Sums sums, DType result) {
    const double narrow = sums == Fp8Sums::precise ? 1e-3 : 3e-2;
    return narrow + (result == DType::bf16 ? 3e-3 : 0);
}

TEST_F(Fp8OnAGpu, ProductsOfCodesAreTheExactOnesWithinTheirNarrowSums) {
    const char *const e4m3 = "fp8:e4m3 tensor", *const e5m2 = "fp8:e5m2 tensor";
    double worst[2] = {};
    for (const Size size : {Size{64, 48, 256}, Size{33, 80, 4096}, Size{1, 16, 32}, Size{129, 48, 2001}}) {
        for (const auto& [a, b] : {std::pair(e4m3, e4m3), std::pair(e5m2, e4m3), std::pair(e4m3, e5m2)}) {
            for (const Fp8Sums sums : {Fp8Sums::precise, Fp8Sums::fast}) {
                for (const Product& p :
                     {Product{size, a, b}, Product{size, a, b, DType::bf16},
                      Product{size, a, b, DType::f32, true}, Product{size, a, b, DType::f32, false, true},
                      Product{size, a, b, DType::bf16, false, true},
                      Product{size, a, b, DType::f32, true, true}}) {
                    const Result found = multiply(p, sums);
                    const double error = test::relative_error(found.c, found.exact);
                    EXPECT_LT(error, allowed_error(sums, p.result)) << p.str();
                    double& most = worst[sums == Fp8Sums::fast];
                    if (p.result == DType::f32) most = std::max(most, error);
                    // No copy of the operands was made.
                    if (size.m > 1) {
                        EXPECT_LT(found.arena_bytes, multiply(p, {}).arena_bytes) << p.str();
                    }
                }
            }
        }
    }
    RecordProperty("worst_precise", fmt::format("{:.1e}", worst[0]));
    RecordProperty("worst_fast", fmt::format("{:.1e}", worst[1]));
}

// To the bit what they are without permission.
TEST_F(Fp8OnAGpu, ProductsThatTensorCoresDoNotTakeAreExact) {
    const Size odd{64, 70, 256}, even{64, 80, 256};
    for (const Product& p :
         {Product{odd}, Product{odd, "fp8:e5m2 tensor"}, Product{even, "fp8:e5m2 tensor", "fp8:e5m2 tensor"},
          Product{even, "fp8:e4m3 tensor", "mxfp8"}, Product{even, "fp8:e4m3 1x128", "fp8:e4m3 1x128"},
          Product{even, "mxfp4", "mxfp4"}}) {
        EXPECT_EQ(multiply(p, Fp8Sums::precise).c, multiply(p, {}).c) << p.str();
    }
}

// By the library, which has them on Hopper, or afterwards, as where a GPU is simulated that is none.
TEST_F(Fp8OnAGpu, ProductsTakeScalesOfRows) {
    for (const char* gpu : {"hopper", "ada"}) {
        setenv("NIBBLE_SIMULATED_GPU", gpu, 1);
        for (const bool has_lines : {false, true}) {
            for (const DType result : {DType::f32, DType::bf16}) {
                const Product p{{64, 80, 512}, "fp8:e5m2 row", "fp8:e4m3 row", result, false, has_lines};
                const Result found = multiply(p, Fp8Sums::precise);
                EXPECT_LT(test::relative_error(found.c, found.exact), allowed_error(Fp8Sums::precise, result))
                    << p.str() << ", " << gpu;
            }
        }
    }
    unsetenv("NIBBLE_SIMULATED_GPU");
}

TEST_F(Fp8OnAGpu, ProductsRepeatToTheBit) {
    for (const Size size : {Size{256, 128, 4096}, Size{64, 64, 16384}})
        EXPECT_EQ(multiply({size}, Fp8Sums::precise).c, multiply({size}, Fp8Sums::precise).c);
}

TEST_F(Fp8OnAGpu, ProductsAreTheSameBitsWhateverAlgorithmWasTheFastest) {
    constexpr int64_t kM = 2048, kN = 8960, kK = 1536;
    const auto codes = [&](Shape shape, uint64_t seed) {
        std::vector<uint8_t> bytes;
        for (int64_t i = 0; i < shape.count(); ++i)
            bytes.push_back(static_cast<uint8_t>(test::draw_for_test(seed, static_cast<uint64_t>(i)).word[0] &
                                                 0xbfu));  // below 2
        return put(view_of(bytes, shape));
    };
    const Tensor a = codes({kM, kK}, 1), b = codes({kN, kK}, 2);
    const Tensor measured = allocate(DType::f32, {kM, kN}), proposed = allocate(DType::f32, {kM, kN}),
                 workspace = allocate(DType::u8, {cuda::GpuProduct::kWorkspace});
    for (const bool is_fast : {false, true}) {
        cuda::GpuProductShape shape{kM, kN, kK, {kK, false, 256}, {kK, false, 256}, {kN, false, 256}};
        shape.of_a = DType::e5m2;
        shape.of_b = DType::e4m3;
        shape.fast_sums = is_fast;
        const float one = 1.0f, zero = 0.0f;
        const auto run = [&](bool measure, const Tensor& c) {
            cuda::GpuProduct::get(shape, measure)
                .run(gpu(), &one, a.data, b.data, &zero, c.data, workspace, {});
        };
        run(true, measured);
        shape.a.alignment = 128;  // or it would be the same entry of the cache
        run(false, proposed);
        EXPECT_EQ(get<float>(measured), get<float>(proposed)) << is_fast;
    }
}

// --- bytes

TEST_F(Fp8OnAGpu, CodesOfEveryBf16NumberAreThoseOfTheCpu) {
    std::vector<Bf16> numbers(1 << 16);
    for (size_t i = 0; i < numbers.size(); ++i) {
        numbers[i].bits = static_cast<uint16_t>(i);
        if (!std::isfinite(bf16_decode(numbers[i]))) numbers[i] = {};
    }
    const Tensor x = view_of(numbers, {256, 256}), there = put(x);
    Arena arena(4 << 20);
    Context cpu{arena};
    for (const char* text : {"fp8:e4m3 tensor", "fp8:e5m2 tensor"}) {
        const QuantSpec spec = parse_spec(text);
        for (const float amax : {largest_of(spec.element), 449.7f, 1.0f, 0.3f, 3.1e-30f, 2.9e38f}) {
            for (const bool transposed : {false, true}) {
                const ArenaScope scope(arena);
                std::vector<float> known = {amax};
                const Tensor known_there = put(view_of(known, {1}));
                QuantizedMatrix expected = allocate_quantized(arena, spec, 256, 256),
                                found = allocate_quantized(gpu().arena, spec, 256, 256, Keep::both);
                quantize(cpu, spec, x, {}, expected, {.known_amax = known.data(), .transposed = transposed});
                quantize(gpu(), spec, there, {}, found,
                         {.known_amax = known_there.as<float>(), .transposed = transposed});
                const auto codes = get<uint8_t>(found.codes);
                const auto all = expected.codes.span<uint8_t>();
                EXPECT_TRUE(std::ranges::equal(codes, all)) << text << ", amax " << amax;
                const auto values = get<Bf16>(found.operand);
                for (size_t i = 0; i < codes.size(); ++i)
                    ASSERT_EQ(bf16_decode(values[i]), element_decode(spec.element, codes[i]))
                        << int{codes[i]};
            }
        }
    }
}

TEST_F(Fp8OnAGpu, TransposedCodesAreThoseOfTheCpu) {
    Arena arena(16 << 20);
    Context cpu{arena};
    for (const auto& [rows, cols] :
         {std::pair<int64_t, int64_t>{1, 16}, {16, 1}, {21, 40}, {128, 128}, {331, 776}, {500, 260}}) {
        const ArenaScope scope(arena);
        std::vector<float> values = test::normals(rows * cols);
        const Tensor x = view_of(values, {rows, cols});
        QuantizedMatrix here = allocate_quantized(arena, parse_spec("fp8:e4m3 tensor"), rows, cols),
                        there = allocate_quantized(gpu().arena, here.spec, rows, cols);
        quantize(cpu, here.spec, x, {}, here);
        quantize(gpu(), here.spec, put(x), {}, there);
        const QuantizedMatrix expected = transposed_codes(cpu, here), found = transposed_codes(gpu(), there);
        ASSERT_EQ(found.codes.shape, expected.codes.shape);
        EXPECT_TRUE(std::ranges::equal(get<uint8_t>(found.codes), expected.codes.span<uint8_t>()))
            << rows << " " << cols;
    }
}

TEST_F(Fp8OnAGpu, CodesBothWaysFromOneReadAreThoseOfTheCpu) {
    Arena arena(64 << 20);
    Context cpu{arena};
    for (const char* text : {"fp8:e4m3 tensor", "fp8:e5m2 tensor"}) {
        const QuantSpec spec = parse_spec(text);
        for (const DType dtype : {DType::bf16, DType::f32}) {
            for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 16},
                                             {16, 1},
                                             {21, 40},
                                             {128, 128},
                                             {331, 776},
                                             {500, 260}}) {
                const ArenaScope scope(arena), scope_there(gpu().arena);
                const Buffer values = buffer_of(dtype, {rows, cols}, test::normals(rows * cols));
                const auto both = [&](Context& context, const Tensor& x) {
                    QuantizedMatrix q = allocate_quantized(context.arena, spec, rows, cols);
                    const QuantizedMatrix transpose = allocate_transpose(context, q);
                    quantize_with_transpose(context, spec, x, {}, q, transpose);
                    return std::pair(q, transpose);
                };
                const auto [expected, expected_transpose] = both(cpu, values.tensor());
                const auto [found, transpose] = both(gpu(), put(values.tensor()));
                const std::string where = fmt::format("{} {} {}x{}", text, name_of(dtype), rows, cols);
                EXPECT_TRUE(std::ranges::equal(get<uint8_t>(found.codes), expected.codes.span<uint8_t>()))
                    << where;
                EXPECT_TRUE(std::ranges::equal(get<uint8_t>(transpose.codes),
                                               expected_transpose.codes.span<uint8_t>()))
                    << where;
                EXPECT_EQ(get<float>(transpose.tensor_scale)[0], *expected.tensor_scale_ptr()) << where;
            }
        }
    }
}

TEST_F(Fp8OnAGpu, FoldedCodesAndTheirCountAreThoseOfTheCpu) {
    Arena arena(16 << 20);
    Context cpu{arena};
    for (const Element element : {Element::e4m3, Element::e5m2}) {
        for (const int spread : {1, 12, 40, 100}) {
            for (const auto& [rows, cols] :
                 {std::pair<int64_t, int64_t>{1, 32}, {37, 330}, {512, 1024}, {5, 4224}}) {
                const ArenaScope scope(arena), scope_there(gpu().arena);
                std::vector<float> values = test::normals(rows * cols, 7);
                for (size_t i = 0; i < values.size(); ++i)
                    values[i] = std::ldexp(values[i], -static_cast<int>(i / 32 * 37) % spread);
                const Tensor x = view_of(values, {rows, cols});
                QuantizedMatrix here = allocate_quantized(arena, parse_spec("mxfp4 scale=three-quarters"),
                                                          rows, cols),
                                there = allocate_quantized(gpu().arena, here.spec, rows, cols);
                quantize(cpu, here.spec, x, {}, here);
                quantize(gpu(), here.spec, put(x), {}, there);
                const FoldedMatrix expected = folded_to_fp8(cpu, here, element),
                                   found = folded_to_fp8(gpu(), there, element);
                const auto where = fmt::format("{} x {}, {} binades", rows, cols, spread);
                EXPECT_TRUE(
                    std::ranges::equal(get<uint8_t>(found.codes.codes), expected.codes.codes.span<uint8_t>()))
                    << where;
                EXPECT_TRUE(std::ranges::equal(get<float>(found.codes.fp32_scales),
                                               expected.codes.fp32_scales.span<float>()))
                    << where;
                const uint32_t rounded = *expected.rounded_blocks();
                EXPECT_EQ(get<uint32_t>(found.rounded)[0], rounded) << where;
                EXPECT_EQ(rounded > 0, rows > 1 && spread > fold_range(element).exact) << where;
            }
        }
    }
}

// --- layers, the head, runs

void expect_near_the_cpu(const char* recipe_name, std::vector<std::string> names, double tolerance) {
    const Recipe recipe = find_recipe(recipe_name);
    const AllowedProducts allowed = parse_allowed(names);
    struct Layer {
        int64_t tokens, in, out;
    };
    for (const Layer& size : {Layer{256, 256, 128}, Layer{96, 512, 1024}, Layer{90, 77, 53}}) {
        const int64_t tokens = size.tokens, in = size.in, out = size.out;
        const auto normal = [](DType dtype, int64_t rows, int64_t cols, uint64_t seed) {
            return test::Matrix(dtype, rows, cols, test::normals(rows * cols, seed));
        };
        const test::LinearInput input = {normal(DType::bf16, tokens, in, 1), normal(DType::f32, out, in, 2),
                                         normal(DType::bf16, tokens, out, 3)};
        const auto run = [&](const AllowedProducts& products, Device device) {
            return test::run_linear(QuantLinear(recipe, in, out, 7, products), input, {}, 2, nullptr, device);
        };
        const test::LinearOutput expected = run({}, Device::cpu), found = run(allowed, Device::cuda);
        const auto where = fmt::format("{} of {}x{}x{}", recipe_name, tokens, in, out);
        EXPECT_LT(test::relative_error(found.y, expected.y), tolerance) << where << ", y";
        EXPECT_LT(test::relative_error(found.dx, expected.dx), tolerance) << where << ", dx";
        EXPECT_LT(test::relative_error(found.dw, expected.dw), tolerance) << where << ", dw";
        // What was allowed is what runs: such sums of tensor cores before Blackwell are not those of FP32.
        if (recipe.name == "fp8" && cuda_devices().front().major < 10 && out % 16 == 0) {
            EXPECT_NE(found.y, run({}, Device::cuda).y) << where;
        }
    }
}

TEST_F(Fp8OnAGpu, LayersAreNearTheCpus) {
    expect_near_the_cpu("fp8", {"fp8"}, 1e-3);
    expect_near_the_cpu("fp8", {"fp8", "fp8-fast-accumulation"}, 3e-2);
    for (const char* recipe : {"quartet", "quartet-sr", "tetrajet"}) {
        expect_near_the_cpu(recipe, {"fp8-folded"}, 1e-3);
        expect_near_the_cpu(recipe, {"fp8-folded", "fp8-fast-accumulation"}, 3e-2);
    }
}

TEST_F(Fp8OnAGpu, LayersOfOtherFormatsStayExact) {
    for (const char* recipe : {"nvidia", "quartet2", "mxfp8"})
        expect_near_the_cpu(recipe, {"fp8", "fp8-folded"}, 2e-6);
}

// Numbers that lie further apart than FP8 holds, in blocks of a row of one operand: that operand's product is
// made in BF16, and is to the bit what it is without folding.
TEST_F(Fp8OnAGpu, LayersMakeProductsInBf16WhereScalesOfARowLieTooFarApart) {
    constexpr int64_t kTokens = 128, kIn = 96, kOut = 64;
    const Recipe recipe = find_recipe("tetrajet");
    struct Sizes {  // of half the numbers of x, W and dY
        float of_tokens_of_x = 1, of_inputs_of_w = 1, of_outputs_of_w = 1, of_tokens_of_dy = 1;
    };
    const auto run = [&](const Sizes& sizes, bool folds) {
        const auto matrix = [](DType dtype, int64_t rows, int64_t cols, uint64_t seed, float of_rows,
                               float of_cols) {
            std::vector<float> values = test::normals(rows * cols, seed);
            for (int64_t i = 0; i < rows * cols; ++i) {
                float& value = values[static_cast<size_t>(i)];
                if (i / cols < rows / 2) value *= of_rows;
                if (i % cols < cols / 2) value *= of_cols;
            }
            return test::Matrix(dtype, rows, cols, values);
        };
        const test::LinearInput input = {
            matrix(DType::bf16, kTokens, kIn, 1, sizes.of_tokens_of_x, 1),
            matrix(DType::f32, kOut, kIn, 2, sizes.of_outputs_of_w, sizes.of_inputs_of_w),
            matrix(DType::bf16, kTokens, kOut, 3, sizes.of_tokens_of_dy, 1)};
        const Tensor count = allocate(DType::u32, {1});
        fill_zero(gpu(), count);
        AllowedProducts allowed;
        allowed.fp8_folded = folds;
        allowed.unfolded_products = count.as<uint32_t>();
        const test::LinearOutput output =
            test::run_linear(QuantLinear(recipe, kIn, kOut, 7, allowed), input, {}, 1, nullptr, Device::cuda);
        return std::pair(output, get<uint32_t>(count)[0]);
    };
    const auto expect = [&](const char* what, const Sizes& sizes,
                            std::vector<float> test::LinearOutput::*exact) {
        const auto [found, unfolded] = run(sizes, true);
        EXPECT_EQ(unfolded, exact == nullptr ? 0u : 1u) << what;
        if (exact == nullptr) return;
        EXPECT_EQ(found.*exact, run(sizes, false).first.*exact) << what;
    };
    // E4M3 holds 14 binades, E5M2 28.
    expect("nothing", {}, nullptr);
    expect("fprop's w", {.of_inputs_of_w = 0x1p-20f}, &test::LinearOutput::y);
    expect("dgrad's w", {.of_outputs_of_w = 0x1p-20f}, &test::LinearOutput::dx);
    expect("wgrad's x", {.of_tokens_of_x = 0x1p-20f}, &test::LinearOutput::dw);
    expect("rows of wgrad's dy, within E5M2", {.of_tokens_of_dy = 0x1p-20f}, nullptr);
    expect("wgrad's dy", {.of_tokens_of_dy = 0x1p-40f}, &test::LinearOutput::dw);
}

// ||got - expected|| / ||expected||.
double error_of(const Twin& twin) {
    const Buffer back = twin.received();
    return test::relative_error(values_of(back.tensor()), values_of(twin.cpu.tensor()));
}

// An error of the logits moves gradients of the logits over a threshold of E5M2, whose steps are an eighth:
// relative errors of gradients are larger than those of the products.
TEST_F(Fp8OnAGpu, TheHeadIsNearTheCpus) {
    struct Head {
        int64_t rows, cols, vocabulary;
        DType logits;
    };
    for (const auto& [rows, cols, vocabulary, dtype] :
         {Head{70, 64, 512, DType::f32}, Head{150, 16, 600'000, DType::f32}, Head{33, 40, 77, DType::f32},
          Head{70, 64, 512, DType::bf16}, Head{150, 16, 600'000, DType::bf16}}) {
        const HeadOptions options{.operands = HeadOperands::fp8, .fp8 = Fp8Sums::precise, .logits = dtype};
        const bool has_logits = vocabulary < 1000;
        std::vector<int32_t> classes;
        for (int64_t t = 0; t < rows; ++t)
            classes.push_back(t % 5 == 2 ? kIgnoredTarget : static_cast<int32_t>((t * 37 + 5) % vocabulary));
        const Twin x = Twin::random(DType::bf16, {rows, cols}, 1),
                   weight = Twin::random(DType::f32, {vocabulary, cols}, 2),
                   targets = Twin::of<int32_t>({rows}, classes), dx = Twin::output(DType::bf16, {rows, cols}),
                   dweight = Twin::zeros(DType::f32, {vocabulary, cols}),
                   logits = Twin::output(DType::f32, {has_logits ? rows : 1, vocabulary});
        HeadLoss losses[2];
        for (const Device on : {Device::cpu, Device::cuda}) {
            Arena arena(on);
            Context context{arena};
            const auto run = [&] {
                losses[on == Device::cuda] =
                    head_loss_backward(context, x.on(on), weight.on(on), targets.on(on), 0.25f, dx.on(on),
                                       dweight.on(on), options);
                if (has_logits) head_logits(context, x.on(on), weight.on(on), logits.on(on), options);
            };
            run();
            arena.commit();
            run();
            synchronize(context);
        }
        EXPECT_EQ(losses[1].count, losses[0].count);
        EXPECT_NEAR(losses[1].loss_sum, losses[0].loss_sum, 1e-3 * losses[0].loss_sum);
        if (has_logits) {
            EXPECT_LT(error_of(logits), 1e-3) << "logits of " << vocabulary;
        }
        EXPECT_LT(error_of(dx), 4e-2) << "dx of " << vocabulary;
        EXPECT_LT(error_of(dweight), 4e-2) << "dweight of " << vocabulary;
    }
}

TEST_F(Fp8OnAGpu, RunsSayWhatTheyAllowAndExecute) {
    const TinyRun run;
    const auto train = [&](const std::string& out, const std::string& recipe, const std::string& allow) {
        TinyRun::expect_success(run.train({"--set", "device.kind=cuda", "--set", "monitor.every=0", "--set",
                                           "recipe.name=" + recipe, "--set", "device.allow=" + allow, "--set",
                                           "output.dir=" + out}));
        return run.log(out);
    };
    const auto executed = [](const RunLog& log) {
        return log.header.at("gemms").at(0).at("executed").get<std::string>();
    };
    const RunLog exact = train("exact", "fp8", "[]"), fp8 = train("fp8", "fp8", "['fp8']"),
                 folded = train("folded", "quartet", "['fp8-folded']");
    EXPECT_TRUE(executed(exact).starts_with("emulated: exact products in bf16")) << executed(exact);
    EXPECT_TRUE(executed(fp8).starts_with("fp8: codes on fp8 tensor cores")) << executed(fp8);
    EXPECT_TRUE(executed(folded).starts_with("fp8-folded: ")) << executed(folded);
    EXPECT_NEAR(fp8.evals.back().loss, exact.evals.back().loss, 0.05);
    const std::string log = read_text(run / "folded/log.jsonl");
    EXPECT_NE(log.find("\"unfolded_products\":"), std::string::npos);
    EXPECT_EQ(read_text(run / "exact/log.jsonl").find("\"unfolded_products\":"), std::string::npos);
    train("again", "fp8", "['fp8']");
    expect_same_training(run, "fp8", "again");
}

}  // namespace
}  // namespace nibble
