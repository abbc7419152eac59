// The log on stderr: `log()->info("...")`. Results go to stdout, never here.
#pragma once

#include <spdlog/spdlog.h>

#include <memory>

namespace nibble {

// One logger for the program: plain lines on stderr, level from NIBBLE_LOG (trace ... off; default info).
const std::shared_ptr<spdlog::logger>& log();

}  // namespace nibble
