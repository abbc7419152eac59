// Choices that a GPU makes: call by call, and in recordings that are replayed.
#include "core/choice.h"

#include "core/recording.h"
#include "support/on_gpu.h"

namespace nibble {
namespace {

// What was done, read from the memory of a device: 1 for `if_any`, 2 for `otherwise`; and what was counted.
struct Done {
    uint32_t what, counted;
    friend bool operator==(const Done&, const Done&) = default;
};
void PrintTo(const Done& done, std::ostream* out) { *out << done.what << ", " << done.counted; }

class ChoicesOnAGpu : public OnGpu {
  protected:
    void SetUp() override {
        OnGpu::SetUp();
        if (!IsSkipped()) numbers_ = allocate(DType::u32, {6});
    }
    void ask(uint32_t first, uint32_t second) {
        std::vector<uint32_t> numbers = {first, second};
        copy(gpu(), view_of(numbers, {2}), numbers_.slice(0, 2));
    }
    void choose_once() {
        auto* const numbers = numbers_.as<uint32_t>();
        const auto mark = [&](uint32_t what) {  // by a kernel and by a copy
            set_counters(gpu(), reinterpret_cast<StepCounters*>(numbers + 4), {what, 0});
            queue_copy(gpu(), numbers_.slice(4, 5), numbers_.slice(2, 3));
        };
        choose(
            gpu(), numbers, numbers + 1, numbers + 3, [&] { mark(1); }, [&] { mark(2); });
    }
    Done done() {
        synchronize(gpu());
        const std::vector<uint32_t> numbers = get<uint32_t>(numbers_);
        return {numbers[2], numbers[3]};
    }

    Tensor numbers_;  // what is asked (two), done and counted, and what is being done (StepCounters)
};

TEST_F(ChoicesOnAGpu, AreMadeCallByCall) {
    fill_zero(gpu(), numbers_);
    choose_once();
    EXPECT_EQ(done(), (Done{2, 0}));
    ask(0, 3);
    choose_once();
    EXPECT_EQ(done(), (Done{1, 1}));
}

TEST_F(ChoicesOnAGpu, AreMadeAnewInEachReplay) {
    fill_zero(gpu(), numbers_);
    const Stream stream(Device::cuda);
    gpu().stream = stream.get();
    const Recording recording(gpu(), [&] {
        choose_once();
        choose_once();  // what follows one is recorded, too
    });
    EXPECT_EQ(done(), (Done{0, 0}));  // nothing was done yet
    const auto replayed = [&](uint32_t first, uint32_t second) {
        ask(first, second);
        recording.replay(gpu());
        return done();
    };
    EXPECT_EQ(replayed(0, 0), (Done{2, 0}));
    EXPECT_EQ(replayed(5, 0), (Done{1, 2}));
    EXPECT_EQ(replayed(0, 0), (Done{2, 2}));
    EXPECT_EQ(replayed(0, 1), (Done{1, 4}));
    gpu().stream = nullptr;
}

TEST_F(ChoicesOnAGpu, ThatFailWhileTheyAreRecordedLeaveTheStreamAsItWas) {
    fill_zero(gpu(), numbers_);
    const Stream stream(Device::cuda);
    gpu().stream = stream.get();
    auto* const numbers = numbers_.as<uint32_t>();
    EXPECT_THROW(Recording(gpu(),
                           [&] {
                               choose(
                                   gpu(), numbers, numbers + 1, nullptr, [] { fail("no"); }, [] {});
                           }),
                 Error);
    EXPECT_EQ(gpu().stream, stream.get());
    const Recording recording(gpu(), [&] { choose_once(); });
    recording.replay(gpu());
    EXPECT_EQ(done(), (Done{2, 0}));
    gpu().stream = nullptr;
}

}  // namespace
}  // namespace nibble
