// Line charts as SVG text, drawn by gnuplot.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nibble {

struct Curve {
    enum class Style : unsigned char { line, dashed, marked, points };
    std::string title;  // in the legend; empty: not there
    std::string color;  // "#rrggbb"
    Style style = Style::line;
    int shape = 0;             // of its points: disc, square, triangle, diamond, pentagon
    std::vector<double> x, y;  // points that are not finite leave a gap
};

struct Chart {
    std::string title;
    std::string x_label, y_label;
    std::vector<Curve> curves;
    bool log_x = false;             // a logarithmic x axis, as wide as the points
    bool log_y = false;             // points that are not above 0 are left out
    std::vector<std::string> rows;  // names of y = 0, 1, ..., from the top down, in place of numbers
    double x_step = 0;              // between two numbers of the x axis; 0: chosen from the points
    double x_max = 0;               // otherwise it begins at 0
    double y_min = 0, y_max = 0;    // equal: chosen from the points
    bool zero_line = false;
};

// The colour of the index-th of several curves. Hues that stand apart on white and on black, also to most
// colour-blind eyes.
std::string_view curve_color(size_t index);

// An <svg> element whose texts and axes are black; a style sheet may give them another colour. Throws Error
// when gnuplot is not installed or fails.
std::string draw_svg(const Chart& chart);
// The same as a file of its own, on white.
std::string draw_svg_file(const Chart& chart);
// Several charts in one file, row by row, `columns` beside each other.
std::string draw_svg_file(const std::vector<Chart>& charts, int columns);

// Throws Error when gnuplot is not installed or fails: for what takes long before it can draw.
void require_gnuplot();

}  // namespace nibble
