// What a conformance test measures, beside what was published. With NIBBLE_MEASURED=FILE in the environment
// each figure is appended to FILE, one JSON line each, from which scripts/conformance.py makes
// docs/conformance.md.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace nibble::test {

// `what` and `published` are plain text without quotes.
inline void record_measured(const std::string& what, const std::string& published, double value) {
    const char* path = std::getenv("NIBBLE_MEASURED");
    const testing::TestInfo* test = testing::UnitTest::GetInstance()->current_test_info();
    if (path == nullptr || test == nullptr) return;
    std::FILE* file = std::fopen(path, "a");
    ASSERT_NE(file, nullptr) << path;
    std::fprintf(file, R"({"test": "%s.%s", "what": "%s", "published": "%s", "measured": %.10g})",
                 test->test_suite_name(), test->name(), what.c_str(), published.c_str(), value);
    std::fputc('\n', file);
    std::fclose(file);
}

// The measured value is within `tolerance` of the published one.
inline void expect_published(const std::string& what, double published, double tolerance, double measured) {
    char text[64];
    std::snprintf(text, sizeof text, "%.10g ± %.2g", published, tolerance);
    record_measured(what, text, measured);
    EXPECT_NEAR(measured, published, tolerance) << what;
}
// The same with a tolerance relative to the published value.
inline void expect_published_within(const std::string& what, double published, double share,
                                    double measured) {
    expect_published(what, published, share * published, measured);
}
// A bound instead of a value.
inline void expect_at_most(const std::string& what, double bound, double measured) {
    char text[64];
    std::snprintf(text, sizeof text, "≤ %.10g", bound);
    record_measured(what, text, measured);
    EXPECT_LE(measured, bound) << what;
}
inline void expect_at_least(const std::string& what, double bound, double measured) {
    char text[64];
    std::snprintf(text, sizeof text, "≥ %.10g", bound);
    record_measured(what, text, measured);
    EXPECT_GE(measured, bound) << what;
}

}  // namespace nibble::test
