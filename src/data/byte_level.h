// The byte-level alphabet of GPT-2: each byte is written as one printable character, so that any bytes can
// stand in the JSON strings of a vocabulary. The printable bytes of Latin-1 stand for themselves; the other
// 68, in order, are U+0100 and on (a space is U+0120).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

// The characters of the 256 bytes.
const std::array<char32_t, 256>& byte_level_alphabet();

std::string to_byte_level(std::string_view bytes);
// The bytes that byte-level characters stand for; nothing if `symbols` (UTF-8) has any other character.
std::optional<std::string> from_byte_level(std::string_view symbols);

}  // namespace nibble
