#include "io/plot.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <system_error>

#include "core/core.h"

extern char** environ;

namespace nibble {

namespace {

// A folder of its own under the system's temporary one, removed at the end.
class ScratchFolder {
  public:
    ScratchFolder() {
        std::string name = (fs::temp_directory_path() / "nibble-plot-XXXXXX").string();
        require(::mkdtemp(name.data()) != nullptr, "cannot create {}: {}", name,
                std::generic_category().message(errno));
        path_ = name;
    }
    ~ScratchFolder() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    ScratchFolder(const ScratchFolder&) = delete;
    ScratchFolder& operator=(const ScratchFolder&) = delete;
    fs::path operator/(const char* name) const { return path_ / name; }

  private:
    fs::path path_;
};

// A gnuplot text: in single quotes nothing is special but the quote itself.
std::string quoted(std::string text) {
    std::erase_if(text, [](char c) { return static_cast<unsigned char>(c) < ' '; });
    for (size_t at = 0; (at = text.find('\'', at)) != std::string::npos; at += 2) text.insert(at, 1, '\'');
    return "'" + text + "'";
}

std::string data_block(const Curve& curve, size_t index) {
    std::string text = fmt::format("$curve{} << END\n", index);
    for (size_t i = 0; i < curve.x.size(); ++i) {
        if (std::isfinite(curve.x[i]) && std::isfinite(curve.y[i]))
            text += fmt::format("{:.8g} {:.8g}\n", curve.x[i], curve.y[i]);
        else
            text += "\n";
    }
    return text + "END\n";
}

std::string style_of(const Curve& curve) {
    constexpr int kShapes[] = {7, 5, 9, 13, 15};  // gnuplot's numbers
    const int shape = kShapes[static_cast<size_t>(curve.shape) % std::size(kShapes)];
    switch (curve.style) {
        case Curve::Style::line:
            return "lines lw 1.2";
        case Curve::Style::dashed:
            return "lines lw 1.5 dt 2";
        case Curve::Style::marked:
            return fmt::format("linespoints lw 2.5 pt {} ps 0.45", shape);
        case Curve::Style::points:
            return fmt::format("points pt {} ps 0.45", shape);
    }
    return "lines";
}

constexpr int kLetter = 8;  // what a text needs for each, in units of an SVG

int longest_of(const std::vector<std::string>& texts) {
    size_t longest = 0;
    for (const std::string& text : texts) longest = std::max(longest, text.size());
    return static_cast<int>(longest);
}

std::vector<std::string> titles_of(const Chart& chart) {
    std::vector<std::string> titles;
    for (const Curve& curve : chart.curves)
        if (!curve.title.empty()) titles.push_back(curve.title);
    return titles;
}

int width_of_title(const Chart& chart) { return 70 + kLetter * longest_of(titles_of(chart)); }

// gnuplot draws at most three lines of titles above a chart, and drops the rest without a word.
bool has_legend_above(const Chart& chart, bool is_alone) {
    const int room = is_alone && chart.rows.empty() ? 760 : 410;
    return titles_of(chart).size() <= static_cast<size_t>(3 * std::max(1, room / width_of_title(chart)));
}

struct Size {
    int width, height;
};

// The picture. Names of rows are long, and need a line each.
Size size_of(const std::vector<Chart>& charts, int columns) {
    constexpr int kAround = 130, kRow = 26;  // title, legend and x axis; a row and its points
    constexpr int kBeside = 640;             // a chart beside the names of its rows
    const bool is_alone = charts.size() == 1;
    int width = 0, height = is_alone ? 430 : 340;
    for (const Chart& chart : charts) {
        int needed = columns > 1 ? 500 : 860;
        if (!chart.rows.empty()) {
            needed = std::max(needed, kBeside + kLetter * longest_of(chart.rows));
            height = kAround + kRow * static_cast<int>(chart.rows.size());
        }
        if (!has_legend_above(chart, is_alone)) needed += width_of_title(chart);
        width = std::max(width, needed);
    }
    const int lines = (static_cast<int>(charts.size()) + columns - 1) / columns;
    return {columns * width, lines * height};
}

std::string axes_of(const Chart& chart, bool is_alone) {
    std::string script =
        "reset\nset grid lc rgb '#888888' lw 0.5\nset border 3\nset tics nomirror\n"
        "set key outside samplen 2 ";
    script += has_legend_above(chart, is_alone) ? "center top horizontal\n" : "right center vertical\n";
    if (!chart.title.empty()) script += fmt::format("set title {} noenhanced\n", quoted(chart.title));
    script += fmt::format("set xlabel {} noenhanced\nset ylabel {} noenhanced\n", quoted(chart.x_label),
                          quoted(chart.y_label));
    if (chart.log_x)
        script += "set logscale x\n";
    else if (chart.x_max > 0)
        script += fmt::format("set xrange [0:{:.8g}]\n", chart.x_max);
    if (chart.x_step > 0) script += fmt::format("set xtics {:.8g}\n", chart.x_step);
    if (chart.log_y) script += "set logscale y\nset format y '10^{%T}'\nunset mxtics\nunset mytics\n";
    if (chart.y_min < chart.y_max)
        script += fmt::format("set yrange [{:.8g}:{:.8g}]\n", chart.y_min, chart.y_max);
    if (!chart.rows.empty()) {
        std::string names;
        for (size_t i = 0; i < chart.rows.size(); ++i)
            names += fmt::format("{}{} {}", i == 0 ? "" : ", ", quoted(chart.rows[i]), i);
        script += fmt::format("set ytics ({}) noenhanced\nset yrange [{}:-0.5]\n", names,
                              static_cast<double>(chart.rows.size()) - 0.5);
    }
    if (chart.zero_line) script += "set xzeroaxis lt 1 lw 1 lc rgb 'black'\n";
    return script;
}

std::string script_of(const std::vector<Chart>& charts, int columns) {
    const Size size = size_of(charts, columns);
    std::string script = fmt::format("set terminal svg size {},{} dynamic font 'sans-serif,{}'\n", size.width,
                                     size.height, charts.size() > 1 ? 12 : 14);
    if (charts.size() > 1)
        script += fmt::format("set multiplot layout {},{}\n",
                              (static_cast<int>(charts.size()) + columns - 1) / columns, columns);
    for (const Chart& chart : charts) {
        script += axes_of(chart, charts.size() == 1);
        std::string plots;
        for (size_t i = 0; i < chart.curves.size(); ++i) {
            const Curve& curve = chart.curves[i];
            script += data_block(curve, i);
            plots +=
                fmt::format("{} $curve{} with {} lc rgb {} {}", i == 0 ? "plot" : ",", i, style_of(curve),
                            quoted(curve.color),
                            curve.title.empty() ? "notitle" : "title " + quoted(curve.title) + " noenhanced");
        }
        script += plots + "\n";
    }
    return script;
}

void run_gnuplot(const ScratchFolder& folder) {
    const std::string script = (folder / "script"), svg = (folder / "svg"), errors = (folder / "errors");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, svg.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    std::string program = "gnuplot", defaults = "--default-settings", argument = script;
    char* arguments[] = {program.data(), defaults.data(), argument.data(), nullptr};
    pid_t child = 0;
    const int failure = ::posix_spawnp(&child, "gnuplot", &actions, nullptr, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    require(failure != ENOENT,
            "gnuplot draws the curves and is not installed; install it (Debian: gnuplot-nox)");
    require(failure == 0, "cannot run gnuplot: {}", std::generic_category().message(failure));
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
        fail("gnuplot draws the curves and is not installed; install it (Debian: gnuplot-nox)");
    std::string message = read_text(errors);
    std::replace(message.begin(), message.end(), '\n', ' ');
    require(WIFEXITED(status) && WEXITSTATUS(status) == 0, "gnuplot failed: {}", message);
}

// gnuplot writes groups that hold nothing: a third of its picture.
std::string without_empty_groups(std::string_view svg) {
    constexpr std::string_view kSpace = " \t\r\n", kEnd = "</g>";
    const auto behind_space = [&](size_t at) {
        return std::min(svg.find_first_not_of(kSpace, at), svg.size());
    };
    std::string kept;
    size_t at = 0;
    while (at < svg.size()) {
        const size_t group = std::min(svg.find("<g ", at), svg.size());
        const size_t inside = std::min(svg.find('>', group), svg.size() - 1) + 1;
        kept += svg.substr(at, group - at);
        const size_t end = behind_space(inside);
        const bool is_empty = svg.substr(end, kEnd.size()) == kEnd;
        if (!is_empty) kept += svg.substr(group, inside - group);
        at = is_empty ? behind_space(end + kEnd.size()) : inside;
    }
    return kept;
}

// An <svg> element, without gnuplot's preamble.
std::string draw(const std::vector<Chart>& charts, int columns) {
    const ScratchFolder folder;
    write_text(folder / "script", script_of(charts, columns));
    run_gnuplot(folder);
    std::string svg = read_text(folder / "svg");
    const size_t begin = svg.find("<svg");
    require(begin != std::string::npos, "gnuplot wrote no picture");
    svg.erase(0, begin);
    // gnuplot's own title would show when the pointer rests on the chart.
    if (const size_t title = svg.find("<title>"), end = svg.find("</desc>");
        title < end && end != std::string::npos)
        svg.erase(title, end + 7 - title);
    return without_empty_groups(svg);
}

}  // namespace

std::string_view curve_color(size_t index) {
    constexpr std::array<std::string_view, 8> kColors = {"#808080", "#2f86d6", "#e0662f", "#1d9e77",
                                                         "#c060b0", "#c99a00", "#5fb0c9", "#a05a4a"};
    return kColors[index % kColors.size()];
}

void require_gnuplot() {
    const ScratchFolder folder;
    write_text(folder / "script", "");
    run_gnuplot(folder);
}

std::string draw_svg(const Chart& chart) { return draw({chart}, 1); }

std::string draw_svg_file(const Chart& chart) { return draw_svg_file(std::vector{chart}, 1); }

std::string draw_svg_file(const std::vector<Chart>& charts, int columns) {
    std::string svg = draw(charts, columns);
    svg.insert(svg.find('>') + 1, "\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>");
    return svg;
}

}  // namespace nibble
