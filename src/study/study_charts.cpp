#include "study/study_charts.h"

#include <algorithm>
#include <cmath>

namespace nibble {

namespace {

// The values of a field, each once, in the order in which they first occur.
template <typename Result>
std::vector<std::string> values_of(const std::vector<Result>& results, std::string Result::*field) {
    std::vector<std::string> values;
    for (const Result& result : results)
        if (std::find(values.begin(), values.end(), result.*field) == values.end())
            values.push_back(result.*field);
    return values;
}

size_t place_of(const std::string& value, const std::vector<std::string>& values) {
    return static_cast<size_t>(std::find(values.begin(), values.end(), value) - values.begin());
}

// The index-th curve beside a grey reference. Where colours repeat, the points have another shape.
Curve new_curve(const std::string& title, size_t index, Curve::Style style) {
    constexpr size_t kColors = 7;
    Curve curve;
    curve.title = title;
    curve.color = curve_color(1 + index % kColors);
    curve.style = style;
    curve.shape = static_cast<int>(index / kColors);
    return curve;
}

// Errors as an x axis: from 0, or logarithmic where they differ by more than one order of magnitude.
void fit_x(Chart& chart) {
    double least = INFINITY, most = 0;
    for (const Curve& curve : chart.curves)
        for (double x : curve.x)
            if (x > 0) least = std::min(least, x), most = std::max(most, x);
    chart.log_x = most > 10 * least;
    if (!chart.log_x) chart.x_max = 1.05 * most;
}

// Curves of one row stand below each other, so that equal values can be told apart.
double place_in_row(size_t row, size_t curve, size_t curves) {
    const double step = 0.6 / static_cast<double>(curves);
    return static_cast<double>(row) +
           step * (static_cast<double>(curve) - 0.5 * static_cast<double>(curves - 1));
}

void add_point(Curve& curve, double x, double y) {
    curve.x.push_back(x);
    curve.y.push_back(y);
}

}  // namespace

Chart quantizer_chart(const std::vector<QuantizerResult>& results) {
    using Field = std::string QuantizerResult::*;
    Field row = &QuantizerResult::spec, color = &QuantizerResult::data;
    if (values_of(results, color).size() > values_of(results, row).size()) std::swap(row, color);
    Chart chart;
    chart.x_label = "relative mean squared error |q - x|² / |x|²";
    chart.rows = values_of(results, row);
    const std::vector<std::string> titles = values_of(results, color);
    for (const std::string& title : titles)
        chart.curves.push_back(new_curve(title, chart.curves.size(), Curve::Style::points));
    for (const QuantizerResult& result : results) {
        const size_t curve = place_of(result.*color, titles);
        add_point(chart.curves[curve], result.figures.relative_mse,
                  place_in_row(place_of(result.*row, chart.rows), curve, titles.size()));
    }
    fit_x(chart);
    return chart;
}

std::vector<Chart> layer_charts(const std::vector<LayerResult>& results) {
    constexpr std::pair<const char*, double LayerErrors::*> kErrors[] = {{"Y", &LayerErrors::y},
                                                                         {"dX", &LayerErrors::dx},
                                                                         {"dW", &LayerErrors::dw},
                                                                         {"mean dX", &LayerErrors::mean_dx},
                                                                         {"mean dW", &LayerErrors::mean_dw}};
    std::vector<Chart> charts;
    for (const std::string& data : values_of(results, &LayerResult::data)) {
        Chart chart;
        chart.title = data;
        chart.x_label = "relative error |a - b| / |b|";
        chart.rows = values_of(results, &LayerResult::recipe);
        for (const auto& [name, error] : kErrors) {
            Curve curve = new_curve(name, chart.curves.size(), Curve::Style::points);
            for (const LayerResult& result : results)
                if (result.data == data)
                    add_point(curve, result.errors.*error,
                              place_in_row(place_of(result.recipe, chart.rows), chart.curves.size(),
                                           std::size(kErrors)));
            chart.curves.push_back(std::move(curve));
        }
        fit_x(chart);
        charts.push_back(std::move(chart));
    }
    return charts;
}

std::vector<Chart> bias_charts(const std::vector<BiasResult>& results) {
    const std::vector<std::string> recipes = values_of(results, &BiasResult::recipe);
    std::vector<Chart> charts;
    for (const std::string& data : values_of(results, &BiasResult::data)) {
        Chart chart;
        chart.title = data;
        chart.x_label = "averaged draws B";
        chart.y_label = "squared relative error of mean dW";
        chart.log_x = chart.log_y = true;
        Curve line;
        line.title = "1/B";
        line.color = curve_color(0);
        line.style = Curve::Style::dashed;
        double log_first = 0;
        for (const BiasResult& result : results) {
            if (result.data != data) continue;
            Curve curve = new_curve(result.recipe, place_of(result.recipe, recipes), Curve::Style::marked);
            for (size_t i = 0; i < result.curve.draws.size(); ++i)
                add_point(curve, result.curve.draws[i], result.curve.error[i]);
            line.x = curve.x;
            log_first += std::log(result.curve.error.front());
            chart.curves.push_back(std::move(curve));
        }
        const double first = std::exp(log_first / static_cast<double>(chart.curves.size()));
        for (double draws : line.x) line.y.push_back(first / draws);
        chart.curves.push_back(std::move(line));
        charts.push_back(std::move(chart));
    }
    return charts;
}

std::vector<Chart> alignment_charts(const std::vector<AlignmentResult>& results) {
    struct Panel {
        std::string gradient, title, y_label;
        bool is_projection;
    };
    std::vector<Panel> panels = {{"residual", "gradient of the residual stream", "cosine with bf16", false},
                                 {"residual", "gradient of the residual stream", "<q, g> / <g, g>", true}};
    for (const char* matrix : {"attention.qkv", "attention.out", "mlp.gate_up", "mlp.down"})
        panels.push_back({matrix, fmt::format("dW of {}", matrix), "cosine with bf16", false});
    std::vector<Chart> charts;
    for (const Panel& panel : panels) {
        Chart chart;
        chart.title = panel.title;
        chart.x_label = "block (backward: from right to left)";
        chart.y_label = panel.y_label;
        for (const AlignmentResult& result : results) {
            Curve curve = new_curve(result.recipe, chart.curves.size(), Curve::Style::marked);
            for (const AlignedGradient& g : result.alignment.gradients)
                if (g.name == panel.gradient)
                    add_point(curve, g.block,
                              panel.is_projection ? 1 - g.alignment.misalignment : g.alignment.cosine);
            if (!curve.x.empty()) chart.x_max = std::max(chart.x_max, curve.x.back());
            chart.curves.push_back(std::move(curve));
        }
        chart.x_step = std::max(1.0, std::ceil(chart.x_max / 12));
        charts.push_back(std::move(chart));
    }
    return charts;
}

}  // namespace nibble
