// Specs that between them use every rule, rounding, correction, tensor scale and rotation of columns.
#pragma once

#include <string>
#include <vector>

#include "quant/digest.h"

namespace nibble::test {

inline const std::vector<std::string> kSpecs = [] {
    std::vector<std::string> specs;
    for (const RecordedDigest& recorded : recorded_digests())
        if (!parse_spec(recorded.spec).rotates_rows()) specs.emplace_back(recorded.spec);
    return specs;
}();

}  // namespace nibble::test
