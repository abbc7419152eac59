#include "study/scaling_runs.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <string_view>

#include "core/core.h"

namespace nibble {

namespace {

// A line of the file, and where it stands: "runs.csv:3".
struct Line {
    std::string where;
    std::vector<std::string> fields;
};

std::string_view trimmed(std::string_view text) {
    constexpr std::string_view kBlank = " \t\r";
    const size_t first = text.find_first_not_of(kBlank);
    if (first == std::string_view::npos) return {};
    return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

std::vector<std::string> split(std::string_view line, const std::string& where) {
    require(line.find('"') == std::string_view::npos,
            "{}: quotes are not understood here; write plain fields", where);
    std::vector<std::string> fields;
    for (size_t begin = 0; begin <= line.size();) {
        const size_t end = std::min(line.find(',', begin), line.size());
        fields.emplace_back(trimmed(line.substr(begin, end - begin)));
        begin = end + 1;
    }
    return fields;
}

// Lines that are not blank.
std::vector<Line> read_lines(const fs::path& path) {
    const std::string text = read_text(path);
    std::string_view rest = text;
    if (rest.starts_with("\xef\xbb\xbf")) rest.remove_prefix(3);
    std::vector<Line> lines;
    for (size_t number = 1; !rest.empty(); ++number) {
        const size_t end = std::min(rest.find('\n'), rest.size());
        const std::string_view line = rest.substr(0, end);
        rest.remove_prefix(std::min(end + 1, rest.size()));
        if (trimmed(line).empty()) continue;
        const std::string where = fmt::format("{}:{}", path.string(), number);
        lines.push_back({where, split(line, where)});
    }
    return lines;
}

// Names go to terminals, JSON and charts.
bool is_name(std::string_view text) {
    return !text.empty() &&
           std::all_of(text.begin(), text.end(), [](char c) { return ' ' <= c && c <= '~'; });
}

size_t column_of(const Line& header, const std::string& name) {
    const auto at = std::find(header.fields.begin(), header.fields.end(), name);
    if (at == header.fields.end()) {
        const std::string nearest = nearest_name(name, header.fields);
        fail("{}: there is no column '{}'{}", header.where, name,
             nearest.empty() ? "" : fmt::format("; is '{}' meant?", nearest));
    }
    return static_cast<size_t>(at - header.fields.begin());
}

size_t loss_column_of(const Line& header) {
    std::optional<size_t> found;
    for (size_t i = 0; i < header.fields.size(); ++i) {
        if (header.fields[i] != "loss" && !header.fields[i].ends_with("_loss")) continue;
        require(!found, "{}: '{}' and '{}' are both losses; keep one of the two columns", header.where,
                header.fields[found.value_or(0)], header.fields[i]);
        found = i;
    }
    require(found.has_value(), "{}: there is no column 'loss' and none that ends in '_loss'", header.where);
    return *found;
}

double positive(const Line& line, const std::string& column, const std::string& text) {
    double value = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    require(result.ec == std::errc() && result.ptr == text.data() + text.size() && std::isfinite(value),
            "{}: {} is '{}', which is not a number", line.where, column, text);
    require(value > 0, "{}: {} is {}; it must be above 0", line.where, column, text);
    return value;
}

}  // namespace

std::vector<ScalingRun> read_scaling_runs(const fs::path& path) {
    const std::vector<Line> lines = read_lines(path);
    require(!lines.empty(), "{}: the file is empty; its first line must name the columns", path.string());
    const Line& header = lines.front();
    const std::string kParameters = "non_embedding_parameters", kTokens = "tokens";
    const size_t scheme = column_of(header, "scheme"), parameters = column_of(header, kParameters),
                 tokens = column_of(header, kTokens), loss = loss_column_of(header);
    std::vector<ScalingRun> runs;
    for (size_t i = 1; i < lines.size(); ++i) {
        const Line& line = lines[i];
        require(line.fields.size() == header.fields.size(), "{}: {} fields, but the header names {} columns",
                line.where, line.fields.size(), header.fields.size());
        require(is_name(line.fields[scheme]), "{}: the scheme has no name of printable ASCII characters",
                line.where);
        runs.push_back({line.fields[scheme], positive(line, kParameters, line.fields[parameters]),
                        positive(line, kTokens, line.fields[tokens]),
                        positive(line, header.fields[loss], line.fields[loss])});
    }
    require(!runs.empty(), "{}: there are no runs below the names of the columns", path.string());
    return runs;
}

}  // namespace nibble
