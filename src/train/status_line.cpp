#include "train/status_line.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

namespace nibble {

StatusLine::StatusLine() : terminal_(::isatty(STDERR_FILENO) != 0) {}

void StatusLine::show(const std::string& text) {
    const Clock::time_point now = Clock::now();
    const auto patience = terminal_ ? std::chrono::milliseconds(100) : std::chrono::seconds(10);
    if (last_ != Clock::time_point{} && now - last_ < patience) return;
    last_ = now;
    fmt::print(stderr, "{}{}{}", terminal_ ? "\r" : "", text, terminal_ ? "\x1b[K" : "\n");
    standing_ = terminal_;
}

void StatusLine::note(const std::string& text) {
    clear();
    fmt::print(stderr, "{}\n", text);
}

void StatusLine::clear() {
    if (standing_) fmt::print(stderr, "\r\x1b[K");
    standing_ = false;
}

std::string clock_text(double seconds) {
    const auto s = std::llround(std::min(std::max(seconds, 0.0), 1e9));
    if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
    return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

}  // namespace nibble
