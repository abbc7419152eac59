#include "train/metrics_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace nibble {

using Json = nlohmann::ordered_json;

MetricsLog::MetricsLog(fs::path path) : path_(std::move(path)) {
    const bool unfinished = [&] {
        std::error_code error;
        if (fs::file_size(path_, error) == 0 || error) return false;
        return !read_text(path_).ends_with('\n');
    }();
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    require(descriptor_ >= 0, "cannot write {}: {}", path_.string(), std::generic_category().message(errno));
    if (unfinished) require(::write(descriptor_, "\n", 1) == 1, "cannot write {}", path_.string());
}

MetricsLog::~MetricsLog() { ::close(descriptor_); }

void MetricsLog::write(const Json& record) {
    // One call a line, so that a reader beside us never sees half of one.
    const std::string line = record.dump(-1, ' ', false, Json::error_handler_t::replace) + '\n';
    size_t done = 0;
    while (done < line.size()) {
        const ssize_t written = ::write(descriptor_, line.data() + done, line.size() - done);
        if (written < 0 && errno == EINTR) continue;
        require(written > 0, "cannot write {}: {}", path_.string(), std::generic_category().message(errno));
        done += static_cast<size_t>(written);
    }
}

namespace {

void drop_after(RunLog& log, int64_t step) {
    std::erase_if(log.steps, [&](const RunLog::Step& s) { return s.step > step; });
    std::erase_if(log.evals, [&](const RunLog::Eval& e) { return e.step > step; });
    log.end = nullptr;
}

// A number, or NaN where JSON has null (it knows no infinities).
double number(const Json& record, const char* key) {
    const Json& value = record.at(key);
    return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

void take(RunLog& log, Json&& record) {
    const std::string type = record.at("type").get<std::string>();
    if (type == "header") {
        drop_after(log, record.value("resumed_from", int64_t{0}));
        log.header = std::move(record);
        log.recipe = log.header.value(Json::json_pointer("/recipe/name"), std::string());
    } else if (type == "phase") {
        log.recipe = record.at("recipe").at("name").get<std::string>();
        if (record.contains("phase")) log.phases_begun.push_back(record.at("phase").get<size_t>());
        if (record.contains("steps")) log.header["steps"] = record.at("steps");
    } else if (type == "step") {
        log.steps.push_back({record.at("step").get<int64_t>(), record.at("tokens").get<int64_t>(),
                             number(record, "loss"), number(record, "lr"), number(record, "grad_norm"),
                             number(record, "tokens_per_s"), number(record, "sol"), number(record, "time")});
    } else if (type == "eval") {
        log.evals.push_back({record.at("step").get<int64_t>(), record.at("tokens").get<int64_t>(),
                             record.at("forward").get<std::string>(), false, number(record, "loss"),
                             number(record, "bits_per_byte")});
        log.evals.back().own = log.evals.back().forward == log.recipe;
    } else if (type == "end") {
        log.end = std::move(record);
    }
}

}  // namespace

RunLog read_run_log(const fs::path& path) {
    const std::string text = read_text(path);
    RunLog log;
    size_t line_number = 0, begin = 0;
    while (begin < text.size()) {
        ++line_number;
        const size_t end = text.find('\n', begin);
        const bool is_last = end == std::string::npos || end + 1 == text.size();
        const std::string_view line = std::string_view(text).substr(begin, end - begin);
        begin = end == std::string::npos ? text.size() : end + 1;
        if (line.empty()) continue;
        Json record = Json::parse(line, nullptr, false);
        if (record.is_discarded()) {
            // Half a line: the process that wrote it was killed. It is the last, or a resumed run followed.
            const bool resumed = text.compare(begin, 16, "{\"type\":\"header\"") == 0;
            require(is_last || resumed, "{}:{}: not a line of JSON", path.string(), line_number);
            continue;
        }
        try {
            take(log, std::move(record));
        } catch (const Json::exception& error) {
            fail("{}:{}: {}", path.string(), line_number, error.what());
        }
    }
    require(log.header.is_object(), "{} holds no header; is it the log of a run?", path.string());
    return log;
}

}  // namespace nibble
