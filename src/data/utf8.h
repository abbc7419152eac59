// UTF-8 (Unicode 15, section 3.9, table 3-7).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

bool is_utf8(std::string_view text);

// `text` with every maximal ill-formed part replaced by U+FFFD: what Python's decode("utf-8", "replace") and
// web browsers do. `replaced`, if given, grows by the number of replacements.
std::string repair_utf8(std::string_view text, int64_t* replaced = nullptr);

// The code point that starts at `at`, which moves behind it. `text` must be UTF-8.
char32_t next_code_point(std::string_view text, size_t& at);
void append_utf8(std::string& text, char32_t code_point);

}  // namespace nibble
