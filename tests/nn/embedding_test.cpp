#include "nn/embedding.h"

#include "nn/compare.h"

namespace nibble {
namespace {

constexpr int64_t kVocabulary = 7, kCols = 21;
constexpr int32_t kTokens[] = {3, 0, 6, 3, 3, 1, 0, 5, 2, 3};

class Embedding : public testing::TestWithParam<DType> {
  protected:
    Embedding() : tokens_(DType::i32, {2, 5}) { std::copy(std::begin(kTokens), std::end(kTokens), tokens()); }
    int32_t* tokens() { return tokens_.tensor().as<int32_t>(); }
    Buffer tokens_;
};

TEST_P(Embedding, ForwardTakesTheRowsOfTheTokens) {
    const Buffer weight = random_buffer(DType::f32, {kVocabulary, kCols}, 1);
    const Buffer y(GetParam(), {2, 5, kCols});
    run_planned(
        [&](Context& context) { embedding_forward(context, tokens_.tensor(), weight.tensor(), y.tensor()); });
    std::vector<double> expected;
    for (const int32_t token : kTokens) {
        for (int64_t c = 0; c < kCols; ++c) {
            const float v = weight.tensor().as<float>()[token * kCols + c];
            expected.push_back(GetParam() == DType::bf16 ? round_to_bf16(v) : v);
        }
    }
    EXPECT_EQ(values_of(y.tensor()), expected);
}

TEST_P(Embedding, BackwardAddsInTheOrderOfTokensWithAnyNumberOfThreads) {
    const int before_threads = thread_count();
    const Buffer dy = random_buffer(GetParam(), {10, kCols}, 2);
    const Buffer before = random_buffer(DType::f32, {kVocabulary, kCols}, 3);
    auto expected = elements_of<float>(before.tensor());
    const auto gradient = values_of(dy.tensor());
    for (size_t t = 0; t < std::size(kTokens); ++t) {
        for (size_t c = 0; c < kCols; ++c) {
            expected[static_cast<size_t>(kTokens[t]) * kCols + c] +=
                static_cast<float>(gradient[t * kCols + c]);
        }
    }
    for (const int threads : {1, 2, 3}) {
        set_thread_count(threads);
        const Buffer dweight(DType::f32, {kVocabulary, kCols});
        run_planned([&](Context& context) {
            std::copy_n(before.tensor().as<float>(), before.tensor().count(), dweight.tensor().as<float>());
            embedding_backward(context, dy.tensor(), tokens_.tensor(), dweight.tensor());
        });
        EXPECT_EQ(values_of(dweight.tensor()), to_doubles(expected)) << threads << " threads";
    }
    set_thread_count(before_threads);
}

TEST_P(Embedding, RefusesTokensOutsideTheVocabulary) {
    const Buffer weight(DType::f32, {kVocabulary, kCols}), y(GetParam(), {10, kCols});
    Arena arena(0);
    Context context{arena};
    for (const int32_t bad : {-1, static_cast<int32_t>(kVocabulary)}) {
        tokens()[4] = bad;
        EXPECT_THROW(embedding_forward(context, tokens_.tensor(), weight.tensor(), y.tensor()), Error);
        EXPECT_THROW(embedding_backward(context, y.tensor(), tokens_.tensor(), weight.tensor()), Error);
    }
}

INSTANTIATE_TEST_SUITE_P(Activations, Embedding, testing::Values(DType::f32, DType::bf16),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace nibble
