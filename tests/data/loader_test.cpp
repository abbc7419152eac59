#include "data/loader.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

#include "data/support.h"

namespace nibble {
namespace {

using Tokens = std::vector<int32_t>;

struct Batch {
    Tokens tokens, targets;
    friend bool operator==(const Batch&, const Batch&) = default;
};

Batch load(const Loader& loader, int64_t step, int64_t first, int64_t count) {
    Batch batch{Tokens(static_cast<size_t>(count * loader.sequence_length())), {}};
    batch.targets = batch.tokens;
    const Shape shape{count, loader.sequence_length()};
    loader.load(step, first, view_of(batch.tokens, shape), view_of(batch.targets, shape));
    return batch;
}

Batch load(const Loader& loader, int64_t step) { return load(loader, step, 0, loader.batch_size()); }

RC_GTEST_PROP(WindowPermutation, IsAPermutationForAnySizeSeedAndEpoch, ()) {
    const auto size = *rc::gen::inRange<int64_t>(1, 3000);
    const WindowPermutation permutation(size, *rc::gen::arbitrary<uint64_t>(),
                                        *rc::gen::arbitrary<uint32_t>());
    std::vector<bool> seen(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) {
        const int64_t image = permutation(i);
        RC_ASSERT(image >= 0 && image < size);
        RC_ASSERT(!seen[static_cast<size_t>(image)]);
        seen[static_cast<size_t>(image)] = true;
    }
}

TEST(WindowPermutation, StaysInsideSizesThatNoTableCouldHold) {
    const int64_t size = (int64_t{1} << 40) + 12345;
    const WindowPermutation permutation(size, 1, 0);
    for (int64_t i = 0; i < 1000; ++i) {
        EXPECT_GE(permutation(i), 0);
        EXPECT_LT(permutation(size - 1 - i), size);
    }
}

// Over many epochs every window comes to every place about equally often (chi-square, 64 x 64 cells).
TEST(WindowPermutation, LeavesNoTraceOfThePlace) {
    constexpr int kSize = 64, kEpochs = 4096;
    std::vector<int> count(kSize * kSize);
    for (uint32_t epoch = 0; epoch < kEpochs; ++epoch) {
        const WindowPermutation permutation(kSize, 7, epoch);
        for (int i = 0; i < kSize; ++i) ++count[static_cast<size_t>(i * kSize + permutation(i))];
    }
    double chi = 0;
    const double expected = double{kEpochs} / kSize;
    for (int n : count) chi += (n - expected) * (n - expected) / expected;
    // 63 * 63 degrees of freedom: mean 3969, standard deviation 89.
    EXPECT_NEAR(chi, 3969, 5 * 89);
}

// The data order is part of what a checkpoint continues: these values never change.
TEST(WindowPermutation, IsTheOneThatIsPublished) {
    const WindowPermutation permutation(1000, 1, 0);
    EXPECT_EQ((Tokens{int32_t(permutation(0)), int32_t(permutation(1)), int32_t(permutation(2)),
                      int32_t(permutation(999))}),
              (Tokens{314, 8, 274, 613}));
}

class LoaderTest : public testing::Test {
  protected:
    test::Folder folder_;
    const TokenShards data_ =
        (test::write_counting_shards(folder_ / "data", 2005, 5, 401), TokenShards(folder_ / "data"));
};

TEST_F(LoaderTest, GivesTargetsThatFollowTheirTokens) {
    const Loader loader(data_, 16, 8, 1);
    Tokens all(static_cast<size_t>(data_.tokens()));
    data_.copy(0, all);
    for (int64_t step = 0; step < 40; ++step) {
        const Batch batch = load(loader, step);
        for (size_t row = 0; row < 8; ++row) {
            const auto tokens = batch.tokens.begin() + static_cast<std::ptrdiff_t>(row * 16);
            const auto targets = batch.targets.begin() + static_cast<std::ptrdiff_t>(row * 16);
            const auto found = std::search(all.begin(), all.end(), tokens, tokens + 16);
            ASSERT_NE(found, all.end());
            EXPECT_TRUE(std::equal(targets, targets + 16, found + 1));
        }
    }
}

TEST_F(LoaderTest, VisitsEveryWindowOncePerEpoch) {
    const Loader loader(data_, 16, 1, 3);
    EXPECT_EQ(loader.windows(), (2005 - 1) / 16 - 1);
    for (int64_t epoch = 0; epoch < 4; ++epoch) {
        Tokens seen;
        for (int64_t i = 0; i < loader.windows(); ++i) {
            const Batch batch = load(loader, epoch * loader.windows() + i);
            seen.insert(seen.end(), batch.tokens.begin(), batch.tokens.end());
        }
        // Counting tokens are all different, but for the five ends of documents.
        std::sort(seen.begin(), seen.end());
        const auto begin = std::upper_bound(seen.begin(), seen.end(), 0);
        EXPECT_EQ(std::adjacent_find(begin, seen.end()), seen.end()) << "epoch " << epoch;
        EXPECT_GE(seen.size(), 2005u - 2 * 16);
    }
}

TEST_F(LoaderTest, BeginsEpochsAtOffsetsOfTheirOwn) {
    const Loader loader(data_, 16, 1, 3);
    std::vector<int32_t> smallest;
    for (int64_t epoch = 0; epoch < 20; ++epoch) {
        int32_t first = INT32_MAX;
        for (int64_t i = 0; i < loader.windows(); ++i) {
            first = std::min(first, load(loader, epoch * loader.windows() + i).tokens[0]);
        }
        smallest.push_back(first);
    }
    std::sort(smallest.begin(), smallest.end());
    EXPECT_GT(std::unique(smallest.begin(), smallest.end()) - smallest.begin(), 5);
}

TEST_F(LoaderTest, DependsOnTheSeedAndTheStepAlone) {
    const Loader loader(data_, 16, 8, 1), again(data_, 16, 8, 1), other(data_, 16, 8, 2);
    std::vector<Batch> straight;
    for (int64_t step = 0; step < 50; ++step) straight.push_back(load(loader, step));
    for (int64_t step = 49; step >= 0; step -= 7)
        EXPECT_EQ(load(again, step), straight[static_cast<size_t>(step)]);
    EXPECT_NE(load(other, 0), straight[0]);
    EXPECT_NE(straight[0], straight[1]);
}

TEST_F(LoaderTest, GivesTheSameBatchInMicroSteps) {
    const Loader loader(data_, 16, 12, 1);
    for (int64_t step = 0; step < 30; ++step) {
        const Batch whole = load(loader, step);
        for (int64_t micro : {1, 2, 3, 4, 6}) {
            Batch together;
            for (int64_t first = 0; first < 12; first += micro) {
                const Batch part = load(loader, step, first, micro);
                together.tokens.insert(together.tokens.end(), part.tokens.begin(), part.tokens.end());
                together.targets.insert(together.targets.end(), part.targets.begin(), part.targets.end());
            }
            ASSERT_EQ(together, whole);
        }
    }
}

TEST_F(LoaderTest, GivesTheSameBatchWithAnyNumberOfThreadsAndShards) {
    test::write_counting_shards(folder_ / "one", 2005, 5);
    const TokenShards one(folder_ / "one");
    ASSERT_NE(one.shards().size(), data_.shards().size());
    const int threads = thread_count();
    set_thread_count(1);
    const Batch expected = load(Loader(data_, 16, 64, 1), 5);
    set_thread_count(3);
    EXPECT_EQ(load(Loader(data_, 16, 64, 1), 5), expected);
    EXPECT_EQ(load(Loader(one, 16, 64, 1), 5), expected);
    set_thread_count(threads);
}

TEST_F(LoaderTest, NeedsAWholeWindow) {
    EXPECT_EQ(Loader(data_, 2004, 1, 1).windows(), 1);
    EXPECT_EQ(load(Loader(data_, 2004, 1, 1), 7).targets.back(), 0);
    test::expect_contains(test::refusal([&] { Loader(data_, 2005, 1, 1); }),
                          {"2005 tokens", data_.path().string()});
    const Loader loader(data_, 16, 4, 1);
    EXPECT_NE(test::refusal([&] { load(loader, 0, 2, 3); }), "accepted");
    EXPECT_NE(test::refusal([&] { load(loader, -1); }), "accepted");
    Tokens wrong(4 * 15);
    EXPECT_NE(test::refusal([&] {
                  loader.load(0, 0, view_of(wrong, {4, 15}), view_of(wrong, {4, 15}));
              }),
              "accepted");
}

TEST_F(LoaderTest, EvaluatesEveryTokenButTheFirstOnce) {
    Tokens all(static_cast<size_t>(data_.tokens()));
    data_.copy(0, all);
    for (int64_t length : {1, 7, 16, 501, 2004, 2005, 5000}) {
        const EvaluationLoader loader(data_, length);
        Tokens targets;
        for (int64_t first = 0; first < loader.windows(); first += 3) {
            Tokens inputs(static_cast<size_t>(3 * length)), outputs = inputs;
            loader.load(first, view_of(inputs, {3, length}), view_of(outputs, {3, length}));
            for (size_t i = 0; i < outputs.size(); ++i) {
                if (outputs[i] == kPaddingTarget) continue;
                ASSERT_EQ(inputs[i], all[targets.size()]);
                targets.push_back(outputs[i]);
            }
        }
        EXPECT_EQ(targets, Tokens(all.begin() + 1, all.end())) << length;
    }
}

TEST_F(LoaderTest, PadsEvaluationWithEndOfText) {
    const EvaluationLoader loader(data_, 2000);
    ASSERT_EQ(loader.windows(), 2);
    Tokens inputs(4000), outputs(4000);
    loader.load(1, view_of(inputs, {2, 2000}), view_of(outputs, {2, 2000}));
    EXPECT_EQ(std::count(outputs.begin(), outputs.end(), kPaddingTarget), 4000 - 4);
    EXPECT_EQ(std::count(inputs.begin() + 4, inputs.end(), 0), 4000 - 4);
}

}  // namespace
}  // namespace nibble
