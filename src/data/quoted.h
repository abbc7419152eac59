// A text from a file inside a one-line message: in quotes, control characters escaped, cut where it is long.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

namespace nibble {

struct Quoted {
    std::string_view text;
};

}  // namespace nibble

template <>
struct fmt::formatter<nibble::Quoted> : fmt::formatter<fmt::string_view> {
    template <typename Context>
    auto format(const nibble::Quoted& quoted, Context& context) const {
        constexpr size_t kLongest = 100;
        std::string shown = "\"";
        for (const char c : quoted.text.substr(0, kLongest)) {
            const auto byte = static_cast<unsigned char>(c);
            if (c == '\n') {
                shown += "\\n";
            } else if (byte < 0x20 || byte == 0x7f) {
                shown += fmt::format("\\x{:02x}", byte);
            } else {
                shown += c;
            }
        }
        shown += quoted.text.size() > kLongest ? "...\"" : "\"";
        return fmt::formatter<fmt::string_view>::format(shown, context);
    }
};
