#include "study/minimize.h"

#include <nlopt.h>

#include <cmath>
#include <memory>

#include "core/error.h"

namespace nibble {

namespace {

struct Search {
    const SmoothFunction& function;
    std::vector<double> best_x;
    double best;
};

// What NLopt calls. Beyond where the function is finite there is a high, flat plain, which line searches
// leave.
double evaluate(unsigned count, const double* x, double* gradient, void* data) {
    constexpr double kPlain = 1e12;
    auto& search = *static_cast<Search*>(data);
    const std::span<double> slope = gradient == nullptr ? std::span<double>() : std::span(gradient, count);
    const double value = search.function(std::span(x, count), slope);
    bool finite = std::isfinite(value);
    for (double part : slope) finite = finite && std::isfinite(part);
    if (!finite) {
        for (double& part : slope) part = 0;
        return kPlain;
    }
    if (value < search.best) search.best = value, search.best_x.assign(x, x + count);
    return value;
}

}  // namespace

double minimize(Descent descent, const SmoothFunction& function, std::span<double> x, int most_evaluations) {
    const std::unique_ptr<nlopt_opt_s, void (*)(nlopt_opt)> optimizer(
        nlopt_create(descent == Descent::lbfgs ? NLOPT_LD_LBFGS : NLOPT_LD_SLSQP,
                     static_cast<unsigned>(x.size())),
        nlopt_destroy);
    require(optimizer != nullptr, "NLopt has no memory for {} unknowns", x.size());
    Search search{function, std::vector<double>(x.begin(), x.end()), INFINITY};
    nlopt_set_min_objective(optimizer.get(), evaluate, &search);
    nlopt_set_ftol_rel(optimizer.get(), 1e-10);
    nlopt_set_maxeval(optimizer.get(), most_evaluations);
    double value = 0;
    std::vector<double> at(x.begin(), x.end());
    // Its result code tells why it stopped; rounding that ends a descent early is no failure, since the best
    // point so far is kept.
    nlopt_optimize(optimizer.get(), at.data(), &value);
    std::copy(search.best_x.begin(), search.best_x.end(), x.begin());
    return search.best;
}

}  // namespace nibble
