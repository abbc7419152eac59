#include "core/log.h"

#include <spdlog/sinks/stdout_sinks.h>

#include <cstdlib>

namespace nibble {

const std::shared_ptr<spdlog::logger>& log() {
    static const std::shared_ptr<spdlog::logger> logger = [] {
        auto made =
            std::make_shared<spdlog::logger>("nibble", std::make_shared<spdlog::sinks::stderr_sink_mt>());
        made->set_pattern("%v");
        if (const char* level = std::getenv("NIBBLE_LOG")) made->set_level(spdlog::level::from_str(level));
        return made;
    }();
    return logger;
}

}  // namespace nibble
