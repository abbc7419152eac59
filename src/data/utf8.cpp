#include "data/utf8.h"

#include <cstring>

namespace nibble {

namespace {

struct Part {
    size_t length;
    bool well_formed;
};

// The well-formed sequence, or else the maximal ill-formed part, at the front of a non-empty text.
Part front_part(const unsigned char* text, size_t size) {
    const unsigned char lead = text[0];
    if (lead < 0x80) return {1, true};
    size_t length;
    unsigned char low = 0x80, high = 0xbf;  // what the second byte may be
    if (lead >= 0xc2 && lead <= 0xdf) {
        length = 2;
    } else if (lead >= 0xe0 && lead <= 0xef) {
        length = 3;
        if (lead == 0xe0) low = 0xa0;   // no overlong forms
        if (lead == 0xed) high = 0x9f;  // no surrogates
    } else if (lead >= 0xf0 && lead <= 0xf4) {
        length = 4;
        if (lead == 0xf0) low = 0x90;
        if (lead == 0xf4) high = 0x8f;  // nothing above U+10FFFF
    } else {
        return {1, false};
    }
    for (size_t i = 1; i < length; ++i) {
        if (i >= size || text[i] < low || text[i] > high) return {i, false};
        low = 0x80;
        high = 0xbf;
    }
    return {length, true};
}

// The offset of the first ill-formed part, or the size of the text.
size_t well_formed_prefix(std::string_view text) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
    size_t at = 0;
    while (at < text.size()) {
        uint64_t word;
        if (at + sizeof word <= text.size()) {
            std::memcpy(&word, bytes + at, sizeof word);
            if ((word & 0x8080808080808080u) == 0) {
                at += sizeof word;
                continue;
            }
        }
        const Part part = front_part(bytes + at, text.size() - at);
        if (!part.well_formed) return at;
        at += part.length;
    }
    return at;
}

}  // namespace

bool is_utf8(std::string_view text) { return well_formed_prefix(text) == text.size(); }

std::string repair_utf8(std::string_view text, int64_t* replaced) {
    std::string repaired;
    repaired.reserve(text.size());
    while (true) {
        const size_t good = well_formed_prefix(text);
        repaired += text.substr(0, good);
        text.remove_prefix(good);
        if (text.empty()) return repaired;
        repaired += "\xef\xbf\xbd";
        if (replaced != nullptr) ++*replaced;
        text.remove_prefix(
            front_part(reinterpret_cast<const unsigned char*>(text.data()), text.size()).length);
    }
}

char32_t next_code_point(std::string_view text, size_t& at) {
    const auto byte = [&text](size_t i) { return static_cast<unsigned char>(text[i]); };
    const char32_t lead = byte(at);
    if (lead < 0x80) {
        ++at;
        return lead;
    }
    const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    char32_t code_point = lead & (0x7fu >> length);
    for (size_t i = 1; i < length; ++i) code_point = code_point << 6 | (byte(at + i) & 0x3fu);
    at += length;
    return code_point;
}

void append_utf8(std::string& text, char32_t c) {
    const auto put = [&text](char32_t byte) { text.push_back(static_cast<char>(byte)); };
    if (c < 0x80) {
        put(c);
    } else if (c < 0x800) {
        put(0xc0 | c >> 6);
        put(0x80 | (c & 0x3f));
    } else if (c < 0x10000) {
        put(0xe0 | c >> 12);
        put(0x80 | (c >> 6 & 0x3f));
        put(0x80 | (c & 0x3f));
    } else {
        put(0xf0 | c >> 18);
        put(0x80 | (c >> 12 & 0x3f));
        put(0x80 | (c >> 6 & 0x3f));
        put(0x80 | (c & 0x3f));
    }
}

}  // namespace nibble
