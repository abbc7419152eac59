// The version of nibble, as CMakeLists.txt gives it: "0.1.0".
#pragma once

#include <string_view>

namespace nibble {

std::string_view version();

}  // namespace nibble
