#include "nn/attention.h"

#include <algorithm>
#include <cmath>

#include "gemm/test_tensors.h"
#include "nn/attention_cuda.h"
#include "support/on_gpu.h"

namespace nibble {
namespace {

struct Case {
    AttentionShape shape;
    int64_t sequences;
    DType dtype = DType::bf16;

    int64_t rows() const { return sequences * shape.sequence; }
    int64_t qkv_width() const { return (shape.heads + 2 * int64_t{shape.kv_heads}) * shape.head_dim; }
    int64_t out_width() const { return int64_t{shape.heads} * shape.head_dim; }
};

std::string name_of_case(const Case& c) {
    return fmt::format("{} sequences of {}, {} and {} heads of {}, {}", c.sequences, c.shape.sequence,
                       c.shape.heads, c.shape.kv_heads, c.shape.head_dim, name_of(c.dtype));
}

// What forward and backward give.
struct Results {
    std::vector<double> out, logsumexp, dq, dk, dv;

    bool operator==(const Results&) const = default;
};

// |got - expected| / |expected|, as vectors; what should be zero may be a thousandth. Infinite if something
// is no number.
double difference(const std::vector<double>& got, const std::vector<double>& expected) {
    double apart = 0, size = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        apart += (got[i] - expected[i]) * (got[i] - expected[i]);
        size += expected[i] * expected[i] + 1e-6;
    }
    return std::isfinite(apart) ? std::sqrt(apart / size) : INFINITY;
}

std::vector<double> columns(const std::vector<double>& values, int64_t width, int64_t begin, int64_t end) {
    std::vector<double> result;
    for (size_t i = 0; i < values.size(); ++i) {
        const auto column = static_cast<int64_t>(i) % width;
        if (column >= begin && column < end) result.push_back(values[i]);
    }
    return result;
}

struct Inputs {
    Buffer qkv, dout;

    explicit Inputs(const Case& c)
        : qkv(random_buffer(c.dtype, {c.rows(), c.qkv_width()}, 1)),
          dout(random_buffer(c.dtype, {c.rows(), c.out_width()}, 2)) {}
};

class CudaAttention : public OnGpu {
  protected:
    static Results on_cpu(const Case& c, const Inputs& inputs) {
        const Buffer out(c.dtype, {c.rows(), c.out_width()}), dqkv(c.dtype, {c.rows(), c.qkv_width()});
        const Buffer logsumexp(DType::f32, {c.rows(), c.shape.heads});
        run_planned([&](Context& context) {
            attention_forward(context, c.shape, inputs.qkv.tensor(), out.tensor(), logsumexp.tensor());
            attention_backward(context, c.shape, inputs.dout.tensor(), inputs.qkv.tensor(), out.tensor(),
                               logsumexp.tensor(), dqkv.tensor());
        });
        return results(c, values_of(out.tensor()), by_head(c, values_of(logsumexp.tensor())),
                       values_of(dqkv.tensor()));
    }

    static Results results(const Case& c, std::vector<double> out, std::vector<double> logsumexp,
                           const std::vector<double>& dqkv) {
        const int64_t width = c.qkv_width(), k = c.out_width(), v = (k + width) / 2;
        return {std::move(out), std::move(logsumexp), columns(dqkv, width, 0, k), columns(dqkv, width, k, v),
                columns(dqkv, width, v, width)};
    }

    // From the CPU's layout to the GPU's: [rows, heads] to [sequences, heads, sequence].
    static std::vector<double> by_head(const Case& c, const std::vector<double>& logsumexp) {
        std::vector<double> result;
        for (int64_t sequence = 0; sequence < c.sequences; ++sequence) {
            for (int head = 0; head < c.shape.heads; ++head) {
                for (int64_t t = 0; t < c.shape.sequence; ++t) {
                    result.push_back(logsumexp[static_cast<size_t>(
                        (sequence * c.shape.sequence + t) * c.shape.heads + head)]);
                }
            }
        }
        return result;
    }

    // Outputs begin as NaN: what is not written shows.
    template <typename Forward, typename Backward>
    Results on_gpu(const Case& c, const Inputs& inputs, Forward forward, Backward backward) {
        const auto nan = [&](DType dtype, int64_t rows, int64_t columns) {
            const std::vector<float> values(static_cast<size_t>(rows * columns), NAN);
            return put(buffer_of(dtype, {rows, columns}, values).tensor());
        };
        const ArenaScope scope(gpu().arena);
        const Tensor qkv = put(inputs.qkv.tensor()), dout = put(inputs.dout.tensor());
        const Tensor out = nan(c.dtype, c.rows(), c.out_width()),
                     dqkv = nan(c.dtype, c.rows(), c.qkv_width());
        const Tensor logsumexp = nan(DType::f32, c.rows(), c.shape.heads);
        Arena arena(Device::cuda);
        Context context{arena};
        for (const bool planning : {true, false}) {
            if (!planning) arena.commit();
            forward(context, c.shape, qkv, out, logsumexp);
            backward(context, c.shape, dout, qkv, out, logsumexp, dqkv);
        }
        synchronize(context);
        return results(c, fetch(out), fetch(logsumexp), fetch(dqkv));
    }
    Results on_gpu(const Case& c, const Inputs& inputs) {
        return on_gpu(c, inputs, attention_forward, attention_backward);
    }

    std::vector<double> fetch(const Tensor& t) {
        const Buffer here(t.dtype, t.shape);
        copy(gpu(), t, here.tensor());
        return values_of(here.tensor());
    }

