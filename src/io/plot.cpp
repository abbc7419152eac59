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

std::string_view style_of(Curve::Style style) {
    switch (style) {
        case Curve::Style::line:
            return "lines lw 1.2";
        case Curve::Style::marked:
            return "linespoints lw 2.5 pt 7 ps 0.45";
        case Curve::Style::points:
            return "points pt 7 ps 0.45";
    }
    return "lines";
}

std::string script_of(const Chart& chart) {
    std::string script =
        "set terminal svg size 860,430 dynamic font 'sans-serif,14'\n"
        "set grid lc rgb '#888888' lw 0.5\nset border 3\nset tics nomirror\nset key outside center top "
        "horizontal\n";
    script += fmt::format("set xlabel {} noenhanced\nset ylabel {} noenhanced\n", quoted(chart.x_label),
                          quoted(chart.y_label));
    if (chart.log_x)
        script += "set logscale x\n";
    else if (chart.x_max > 0)
        script += fmt::format("set xrange [0:{:.8g}]\n", chart.x_max);
    if (chart.y_min < chart.y_max)
        script += fmt::format("set yrange [{:.8g}:{:.8g}]\n", chart.y_min, chart.y_max);
    if (chart.zero_line) script += "set xzeroaxis lt 1 lw 1 lc rgb 'black'\n";
    std::string plots;
    for (size_t i = 0; i < chart.curves.size(); ++i) {
        const Curve& curve = chart.curves[i];
        script += data_block(curve, i);
        plots +=
            fmt::format("{} $curve{} with {} lc rgb {} {}", i == 0 ? "plot" : ",", i, style_of(curve.style),
                        quoted(curve.color),
                        curve.title.empty() ? "notitle" : "title " + quoted(curve.title) + " noenhanced");
    }
    return script + plots + "\n";
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

}  // namespace

std::string_view curve_color(size_t index) {
    constexpr std::array<std::string_view, 8> kColors = {"#808080", "#2f86d6", "#e0662f", "#1d9e77",
                                                         "#c060b0", "#c99a00", "#5fb0c9", "#a05a4a"};
    return kColors[index % kColors.size()];
}

std::string draw_svg(const Chart& chart) {
    const ScratchFolder folder;
    write_text(folder / "script", script_of(chart));
    run_gnuplot(folder);
    std::string svg = read_text(folder / "svg");
    const size_t begin = svg.find("<svg");
    require(begin != std::string::npos, "gnuplot wrote no picture");
    svg.erase(0, begin);
    // gnuplot's own title would show when the pointer rests on the chart.
    if (const size_t title = svg.find("<title>"), end = svg.find("</desc>");
        title < end && end != std::string::npos)
        svg.erase(title, end + 7 - title);
    return svg;
}

std::string draw_svg_file(const Chart& chart) {
    std::string svg = draw_svg(chart);
    svg.insert(svg.find('>') + 1, "\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>");
    return svg;
}

}  // namespace nibble
