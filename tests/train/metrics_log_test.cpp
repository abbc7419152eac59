#include "train/metrics_log.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

class LogFile : public testing::Test {
  protected:
    LogFile() {
        path_ = fs::temp_directory_path() /
                fmt::format("nibble_{}.jsonl", testing::UnitTest::GetInstance()->current_test_info()->name());
        fs::remove(path_);
    }
    ~LogFile() override { fs::remove(path_); }
    static Json header() { return {{"type", "header"}, {"name", "x"}}; }
    static Json step(int64_t number, double loss) {
        return {{"type", "step"},         {"step", number}, {"tokens", number * 10},
                {"loss", loss},           {"lr", 0.1},      {"grad_norm", 1},
                {"tokens_per_s", 1000.0}, {"sol", 0.5},     {"time", 1}};
    }
    fs::path path_;
};

TEST_F(LogFile, KeepsEveryBitOfALoss) {
    const double loss = 1.0 / 3 + 1e-15;
    {
        MetricsLog log(path_);
        log.write(header());
        log.write(step(1, loss));
        log.write(step(2, std::numeric_limits<double>::quiet_NaN()));
    }
    const RunLog read = read_run_log(path_);
    EXPECT_EQ(read.steps.at(0).loss, loss);
    EXPECT_TRUE(std::isnan(read.steps.at(1).loss));
    EXPECT_TRUE(read.end.is_null());
}

TEST_F(LogFile, CountsRepeatedStepsOnce) {
    {
        MetricsLog log(path_);
        log.write(header());
        for (int i = 1; i <= 4; ++i) log.write(step(i, i));
        log.write({{"type", "end"}, {"reason", "interrupted"}});
    }
    {
        MetricsLog log(path_);
        Json again = header();
        again["resumed_from"] = 2;
        log.write(again);
        log.write(step(3, 30));
    }
    const RunLog read = read_run_log(path_);
    ASSERT_EQ(read.steps.size(), 3u);
    EXPECT_EQ(read.steps[2].loss, 30);
    EXPECT_TRUE(read.end.is_null());
}

TEST_F(LogFile, SurvivesALineThatWasCutOff) {
    const std::string whole = header().dump() + "\n" + step(1, 1).dump() + "\n";
    write_text(path_, whole + step(2, 2).dump().substr(0, 30));
    EXPECT_EQ(read_run_log(path_).steps.size(), 1u);
    {
        MetricsLog log(path_);
        Json again = header();
        again["resumed_from"] = 1;
        log.write(again);
        log.write(step(2, 20));
    }
    EXPECT_EQ(read_run_log(path_).steps.at(1).loss, 20);
}

TEST_F(LogFile, NamesTheLineThatIsNoRecord) {
    const auto message = [&](const std::string& text) -> std::string {
        write_text(path_, text);
        try {
            read_run_log(path_);
        } catch (const Error& error) {
            return error.what();
        }
        return "no error";
    };
    EXPECT_NE(message(header().dump() + "\nxx\n{}\n").find(":2: not a line of JSON"), std::string::npos);
    EXPECT_NE(message(header().dump() + "\n{\"type\":\"step\",\"step\":\"one\"}\n").find(":2:"),
              std::string::npos);
    EXPECT_NE(message(step(1, 1).dump() + "\n").find("no header"), std::string::npos);
    EXPECT_NE(message(header().dump() + "\n[1]\n").find(":2:"), std::string::npos);
}

}  // namespace
}  // namespace nibble
