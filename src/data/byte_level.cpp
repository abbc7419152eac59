#include "data/byte_level.h"

#include "data/utf8.h"

namespace nibble {

namespace {

constexpr char32_t kEnd = 0x100 + 68;  // behind the last character of the alphabet

bool is_printable_latin1(int byte) {
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

std::array<int16_t, kEnd> make_inverse() {
    std::array<int16_t, kEnd> inverse;
    inverse.fill(-1);
    for (int byte = 0; byte < 256; ++byte) inverse[byte_level_alphabet()[byte]] = static_cast<int16_t>(byte);
    return inverse;
}

}  // namespace

const std::array<char32_t, 256>& byte_level_alphabet() {
    static const std::array<char32_t, 256> alphabet = [] {
        std::array<char32_t, 256> made{};
        char32_t next = 0x100;
        for (int byte = 0; byte < 256; ++byte) {
            made[byte] = is_printable_latin1(byte) ? static_cast<char32_t>(byte) : next++;
        }
        return made;
    }();
    return alphabet;
}

std::string to_byte_level(std::string_view bytes) {
    std::string symbols;
    for (char c : bytes) append_utf8(symbols, byte_level_alphabet()[static_cast<uint8_t>(c)]);
    return symbols;
}

std::optional<std::string> from_byte_level(std::string_view symbols) {
    static const std::array<int16_t, kEnd> inverse = make_inverse();
    std::string bytes;
    for (size_t at = 0; at < symbols.size();) {
        const char32_t c = next_code_point(symbols, at);
        if (c >= kEnd || inverse[c] < 0) return std::nullopt;
        bytes.push_back(static_cast<char>(inverse[c]));
    }
    return bytes;
}

}  // namespace nibble
