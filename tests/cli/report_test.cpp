// nibble report: several runs, one page.
#include <gtest/gtest.h>

#include "cli/support.h"

namespace nibble {
namespace {

// A run's log with a loss that falls to `end`, without training.
void write_log(const fs::path& folder, const std::string& recipe, double end, int steps = 50) {
    std::string log = fmt::format(
        R"({{"type":"header","name":"a <b> & 'c'","command":"nibble train x","steps":{},"config":{{"seed":1,"optimizer":{{"lr":0.001}}}},)"
        R"("recipe":{{"name":"{}","table":"fprop.x <{}>"}},"gemms":[{{"product":"fprop","requested":"nvfp4 x nvfp4","executed":"emulated"}}],)"
        R"("device":{{"cpu":"x"}},"machine":{{"threads":2,"gemm":"onednn"}},"data":{{}},"model":{{"parameters":10}}}})"
        "\n",
        steps, recipe, recipe);
    for (int s = 1; s <= steps; ++s) {
        const double loss = end + 3.0 / s;
        log += fmt::format(
            R"({{"type":"step","step":{0},"tokens":{1},"loss":{2},"lr":1e-3,"grad_norm":1,"tokens_per_s":1000,"sol":0.25,"time":{0}}})"
            "\n",
            s, s * 100, loss);
        if (s % 10 == 0)
            log += fmt::format(
                R"({{"type":"eval","step":{},"tokens":{},"forward":"{}","loss":{},"bits_per_byte":1.5,"time":1}})"
                "\n",
                s, s * 100, recipe, loss);
    }
    log += fmt::format(R"({{"type":"end","step":{},"reason":"complete"}})"
                       "\n",
                       steps);
    write_text(folder / "log.jsonl", log);
}

TEST(Report, DrawsTheLossCurvesAlone) {
    const Workspace work;
    write_log(work / "bf16", "bf16", 2.0);
    const RunResult result = work.nibble({"report", "bf16", "--chart", "curves.svg"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const std::string svg = read_text(work / "curves.svg");
    EXPECT_TRUE(svg.starts_with("<svg"));
    EXPECT_NE(svg.find("xmlns=\"http://www.w3.org/2000/svg\""), std::string::npos);
    EXPECT_NE(svg.find("bf16, validation"), std::string::npos);
}

TEST(Report, ComparesRunsInATableAndAPage) {
    const Workspace work;
    write_log(work / "bf16", "bf16", 2.0);
    write_log(work / "q", "quartet2", 2.25);
    write_text(work / "spread.json", R"({"_note": "x", "quartet2": [2.0, 2.01, 2.02]})");
    const RunResult result =
        work.nibble({"report", "bf16", "q", "--out", "r.html", "--spread", "spread.json"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("quartet2"), std::string::npos);
    EXPECT_NE(result.out.find("+0.2500 (+12.14 %)"), std::string::npos)
        << result.out;  // 2.31 - 2.06, of 2.06
    EXPECT_NE(result.out.find("±0.0100 (3 seeds)"), std::string::npos) << result.out;
    EXPECT_NE(result.out.find("25.0"), std::string::npos) << result.out;

    const std::string html = read_text(work / "r.html");
    EXPECT_LT(html.size(), 200'000u);
    size_t pictures = 0;
    for (size_t at = 0; (at = html.find("<svg", at)) != std::string::npos; ++at) ++pictures;
    EXPECT_EQ(pictures, 2u);  // the losses and the gap
    EXPECT_NE(html.find("loss (nats per token)"), std::string::npos);
    EXPECT_NE(html.find("training tokens"), std::string::npos);
    EXPECT_NE(html.find("quartet2, validation"), std::string::npos);
    EXPECT_NE(html.find("fprop.x &lt;quartet2&gt;"), std::string::npos);
    EXPECT_NE(html.find("optimizer.lr = 0.001"), std::string::npos);
    // It needs nothing from elsewhere, and text from a log stays text.
    EXPECT_EQ(html.find("<script"), std::string::npos);
    EXPECT_EQ(html.find("src="), std::string::npos);
    EXPECT_EQ(html.find("<b>"), std::string::npos);
}

TEST(Report, TakesNamesFromLogsAsTextOnly) {
    const Workspace work;
    write_log(work / "bf16", "x' with lines, system('touch pwned') title 'y", 2.0);
    const RunResult result = work.nibble({"report", "bf16", "--out", "r.html"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_FALSE(fs::exists(work / "pwned"));
}

TEST(Report, CountsStepsOfAResumedRunOnce) {
    const Workspace work;
    write_log(work / "a", "bf16", 2.0, 20);
    std::string log = read_text(work / "a/log.jsonl");
    log = log.substr(0, log.find("{\"type\":\"end\""));
    const std::string header = log.substr(0, log.find('\n'));
    log += "{\"type\":\"step\",\"st";  // killed in the middle of a line
    log += "\n" + std::string(header).replace(1, 15, "\"type\":\"header\",\"resumed_from\":10") + "\n";
    write_text(work / "a/log.jsonl", log);
    const RunResult result = work.nibble({"report", "a", "--out", "r.html"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("step 10 of 20"), std::string::npos) << result.out;
}

TEST(Report, SaysWhatItNeeds) {
    const Workspace work;
    write_log(work / "a", "bf16", 2.0);
    expect_refusal(work.nibble({"report", "a"}, {"PATH=/nonexistent"}), 1, {"gnuplot", "not installed"});
    expect_refusal(work.nibble({"report", "missing"}), 1, {"missing/log.jsonl"});
    expect_refusal(work.nibble({"report"}), 2, {"--help"});
    write_text(work / "b/log.jsonl", "{\"type\":\"header\"}\nnonsense\n{\"type\":\"step\"}\n");
    expect_refusal(work.nibble({"report", "b"}), 1, {"b/log.jsonl:2", "not a line of JSON"});
    write_text(work / "c/log.jsonl", "{\"type\":\"header\"}\n{\"type\":\"step\"}\n");
    expect_refusal(work.nibble({"report", "c"}), 1, {"c/log.jsonl:2"});
    write_text(work / "d/log.jsonl", "");
    expect_refusal(work.nibble({"report", "d"}), 1, {"no header"});
    write_text(work / "s.json", R"({"bf16": 3})");
    expect_refusal(work.nibble({"report", "a", "--spread", "s.json"}), 1, {"s.json", "bf16", "list"});
}

}  // namespace
}  // namespace nibble
