#include "study/scaling_report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "core/core.h"

namespace nibble {

using Json = nlohmann::ordered_json;

namespace {

// Four digits that can be read: "0.5850", "5914.2", "1.430e+05".
std::string figure(double value) {
    if (std::abs(value) >= 1e4 || std::abs(value) < 1e-3) return fmt::format("{:.3e}", value);
    return std::abs(value) >= 100 ? fmt::format("{:.1f}", value) : fmt::format("{:.4f}", value);
}

std::string text_of(const std::optional<Interval>& interval) {
    return interval ? fmt::format("{} to {}", figure(interval->low), figure(interval->high)) : "–";
}

struct Constant {
    const char* name;
    double ScalingLaw::*value;
    Interval LawIntervals::*interval;
};

constexpr Constant kConstants[] = {
    {"A", &ScalingLaw::a, &LawIntervals::a},
    {"alpha", &ScalingLaw::alpha, &LawIntervals::alpha},
    {"B", &ScalingLaw::b, &LawIntervals::b},
    {"beta", &ScalingLaw::beta, &LawIntervals::beta},
    {"gamma", &ScalingLaw::gamma, &LawIntervals::gamma},
    {"E", &ScalingLaw::e, &LawIntervals::e},
};

std::string interval_heading(const ScalingStudy& study) {
    return fmt::format("95 % of {} resamples", study.options.resamples);
}

std::string law_text(const ScalingStudy& study) {
    const LawResult& law = study.law;
    std::set<double> sizes;
    for (const ScalingRun& run : law.runs) sizes.insert(run.parameters);
    std::string text = fmt::format(
        "L(N, D) = (A / (N eff_N)^alpha + B / (D eff_D)^beta)^gamma + E, in nats (arXiv 2505.14669)\n\n"
        "law: {} runs of {}, {} sizes from {} to {}, D/N below {}\n",
        law.runs.size(), study.options.law_from, sizes.size(), short_count(*sizes.begin()),
        short_count(*sizes.rbegin()), study.options.max_ratio);
    TableRows rows = {{"constant", "value"}};
    if (law.intervals) rows[0].push_back(interval_heading(study));
    for (const Constant& constant : kConstants) {
        rows.push_back({constant.name, figure(law.law.*constant.value)});
        if (law.intervals) rows.back().push_back(text_of((*law.intervals).*constant.interval));
    }
    return text + aligned(rows) +
           fmt::format("error on these runs: mean {:.4f}, largest {:.4f}; Huber cost {:.3e}\n",
                       law.errors.mean, law.errors.largest, law.cost);
}

std::string schemes_text(const ScalingStudy& study) {
    if (study.schemes.empty()) return "";
    const bool intervals = study.options.resamples > 0;
    const std::string heading = interval_heading(study);
    TableRows rows = {{"scheme", "runs", "eff_N"}};
    if (intervals) rows[0].push_back(heading);
    rows[0].emplace_back("eff_D");
    if (intervals) rows[0].push_back(heading);
    rows[0].emplace_back("mean error");
    rows[0].emplace_back("largest");
    std::string remarks;
    for (const SchemeResult& scheme : study.schemes) {
        const bool fitted = scheme.not_fitted.empty();
        if (!fitted) remarks += fmt::format("{} was not fitted: {}\n", scheme.scheme, scheme.not_fitted);
        const auto cell = [&](double value, bool held) {
            if (!fitted) return std::string("–");
            return held ? std::string("1 (held)") : fmt::format("{:.4f}", value);
        };
        std::vector<std::string> row = {scheme.scheme, std::to_string(scheme.runs.size())};
        row.push_back(cell(scheme.efficiency.n, scheme.fitted == Fitted::d_only));
        if (intervals) row.push_back(text_of(scheme.n));
        row.push_back(cell(scheme.efficiency.d, scheme.fitted == Fitted::n_only));
        if (intervals) row.push_back(text_of(scheme.d));
        row.push_back(fitted ? fmt::format("{:.4f}", scheme.errors.mean) : "–");
        row.push_back(fitted ? fmt::format("{:.4f}", scheme.errors.largest) : "–");
        rows.push_back(std::move(row));
    }
    return "\nschemes, with the law above\n" + aligned(rows) + remarks;
}

std::string unseen_text(const ScalingStudy& study) {
    if (study.unseen.empty()) return "";
    TableRows rows = {{"scheme", "N", "D", "D/N", "left out by", "loss", "predicted", "error"}};
    for (const UnseenRun& unseen : study.unseen) {
        const ScalingRun& run = unseen.run;
        rows.push_back({run.scheme, short_count(run.parameters), short_count(run.tokens),
                        fmt::format("{:.0f}", run.ratio()), unseen.reason, fmt::format("{:.4f}", run.loss),
                        fmt::format("{:.4f}", unseen.predicted),
                        fmt::format("{:+.4f}", unseen.predicted - run.loss)});
    }
    return "\nruns that the fits have not seen\n" + aligned(rows);
}

// a, b, c ... in place of names that would not fit.
std::string letter(size_t index) {
    return index < 26 ? std::string(1, static_cast<char>('a' + index)) : std::to_string(index);
}

Json to_json(const Interval& interval) { return {interval.low, interval.high}; }
Json to_json(const FitErrors& errors) { return {{"mean", errors.mean}, {"largest", errors.largest}}; }

Json scheme_json(const SchemeResult& scheme) {
    Json json = {{"scheme", scheme.scheme}, {"runs", scheme.runs.size()}};
    if (!scheme.not_fitted.empty()) {
        json["not_fitted"] = scheme.not_fitted;
        return json;
    }
    json["eff_n"] = scheme.efficiency.n;
    json["eff_d"] = scheme.efficiency.d;
    json["held"] = scheme.fitted == Fitted::n_only   ? Json("eff_d")
                   : scheme.fitted == Fitted::d_only ? Json("eff_n")
                                                     : Json();
    json["huber_cost"] = scheme.cost;
    json["errors"] = to_json(scheme.errors);
    if (scheme.n) json["eff_n_interval"] = to_json(*scheme.n);
    if (scheme.d) json["eff_d_interval"] = to_json(*scheme.d);
    return json;
}

// The fit for one size, over the ratios of its runs.
Curve fitted_line(const ScalingStudy& study, const Efficiency& efficiency, double size, double from,
                  double to) {
    constexpr int kSteps = 40;
    Curve curve;
    curve.style = Curve::Style::line;
    for (int i = 0; i <= kSteps; ++i) {
        const double ratio = from * std::pow(to / from, static_cast<double>(i) / kSteps);
        curve.x.push_back(ratio);
        curve.y.push_back(study.law.law.loss(size, size * ratio, efficiency));
    }
    return curve;
}

void add_curves(Chart& chart, const ScalingStudy& study, const std::string& scheme,
                const std::vector<ScalingRun>& runs, size_t index) {
    const std::string color(curve_color(index));
    std::map<double, std::vector<ScalingRun>> by_size;
    for (const ScalingRun& run : runs) by_size[run.parameters].push_back(run);
    Curve points;
    points.title = scheme;
    points.color = color;
    points.style = Curve::Style::points;
    for (const auto& entry : by_size) {
        double from = INFINITY, to = 0;
        for (const ScalingRun& run : entry.second) {
            points.x.push_back(run.ratio());
            points.y.push_back(run.loss);
            from = std::min(from, run.ratio()), to = std::max(to, run.ratio());
        }
        if (!(from < to)) continue;
        chart.curves.push_back(fitted_line(study, study.efficiency_of(scheme), entry.first, from, to));
        chart.curves.back().color = color;
    }
    chart.curves.push_back(std::move(points));
}

}  // namespace

std::string short_count(double count) {
    constexpr std::pair<double, const char*> kUnits[] = {{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "k"}};
    for (const auto& unit : kUnits)
        if (count >= 0.9995 * unit.first) return fmt::format("{:.3g}{}", count / unit.first, unit.second);
    return fmt::format("{:.3g}", count);
}

std::string to_text(const ScalingStudy& study) {
    return law_text(study) + schemes_text(study) + unseen_text(study);
}

std::string to_text(const BudgetMap& map) {
    TableRows speeds = {{"", "scheme", "forward", "backward", "training"}};
    for (size_t i = 0; i < map.schemes.size(); ++i) {
        const SchemeSpeed& scheme = map.schemes[i];
        speeds.push_back({letter(i), scheme.scheme, fmt::format("{:.2f}", scheme.speed.forward),
                          fmt::format("{:.2f}", scheme.speed.backward),
                          fmt::format("{:.2f}", scheme.speed.training())});
    }
    TableRows rows = {{"N"}};
    for (double ratio : map.ratios) rows[0].push_back(fmt::format("D/N={:.0f}", ratio));
    size_t beyond = 0;
    for (size_t i = 0; i < map.cells.size(); ++i) {
        const BudgetMap::Cell& cell = map.cells[i];
        if (i % map.ratios.size() == 0) rows.push_back({short_count(cell.parameters)});
        beyond += cell.beyond_runs ? 1 : 0;
        std::string text = letter(cell.best) + (cell.beyond_runs ? "?" : "");
        if (cell.best > 0) text += fmt::format(" {:+.3f}", cell.losses[cell.best] - cell.losses[0]);
        rows.back().push_back(std::move(text));
    }
    return "\nspeeds, relative to the first\n" + aligned(speeds) +
           "\nthe best scheme for the budget of N parameters and D tokens in the first scheme, and its loss "
           "minus that of the first\n" +
           aligned(rows) + (beyond > 0 ? "? beyond the sizes or ratios that the law was fitted to\n" : "");
}

Json to_json(const ScalingStudy& study) {
    Json law = {{"scheme", study.options.law_from}, {"runs", study.law.runs.size()}};
    Json intervals;
    for (const Constant& constant : kConstants) {
        law[constant.name] = study.law.law.*constant.value;
        if (study.law.intervals)
            intervals[constant.name] = to_json((*study.law.intervals).*constant.interval);
    }
    law["huber_cost"] = study.law.cost;
    law["errors"] = to_json(study.law.errors);
    if (study.law.intervals) law["intervals"] = intervals;
    Json schemes = Json::array(), unseen = Json::array();
    for (const SchemeResult& scheme : study.schemes) schemes.push_back(scheme_json(scheme));
    for (const UnseenRun& run : study.unseen)
        unseen.push_back({{"scheme", run.run.scheme},
                          {"parameters", run.run.parameters},
                          {"tokens", run.run.tokens},
                          {"left_out_by", run.reason},
                          {"loss", run.run.loss},
                          {"predicted", run.predicted}});
    return {{"law", law},
            {"schemes", schemes},
            {"unseen", unseen},
            {"max_ratio", study.options.max_ratio},
            {"hold_out", study.options.hold_out},
            {"resamples", study.options.resamples},
            {"seed", study.options.seed}};
}

Json to_json(const BudgetMap& map) {
    Json schemes = Json::array(), cells = Json::array();
    for (const SchemeSpeed& scheme : map.schemes)
        schemes.push_back({{"scheme", scheme.scheme},
                           {"forward", scheme.speed.forward},
                           {"backward", scheme.speed.backward},
                           {"training", scheme.speed.training()}});
    for (const BudgetMap::Cell& cell : map.cells)
        cells.push_back({{"parameters", cell.parameters},
                         {"ratio", cell.ratio},
                         {"losses", cell.losses},
                         {"best", map.schemes[cell.best].scheme},
                         {"beyond_runs", cell.beyond_runs}});
    return {{"schemes", schemes}, {"cells", cells}};
}

Chart scaling_chart(const ScalingStudy& study) {
    Chart chart;
    chart.x_label = "training tokens per parameter, D/N";
    chart.y_label = "validation loss (nats per token)";
    chart.log_x = true;
    std::vector<ScalingRun> law_runs = study.law.runs;
    for (const UnseenRun& unseen : study.unseen)
        if (unseen.run.scheme == study.options.law_from) law_runs.push_back(unseen.run);
    add_curves(chart, study, study.options.law_from, law_runs, 0);
    for (size_t i = 0; i < study.schemes.size(); ++i) {
        const SchemeResult& scheme = study.schemes[i];
        if (scheme.not_fitted.empty()) add_curves(chart, study, scheme.scheme, scheme.runs, i + 1);
    }
    return chart;
}

}  // namespace nibble
