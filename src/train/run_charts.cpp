#include "train/run_charts.h"

#include <algorithm>
#include <cmath>

namespace nibble {

namespace {

// The mean over a window around each point, about a fiftieth of the run wide.
std::vector<double> smoothed(const std::vector<double>& y) {
    const auto n = static_cast<int64_t>(y.size());
    const int64_t half = n / 100;
    std::vector<double> result(y.size());
    for (int64_t i = 0; i < n; ++i) {
        const int64_t reach = std::min({half, i, n - 1 - i});  // narrower at both ends, never lopsided
        double sum = 0;
        for (int64_t j = i - reach; j <= i + reach; ++j) sum += y[static_cast<size_t>(j)];
        result[static_cast<size_t>(i)] = sum / static_cast<double>(2 * reach + 1);
    }
    return result;
}

// At most about 400 points: no screen shows more, and the page stays small.
Curve thinned(Curve curve) {
    constexpr size_t kMost = 400;
    const size_t n = curve.x.size(), stride = (n + kMost - 1) / kMost;
    if (stride <= 1) return curve;
    Curve result = curve;
    result.x.clear(), result.y.clear();
    for (size_t i = 0; i < n; ++i)
        if (i % stride == 0 || i + 1 == n) result.x.push_back(curve.x[i]), result.y.push_back(curve.y[i]);
    return result;
}

double most_tokens(const std::vector<ReportedRun>& runs) {
    double most = 1;
    for (const ReportedRun& run : runs)
        if (!run.log.steps.empty()) most = std::max(most, static_cast<double>(run.log.steps.back().tokens));
    return most;
}

struct TokenUnit {
    double size;
    std::string_view label;
};

TokenUnit token_unit(double most) {
    if (most >= 2e9) return {1e9, "training tokens (billions)"};
    if (most >= 2e6) return {1e6, "training tokens (millions)"};
    if (most >= 2e3) return {1e3, "training tokens (thousands)"};
    return {1, "training tokens"};
}

Curve training_curve(const ReportedRun& run, double unit) {
    Curve curve;
    for (const RunLog::Step& step : run.log.steps) {
        curve.x.push_back(static_cast<double>(step.tokens) / unit);
        curve.y.push_back(step.loss);
    }
    curve.y = smoothed(curve.y);
    curve.style = Curve::Style::line;
    return thinned(std::move(curve));
}

Curve validation_curve(const ReportedRun& run, double unit) {
    Curve curve;
    for (const RunLog::Eval& eval : run.log.evals) {
        if (!eval.own) continue;
        curve.x.push_back(static_cast<double>(eval.tokens) / unit);
        curve.y.push_back(eval.loss);
    }
    curve.style = Curve::Style::marked;
    return curve;
}

}  // namespace

Chart loss_chart(const std::vector<ReportedRun>& runs) {
    const double most_x = most_tokens(runs);
    const TokenUnit unit = token_unit(most_x);
    Chart chart;
    chart.x_label = unit.label;
    chart.x_max = most_x / unit.size;
    chart.y_label = "loss (nats per token)";
    double least = INFINITY, most = -INFINITY;
    for (size_t i = 0; i < runs.size(); ++i) {
        Curve training = training_curve(runs[i], unit.size),
              validation = validation_curve(runs[i], unit.size);
        training.color = validation.color = curve_color(i);
        training.title = label_of(runs, runs[i]) + ", training (smoothed)";
        validation.title = label_of(runs, runs[i]) + ", validation";
        for (const Curve* curve : {&training, &validation})
            for (double y : curve->y)
                if (std::isfinite(y)) least = std::min(least, y), most = std::max(most, y);
        if (!training.x.empty()) chart.curves.push_back(std::move(training));
        if (!validation.x.empty()) chart.curves.push_back(std::move(validation));
    }
    if (least < most) chart.y_min = least - 0.03 * (most - least), chart.y_max = most + 0.03 * (most - least);
    return chart;
}

// Differences to the bf16 run, where both were evaluated.
Chart gap_chart(const std::vector<ReportedRun>& runs) {
    const double most_x = most_tokens(runs);
    const TokenUnit unit = token_unit(most_x);
    const auto reference =
        std::find_if(runs.begin(), runs.end(), [](const ReportedRun& r) { return recipe_of(r) == "bf16"; });
    Chart chart;
    if (reference == runs.end()) return chart;
    chart.x_label = unit.label;
    chart.x_max = most_x / unit.size;
    chart.y_label = "validation loss minus bf16's (nats per token)";
    chart.zero_line = true;
    const Curve base = validation_curve(*reference, unit.size);
    for (size_t i = 0; i < runs.size(); ++i) {
        if (recipe_of(runs[i]) == "bf16") continue;
        const Curve own = validation_curve(runs[i], unit.size);
        Curve gap;
        for (size_t j = 0; j < own.x.size(); ++j) {
            const auto same = std::find(base.x.begin(), base.x.end(), own.x[j]);
            if (same == base.x.end()) continue;
            gap.x.push_back(own.x[j]);
            gap.y.push_back(own.y[j] - base.y[static_cast<size_t>(same - base.x.begin())]);
        }
        if (gap.x.size() < 2) continue;
        gap.color = curve_color(i);
        gap.style = Curve::Style::marked;
        gap.title = label_of(runs, runs[i]);
        chart.curves.push_back(std::move(gap));
    }
    return chart;
}

}  // namespace nibble
