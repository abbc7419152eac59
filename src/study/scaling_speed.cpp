#include "study/scaling_speed.h"

#include <algorithm>

namespace nibble {

namespace {

struct Range {
    double low, high;
    // The grid's round numbers may miss a size by a few percent.
    bool holds(double x) const { return low <= 1.05 * x && x <= 1.05 * high; }
};

template <typename Get>
Range range_of(const std::vector<ScalingRun>& runs, Get&& get) {
    Range range{get(runs.front()), get(runs.front())};
    for (const ScalingRun& run : runs)
        range = {std::min(range.low, get(run)), std::max(range.high, get(run))};
    return range;
}

}  // namespace

double loss_at_budget(const ScalingLaw& law, const Efficiency& efficiency, const Speed& speed,
                      double parameters, double tokens) {
    return law.loss(parameters * speed.forward, tokens * speed.training() / speed.forward, efficiency);
}

BudgetMap map_budgets(const ScalingStudy& study, const std::vector<SchemeSpeed>& speeds) {
    BudgetMap map;
    map.schemes.push_back({study.options.law_from, {}});
    map.schemes.insert(map.schemes.end(), speeds.begin(), speeds.end());
    map.sizes = {30e6, 100e6, 300e6, 1e9, 3e9, 10e9, 30e9, 100e9};
    map.ratios = {10, 20, 50, 100, 200, 500, 1000, 2000, 5000};
    const Range sizes = range_of(study.law.runs, [](const ScalingRun&run) { return run.parameters; }),
                ratios = range_of(study.law.runs, [](const ScalingRun&run) { return run.ratio(); });
    for (double size : map.sizes)
        for (double ratio : map.ratios) {
            BudgetMap::Cell cell{size, ratio, {}, 0, !sizes.holds(size) || !ratios.holds(ratio)};
            for (const SchemeSpeed& scheme : map.schemes)
                cell.losses.push_back(loss_at_budget(study.law.law, study.efficiency_of(scheme.scheme),
                                                     scheme.speed, size, size * ratio));
            cell.best = static_cast<size_t>(std::min_element(cell.losses.begin(), cell.losses.end()) -
                                            cell.losses.begin());
            map.cells.push_back(std::move(cell));
        }
    return map;
}

}  // namespace nibble
