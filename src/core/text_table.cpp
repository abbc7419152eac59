#include "core/text_table.h"

#include <algorithm>

namespace nibble {

std::string aligned(const TableRows& rows) {
    // Columns as wide as a terminal shows them: continuation bytes of UTF-8 take no place.
    const auto width = [](const std::string& text) {
        return std::count_if(text.begin(), text.end(),
                             [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
    };
    std::string text;
    for (const auto& row : rows) {
        std::string line;
        for (size_t column = 0; column < row.size(); ++column) {
            std::ptrdiff_t widest = 0;
            for (const auto& other : rows) widest = std::max(widest, width(other[column]));
            const std::string space(static_cast<size_t>(widest - width(row[column])), ' ');
            line += (column > 0 ? "  " : "") + (column < 1 ? row[column] + space : space + row[column]);
        }
        line.erase(line.find_last_not_of(' ') + 1);
        text += line + '\n';
    }
    return text;
}

}  // namespace nibble
