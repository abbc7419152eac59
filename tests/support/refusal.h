// What a program says when it is used wrongly.
#pragma once

#include <string>

#include "core/error.h"

namespace nibble::test {

// The message with which `action` fails as wrong usage; empty if it does not.
template <typename Action>
std::string refusal(Action&& action) {
    try {
        action();
    } catch (const UsageError& error) {
        return error.what();
    }
    return "";
}

}  // namespace nibble::test
