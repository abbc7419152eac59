// Which floating-point flags the build really uses (docs/numerics.md): bits depend on them.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "core/file.h"

namespace nibble {
namespace {

struct Compilation {
    std::string file;
    std::vector<std::string> flags;
    bool is_cuda() const { return file.ends_with(".cu"); }
};

std::vector<Compilation> compilations() {
    std::vector<Compilation> result;
    for (const auto& entry :
         nlohmann::json::parse(read_text(fs::path(NIBBLE_BINARY_DIR) / "compile_commands.json"))) {
        std::istringstream words(entry.at("command").get<std::string>());
        Compilation compilation{.file = entry.at("file").get<std::string>(), .flags = {}};
        for (std::string word; words >> word;) compilation.flags.push_back(word);
        result.push_back(std::move(compilation));
    }
    return result;
}

bool begins_with_any(const std::string& flag, const std::vector<std::string>& prefixes) {
    for (const std::string& prefix : prefixes) {
        if (flag.rfind(prefix, 0) == 0) return true;
    }
    return false;
}

TEST(CompileFlags, CoverTheSourcesThatDecideBits) {
    bool has_quantiser = false;
    for (const Compilation& compilation : compilations()) {
        has_quantiser |= compilation.file.find("/src/quant/") != std::string::npos;
    }
    EXPECT_TRUE(has_quantiser);
}

TEST(CompileFlags, OfCudaKeepEveryRoundingAndSubnormal) {
    for (const Compilation& compilation : compilations()) {
        if (!compilation.is_cuda()) continue;
        for (const char* flag : {"-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true"}) {
            EXPECT_EQ(std::ranges::count(compilation.flags, flag), 1) << flag << " in " << compilation.file;
        }
    }
}

TEST(CompileFlags, NeverContractMultiplyAndAdd) {
    for (const Compilation& compilation : compilations()) {
        if (compilation.is_cuda()) continue;
        std::string last;  // of several, the compiler obeys the last
        for (const std::string& flag : compilation.flags) {
            if (begins_with_any(flag, {"-ffp-contract="})) last = flag;
        }
        EXPECT_EQ(last, "-ffp-contract=off") << compilation.file;
    }
}

TEST(CompileFlags, NeverLoosenArithmeticOrAssumeThisProcessor) {
    const std::vector<std::string> forbidden = {
        "-Ofast",
        "-ffast-math",
        "--use_fast_math",
        "-use_fast_math",
        "-funsafe-math-optimizations",
        "-fassociative-math",
        "-freciprocal-math",
        "-ffinite-math-only",
        "-fno-signed-zeros",
        "-march=",
        "-mtune=native",
        "-mcpu=native",
        "-mfma",
        "-mavx",
    };
    for (const Compilation& compilation : compilations()) {
        for (const std::string& flag : compilation.flags) {
            EXPECT_FALSE(begins_with_any(flag, forbidden)) << flag << " in " << compilation.file;
        }
    }
}

}  // namespace
}  // namespace nibble
