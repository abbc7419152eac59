// Inside recipe/ only: the text forms that TOML and the table share.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace nibble::detail {

// Kept blocks: 2 as "2", a share of 0.15 as "15%" (as "0.333..." where no short percentage is that number).
// parse_kept(kept_text(x)) == x for every valid x.
std::string kept_text(double amount);
// Nothing if the text is neither a whole number nor a share below 1 or 100%.
std::optional<double> parse_kept(std::string_view text);
// A share in (0, 1) or a whole number that is not negative.
bool is_valid_kept(double amount);

}  // namespace nibble::detail
