// The live line of a long run: rewritten in place on a terminal, a new line now and then in a file.
#pragma once

#include <chrono>
#include <string>

namespace nibble {

class StatusLine {
  public:
    StatusLine();
    ~StatusLine() { clear(); }
    StatusLine(const StatusLine&) = delete;
    StatusLine& operator=(const StatusLine&) = delete;

    // Shows `text` if the last one has stood for long enough (0.1 s on a terminal, 10 s in a file).
    void show(const std::string& text);
    // Prints a whole line that stays.
    void note(const std::string& text);
    void clear();

  private:
    using Clock = std::chrono::steady_clock;
    bool terminal_, standing_ = false;
    Clock::time_point last_{};
};

// 75 -> "1:15", 3700 -> "1:01:40".
std::string clock_text(double seconds);

}  // namespace nibble
