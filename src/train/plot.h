// Line charts as SVG text, drawn by gnuplot.
#pragma once

#include <string>
#include <vector>

namespace nibble {

struct Curve {
    enum class Style : unsigned char { line, marked };
    std::string title;  // in the legend; empty: not there
    std::string color;  // "#rrggbb"
    Style style = Style::line;
    std::vector<double> x, y;  // points that are not finite leave a gap
};

struct Chart {
    std::string x_label, y_label;
    std::vector<Curve> curves;
    double x_max = 0;             // the x axis begins at 0
    double y_min = 0, y_max = 0;  // equal: chosen from the points
    bool zero_line = false;
};

// An <svg> element whose texts and axes are black; a style sheet may give them another colour. Throws Error
// when gnuplot is not installed or fails.
std::string draw_svg(const Chart& chart);

}  // namespace nibble
