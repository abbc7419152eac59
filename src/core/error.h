// Errors that a user can act on: one line that says what happened, where, and what to do.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble {

// Something failed (exit code 1). `what()` is the one line that the user reads.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// The command line or a configuration was used wrongly (exit code 2).
class UsageError : public Error {
  public:
    using Error::Error;
};

template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
    throw Error(fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
[[noreturn]] void fail_usage(fmt::format_string<Args...> format, Args&&... args) {
    throw UsageError(fmt::format(format, std::forward<Args>(args)...));
}

// Throws Error with the formatted message unless `condition` holds. For what callers promised and
// for what files contain alike: it stays on in every build.
template <typename... Args>
void require(bool condition, fmt::format_string<Args...> format, Args&&... args) {
    if (!condition) [[unlikely]]
        fail(format, std::forward<Args>(args)...);
}

// The candidate with the smallest edit distance to `word`, for "did you mean"; empty if none is near.
std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace nibble
