// nibble scaling fit, end to end.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cli/support.h"

namespace nibble {
namespace {

constexpr const char* kHeader = "scheme,non_embedding_parameters,tokens,c4_validation_loss\n";

std::string golden(const std::string& name) { return NIBBLE_SOURCE_DIR "/tests/golden/scaling/" + name; }

void expect_parts(const std::string& text, const std::vector<std::string>& parts) {
    for (const std::string& part : parts)
        EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "' in: " << text;
}

TEST(ScalingCommand, PrintsTheLawTheSchemesAndTheRunsItHasNotSeen) {
    const Workspace work;
    const RunResult result = work.nibble(
        {"scaling", "fit", golden("quartet_c4_runs.csv"), "--hold-out", "430M,800M", "--bootstrap", "40"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.err, "");
    expect_parts(result.out, {"22 runs of bf16", "alpha", "95 % of 40 resamples", "quartet-sr", "held out",
                              "2.5893  +0.0185", "D/N"});
    // The same again, to the byte.
    EXPECT_EQ(result.out, work.nibble({"--threads", "1", "scaling", "fit", golden("quartet_c4_runs.csv"),
                                       "--hold-out", "430M", "--hold-out", "800M", "--bootstrap", "40"})
                              .out);
}

TEST(ScalingCommand, WritesAllNumbersAndAPicture) {
    const Workspace work;
    const RunResult result =
        work.nibble({"scaling", "fit", golden("quartet2_c4_runs.csv"), "--json", "law.json", "--plot",
                     "law.svg", "--bootstrap", "40", "--speed", "nvidia=2,2", "--speed", "tetrajetv2=2,1"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const auto json = nlohmann::json::parse(read_text(work / "law.json"));
    EXPECT_EQ(json.at("schemes").size(), 8u);
    for (const auto& scheme : json.at("schemes")) {
        EXPECT_EQ(scheme.at("eff_n_interval").size(), 2u);
        EXPECT_EQ(scheme.at("eff_d_interval").size(), 2u);
    }
    EXPECT_EQ(json.at("law").at("intervals").size(), 6u);
    EXPECT_NEAR(json.at("budgets").at("schemes").at(2).at("training").get<double>(), 1.2, 1e-12);
    expect_parts(result.out, {"tetrajetv2     2.00      1.00      1.20", "D/N=100", "? beyond the sizes"});
    const std::string svg = read_text(work / "law.svg");
    EXPECT_TRUE(svg.starts_with("<svg"));
    expect_parts(svg, {"tokens per parameter", "quartet2-h128"});
}

TEST(ScalingCommand, HoldsTheOtherEfficiencyAtOne) {
    const Workspace work;
    const RunResult result =
        work.nibble({"scaling", "fit", golden("quartet_c4_runs.csv"), "--bootstrap", "0", "--forward-only",
                     "quest-fwd:bf16-bwd", "--backward-only", "bf16-fwd:sr-bwd"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    expect_parts(result.out, {"1 (held)"});
    EXPECT_EQ(result.out.find("resamples"), std::string::npos) << result.out;
}

TEST(ScalingCommand, ReadsColumnsInAnyOrderAndLineEndsOfAnySystem) {
    const Workspace work;
    std::string plain = read_text(golden("quartet_c4_runs.csv")), other = "\xef\xbb\xbfloss, note,tokens,";
    other += "scheme,non_embedding_parameters\r\n";
    size_t at = plain.find('\n') + 1;
    while (at < plain.size()) {
        const size_t end = plain.find('\n', at);
        const std::string line = plain.substr(at, end - at);
        const size_t one = line.find(','), two = line.find(',', one + 1), three = line.find(',', two + 1);
        other += line.substr(three + 1) + ",x," + line.substr(two + 1, three - two - 1) + "," +
                 line.substr(0, one) + "," + line.substr(one + 1, two - one - 1) + "\r\n\r\n";
        at = end + 1;
    }
    write_text(work / "other.csv", other);
    write_text(work / "plain.csv", plain);
    const RunResult result = work.nibble({"scaling", "fit", "other.csv", "--bootstrap", "0"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out, work.nibble({"scaling", "fit", "plain.csv", "--bootstrap", "0"}).out);
}

TEST(ScalingCommand, SaysWhatIsWrongInAFileAndWhere) {
    const Workspace work;
    const auto refused = [&](const std::string& text, const std::vector<std::string>& parts) {
        write_text(work / "runs.csv", text);
        expect_refusal(work.nibble({"scaling", "fit", "runs.csv", "--json", "out.json"}), 1, parts);
        EXPECT_FALSE(fs::exists(work / "out.json"));
    };
    const std::string header = kHeader, good = "bf16,30000000,750000000,3.4\n";
    refused("", {"runs.csv", "empty"});
    refused("\n\n", {"runs.csv", "empty"});
    refused(header, {"runs.csv", "no runs"});
    refused("scheme,non_embedding_parameters,token,loss\n" + good, {"runs.csv:1", "'tokens'", "'token'"});
    refused("scheme,non_embedding_parameters,tokens,perplexity\n" + good, {"runs.csv:1", "loss"});
    refused("scheme,non_embedding_parameters,tokens,loss,b_loss\nbf16,1,2,3,4\n", {"runs.csv:1", "b_loss"});
    refused(header + good + "bf16,30M,750000000,3.4\n", {"runs.csv:3", "'30M'", "not a number"});
    refused(header + good + "bf16,30000000,750000000,nan\n", {"runs.csv:3", "loss", "not a number"});
    refused(header + good + "bf16,30000000,750000000,\n", {"runs.csv:3", "loss", "not a number"});
    refused(header + good + "\nbf16,30000000,750000000,-3.4\n", {"runs.csv:4", "-3.4", "above 0"});
    refused(header + "bf16,0,750000000,3.4\n", {"runs.csv:2", "non_embedding_parameters", "above 0"});
    refused(header + "bf16,30000000,-1,3.4\n", {"runs.csv:2", "tokens", "above 0"});
    refused(header + "bf16,30000000,750000000\n", {"runs.csv:2", "3 fields", "4 columns"});
    refused(header + ",30000000,750000000,3\n", {"runs.csv:2", "no name"});
    refused(header + "b\x1b[31m,30000000,750000000,3\n", {"runs.csv:2", "no name", "printable"});
    refused(header + "\"bf16\",30000000,750000000,3\n", {"runs.csv:2", "quotes"});
    refused(header + good, {"runs.csv", "bf16", "1 different runs", "7"});
    refused(header + "quartet,30000000,750000000,3.4\n", {"runs.csv", "no scheme 'bf16'", "quartet"});
    expect_refusal(work.nibble({"scaling", "fit", "missing.csv"}), 1, {"missing.csv"});
}

TEST(ScalingCommand, SaysWhatIsWrongInItsOptions) {
    const Workspace work;
    const std::string runs = golden("quartet_c4_runs.csv");
    const auto refused = [&](std::vector<std::string> options, int code,
                             const std::vector<std::string>& parts) {
        options.insert(options.begin(), {"scaling", "fit", runs});
        expect_refusal(work.nibble(options), code, parts);
    };
    refused({"--law-from", "bf61"}, 1, {"no scheme 'bf61'", "quartet-sr"});
    refused({"--forward-only", "absent"}, 1, {"no scheme 'absent'"});
    refused({"--speed", "absent=2,2", "--bootstrap", "0"}, 1, {"no scheme 'absent'"});
    refused({"--hold-out", "7B"}, 1, {"7000000000", "443068288"});
    refused({"--max-ratio", "30"}, 1, {"cannot be fitted", "4 different runs"});
    refused({"--json", "/dev/null/x.json", "--bootstrap", "0"}, 1, {"/dev/null"});
    refused({"--hold-out", "many"}, 2, {"many", "430M"});
    refused({"--speed", "quartet-sr=2"}, 2, {"FORWARD,BACKWARD"});
    refused({"--speed", "quartet-sr=2,0"}, 2, {"FORWARD,BACKWARD"});
    refused({"--speed", "bf16=2,2"}, 2, {"relative to bf16"});
    refused({"--speed", "quartet-sr=2,2", "--speed", "quartet-sr=2,1"}, 2, {"twice"});
    refused({"--forward-only", "quartet-sr", "--backward-only", "quartet-sr"}, 2, {"quartet-sr", "both"});
    refused({"--bootstrap", "5"}, 2, {"40"});
    refused({"--bootstrap", "-1"}, 2, {"--help"});
    refused({"--max-ratio", "0"}, 2, {"--help"});
    refused({"--seed", "-1"}, 2, {"whole number"});
    expect_refusal(work.nibble({"scaling"}), 2, {"fit"});
    expect_refusal(work.nibble({"scaling", "fit"}), 2, {"--help"});
}

TEST(ScalingCommand, LeavesNothingBehindWhenThePictureFails) {
    const Workspace work;
    expect_refusal(work.nibble({"scaling", "fit", golden("quartet_c4_runs.csv"), "--bootstrap", "0", "--json",
                                "a.json", "--plot", "a.svg"},
                               {"PATH=/nonexistent"}),
                   1, {"gnuplot", "not installed"});
    EXPECT_FALSE(fs::exists(work / "a.json"));
    EXPECT_FALSE(fs::exists(work / "a.svg"));
}

}  // namespace
}  // namespace nibble
