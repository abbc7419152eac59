// Tables for a terminal.
#pragma once

#include <string>
#include <vector>

namespace nibble {

// Rows of cells, the headings first; every row has as many cells.
using TableRows = std::vector<std::vector<std::string>>;

// One line a row: the first column stands on the left, the others on the right, two blanks apart.
std::string aligned(const TableRows& rows);

}  // namespace nibble
