#include "optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/measured.h"

namespace nibble {
namespace {

TEST(Schedule, WarmUpRisesLinearlyFromTheFirstStep) {
    const Schedule schedule({.lr = 0.8, .steps = 100, .warmup_steps = 8});
    EXPECT_DOUBLE_EQ(schedule.lr(0), 0.1);
    EXPECT_DOUBLE_EQ(schedule.lr(3), 0.4);
    EXPECT_DOUBLE_EQ(schedule.lr(7), 0.8);
}

TEST(Schedule, T18_CosineFallsOverWhatTheWarmUpLeaves) {
    const Schedule schedule({.lr = 2.0, .steps = 110, .warmup_steps = 10, .final = 0.1});
    EXPECT_DOUBLE_EQ(schedule.lr(59), 2.0 * 0.55);  // half of the 100 steps after the warm-up
    EXPECT_DOUBLE_EQ(schedule.lr(34), 2.0 * (0.1 + 0.9 * (1 + std::sqrt(0.5)) / 2));
    test::expect_published("last rate, over the peak", 0.1, 0, schedule.lr(109) / 2.0);
}

TEST(Schedule, LinearFallsByEqualSteps) {
    const Schedule schedule(
        {.shape = ScheduleShape::linear, .lr = 1.0, .steps = 12, .warmup_steps = 2, .final = 0.0});
    for (int step = 2; step < 12; ++step) EXPECT_DOUBLE_EQ(schedule.lr(step), 1.0 - (step - 1) / 10.0);
    EXPECT_EQ(schedule.lr(11), 0.0);
}

TEST(Schedule, WsdIsStableUntilItsDecay) {
    const Schedule schedule({.shape = ScheduleShape::wsd,
                             .lr = 1.0,
                             .steps = 100,
                             .warmup_steps = 10,
                             .final = 0.5,
                             .decay_steps = 20});
    EXPECT_EQ(schedule.lr(9), 1.0);
    EXPECT_EQ(schedule.lr(79), 1.0);
    EXPECT_DOUBLE_EQ(schedule.lr(80), 1.0 - 0.5 / 20);
    EXPECT_DOUBLE_EQ(schedule.lr(89), 0.75);
    EXPECT_EQ(schedule.lr(99), 0.5);
}

TEST(Schedule, ConstantStaysAfterItsWarmUp) {
    const Schedule schedule({.shape = ScheduleShape::constant, .lr = 3.0, .steps = 10, .warmup_steps = 3});
    EXPECT_DOUBLE_EQ(schedule.lr(0), 1.0);
    for (int step = 2; step < 10; ++step) EXPECT_EQ(schedule.lr(step), 3.0);
}

TEST(Schedule, NeverIsZeroBeforeItsEnd) {
    for (auto shape : {ScheduleShape::linear, ScheduleShape::cosine, ScheduleShape::wsd}) {
        for (int64_t warmup : {0, 1, 4}) {
            const Schedule schedule({.shape = shape,
                                     .lr = 1.0,
                                     .steps = 10,
                                     .warmup_steps = warmup,
                                     .final = 0.0,
                                     .decay_steps = 3});
            for (int step = 0; step < 9; ++step) EXPECT_GT(schedule.lr(step), 0.0) << name_of(shape) << step;
        }
    }
}

TEST(Schedule, KeepsTheLastRateAfterItsEnd) {
    const Schedule schedule({.lr = 1.0, .steps = 10, .final = 0.25});
    EXPECT_EQ(schedule.lr(10), 0.25);
    EXPECT_EQ(schedule.lr(1000), 0.25);
}

TEST(Schedule, FractionsRoundToTheNearestStep) {
    EXPECT_EQ(fraction_of_steps(0.1, 400), 40);
    EXPECT_EQ(fraction_of_steps(0.1, 244), 24);
    EXPECT_EQ(fraction_of_steps(0.5, 5), 3);
    EXPECT_EQ(fraction_of_steps(0.0, 5), 0);
    EXPECT_THROW(fraction_of_steps(1.5, 5), UsageError);
    EXPECT_THROW(fraction_of_steps(-0.1, 5), UsageError);
}

TEST(Schedule, NamesRoundTripAndAWrongOneIsCorrected) {
    for (auto shape :
         {ScheduleShape::constant, ScheduleShape::linear, ScheduleShape::cosine, ScheduleShape::wsd}) {
        EXPECT_EQ(parse_schedule_shape(name_of(shape)), shape);
    }
    try {
        parse_schedule_shape("cosin");
        FAIL() << "a wrong name was accepted";
    } catch (const UsageError& error) {
        EXPECT_NE(std::string(error.what()).find("\"cosine\""), std::string::npos) << error.what();
    }
}

TEST(Schedule, RefusesWhatDoesNotFit) {
    EXPECT_THROW(Schedule({.lr = 1.0, .steps = 0}), UsageError);
    EXPECT_THROW(Schedule({.lr = 1.0, .steps = 10, .warmup_steps = 10}), UsageError);
    EXPECT_THROW(Schedule({.lr = 1.0, .steps = 10, .warmup_steps = -1}), UsageError);
    EXPECT_THROW(Schedule({.lr = -1.0, .steps = 10}), UsageError);
    EXPECT_THROW(Schedule({.lr = 1.0, .steps = 10, .final = 1.5}), UsageError);
    EXPECT_THROW(
        Schedule({.shape = ScheduleShape::wsd, .lr = 1.0, .steps = 10, .warmup_steps = 4, .decay_steps = 7}),
        UsageError);
}

}  // namespace
}  // namespace nibble