    static void expect_equal(const Case& c, const Results& got, const Results& expected) {
        SCOPED_TRACE(name_of_case(c));
        const bool is_bf16 = c.dtype == DType::bf16;
        // BF16: results have 8 bits, and all but our own kernels round probabilities and their gradients to
        // them, too; cuDNN also rounds dk and dv of each head before it adds up those of a group.
        EXPECT_LT(difference(got.logsumexp, expected.logsumexp), 1e-6);
        EXPECT_LT(difference(got.out, expected.out), is_bf16 ? 4e-3 : 2e-6);
        const double gradients = is_bf16 ? 8e-3 : 2e-6;
        EXPECT_LT(difference(got.dq, expected.dq), gradients);
        EXPECT_LT(difference(got.dk, expected.dk), gradients);
        EXPECT_LT(difference(got.dv, expected.dv), gradients);
    }
};

// Those of cuDNN: training's, and short and odd sequences, small and odd heads.
constexpr Case kCudnnCases[] = {
    {{2, 2, 2, 64}, 3},      {{7, 4, 2, 64}, 3},     {{64, 3, 1, 8}, 2},    {{128, 12, 2, 128}, 4},
    {{100, 4, 4, 128}, 3},   {{200, 6, 2, 96}, 2},   {{129, 2, 1, 128}, 2}, {{512, 10, 10, 64}, 4},
    {{1024, 12, 2, 128}, 2}, {{1024, 14, 2, 64}, 2}, {{1000, 4, 2, 64}, 2},
};
// Those of our own kernels.
constexpr Case kPlainCases[] = {
    {{1, 12, 2, 128}, 5},
    {{5, 3, 1, 300}, 2},
    {{130, 4, 2, 20}, 2},
    {{7, 4, 2, 64}, 3, DType::f32},
    {{128, 2, 2, 64}, 2, DType::f32},
    {{300, 6, 2, 33}, 2, DType::f32},
    {{1024, 2, 1, 128}, 1, DType::f32},
};

TEST_F(CudaAttention, ThroughCudnnEqualsTheCpu) {
    for (Case c : kCudnnCases) {
        ASSERT_TRUE(cuda::cudnn_takes_attention(c.shape, c.dtype)) << name_of_case(c);
        const Inputs inputs(c);
        const Results expected = on_cpu(c, inputs);
        for (const bool deterministic : {true, false}) {
            c.shape.deterministic = deterministic;
            expect_equal(c, on_gpu(c, inputs), expected);
        }
    }
}

TEST_F(CudaAttention, OfOtherShapesAndF32EqualsTheCpu) {
    for (const Case& c : kPlainCases) {
        ASSERT_FALSE(cuda::cudnn_takes_attention(c.shape, c.dtype)) << name_of_case(c);
        const Inputs inputs(c);
        expect_equal(c, on_gpu(c, inputs), on_cpu(c, inputs));
    }
}

TEST_F(CudaAttention, OfCudnnAndOfOurKernelsAreOneFunction) {
    for (const Case& c : kCudnnCases) {
        const Inputs inputs(c);
        expect_equal(c, on_gpu(c, inputs),
                     on_gpu(c, inputs, cuda::plain_attention_forward, cuda::plain_attention_backward));
    }
}

TEST_F(CudaAttention, GivesTheSameBitsOnEveryRun) {
    for (const Case& c : {Case{{1024, 12, 2, 128}, 4}, Case{{1000, 14, 2, 64}, 3}, Case{{512, 10, 10, 64}, 8},
                          Case{{300, 6, 2, 33}, 2, DType::f32}}) {
        SCOPED_TRACE(name_of_case(c));
        const Inputs inputs(c);
        const Results first = on_gpu(c, inputs);
        for (int run = 0; run < 4; ++run) EXPECT_TRUE(on_gpu(c, inputs) == first);
    }
}

// cuDNN's deterministic backward pass keeps a gradient of all scores of the sequences that it is given: here
// 64 MiB each, so that it is given 16 of them, then 4.
TEST_F(CudaAttention, OfManyScoresRunsInPartsThatMakeNoDifference) {
    const Case all{{4096, 2, 1, 8}, 20}, one{all.shape, 1};
    const Inputs inputs(all), last(one);
    const auto copy_last = [](const Buffer& from, const Buffer& to) {
        const auto source = from.tensor().span<Bf16>().last(static_cast<size_t>(to.tensor().count()));
        std::copy(source.begin(), source.end(), to.tensor().as<Bf16>());
    };
    copy_last(inputs.qkv, last.qkv);
    copy_last(inputs.dout, last.dout);
    const Results together = on_gpu(all, inputs), alone = on_gpu(one, last);
    const auto ends_with = [](const std::vector<double>& values, const std::vector<double>& tail) {
        return std::equal(tail.rbegin(), tail.rend(), values.rbegin());
    };
    EXPECT_TRUE(ends_with(together.out, alone.out));
    EXPECT_TRUE(ends_with(together.dq, alone.dq));
    EXPECT_TRUE(ends_with(together.dk, alone.dk));
    EXPECT_TRUE(ends_with(together.dv, alone.dv));
}

TEST_F(CudaAttention, ThatCudnnDoesNotTakeIsAnErrorThatNamesTheShapeAndTheRelease) {
    const Case c{{64, 2, 1, 20}, 3};
    const Inputs inputs(c);
    try {
        on_gpu(c, inputs, cuda::cudnn_attention_forward, cuda::cudnn_attention_backward);
        FAIL() << "cuDNN has a plan for heads of 20";
    } catch (const Error& error) {
        const std::string text = error.what();
        EXPECT_NE(text.find("cuDNN 9."), std::string::npos) << text;
        EXPECT_NE(text.find("attention forward over 3 sequences of 64, 2 and 1 heads of 20"),
                  std::string::npos)
            << text;
        EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    }
}

}  // namespace
}  // namespace nibble
