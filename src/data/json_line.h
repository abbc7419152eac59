// What the readers of JSON in this room share.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace nibble {

// An exception of the JSON library as part of one line of text, without its prefix and not endless.
inline std::string json_error_line(const nlohmann::json::exception& error) {
    std::string_view text = error.what();
    if (const size_t end = text.find("] "); text.starts_with("[") && end != text.npos)
        text.remove_prefix(end + 2);
    return text.size() > 200 ? std::string(text.substr(0, 197)) + "..." : std::string(text);
}

}  // namespace nibble
