// Which scheme to train for a budget, when the cheaper ones are also faster (arXiv 2505.14669, section 4.2).
//
// A budget is what the law's scheme (full precision) could afford: a model of N parameters to run, and D
// tokens to train it with. A scheme whose forward is sp_fw times as fast, and its backward sp_bw times, runs
// a model of N sp_fw parameters at the same cost of inference. The forward is a third of a training step, so
// training is sp_tr = 1 / ((1/3) / sp_fw + (2/3) / sp_bw) times as fast; the same training time is then
// D sp_tr / sp_fw tokens through the larger model. The scheme reaches
//
//   L(N sp_fw, D sp_tr / sp_fw; eff_N, eff_D)
//
// and the best scheme for (N, D) is the one for which this is smallest.
#pragma once

#include <string>
#include <vector>

#include "study/scaling_study.h"

namespace nibble {

// Relative to the law's scheme.
struct Speed {
    double forward = 1, backward = 1;
    double training() const { return 1 / (1 / (3 * forward) + 2 / (3 * backward)); }
};

struct SchemeSpeed {
    std::string scheme;
    Speed speed;
};

double loss_at_budget(const ScalingLaw& law, const Efficiency& efficiency, const Speed& speed,
                      double parameters, double tokens);

// The best scheme for every budget of a grid.
struct BudgetMap {
    struct Cell {
        double parameters = 0, ratio = 0;  // N and D / N of the budget
        std::vector<double> losses;        // one a scheme
        size_t best = 0;
        bool beyond_runs = false;  // N or D / N outside those of the runs that the law was fitted to
    };
    std::vector<SchemeSpeed> schemes;  // the law's scheme is the first, with speed 1
    std::vector<double> sizes, ratios;
    std::vector<Cell> cells;  // size by size
};

// Throws Error when a scheme was not fitted.
BudgetMap map_budgets(const ScalingStudy& study, const std::vector<SchemeSpeed>& speeds);

}  // namespace nibble
