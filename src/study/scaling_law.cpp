#include "study/scaling_law.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "core/core.h"
#include "study/minimize.h"

namespace nibble {

namespace {

enum Unknown : size_t { kLogA, kLogB, kAlpha, kBeta, kGamma, kLogE };

struct Point {
    double log_n, log_d, log_loss;
};

std::vector<Point> points_of(std::span<const ScalingRun> runs) {
    std::vector<Point> points;
    for (const ScalingRun& run : runs)
        points.push_back({std::log(run.parameters), std::log(run.tokens), std::log(run.loss)});
    return points;
}

// A constant that the runs do not fix may have left the range of double.
double finite_log(double value) { return std::log(std::clamp(value, 1e-300, 1e300)); }

LawUnknowns unknowns_of(const ScalingLaw& law) {
    return {finite_log(law.a), finite_log(law.b), law.alpha, law.beta, law.gamma, finite_log(law.e)};
}

ScalingLaw law_of(const LawUnknowns& x) {
    return {std::exp(x[kLogA]), x[kAlpha], std::exp(x[kLogB]), x[kBeta], x[kGamma], std::exp(x[kLogE])};
}

double log_sum(double x, double y) {
    const double larger = std::max(x, y);
    return larger + std::log1p(std::exp(std::min(x, y) - larger));
}

// In units of the square of delta, so that a descent sees numbers of moderate size.
struct Huber {
    double value, slope;  // slope: by the residual
};

Huber huber(double residual) {
    const double r = residual / kHuberDelta, size = std::abs(r);
    if (size <= 1) return {r * r / 2, r / kHuberDelta};
    return {size - 0.5, (r > 0 ? 1 : -1) / kHuberDelta};
}

double cost_of(double value) { return value * kHuberDelta * kHuberDelta; }

// Stage 1. N and D stand far from 1, so that ln A and alpha (ln B and beta) would move as one; the descent
// uses the two terms at the middle of the runs in place of ln A and ln B.
class LawProblem {
  public:
    explicit LawProblem(std::span<const ScalingRun> runs) : points_(points_of(runs)) {
        for (const Point& point : points_) {
            middle_n_ += point.log_n / static_cast<double>(points_.size());
            middle_d_ += point.log_d / static_cast<double>(points_.size());
        }
        for (Point& point : points_) point.log_n -= middle_n_, point.log_d -= middle_d_;
    }

    LawUnknowns centred(LawUnknowns x) const { return shifted(x, -1); }

    // Moves x, which is centred; returns the value there.
    double descend(Descent descent, LawUnknowns& x, int most_evaluations) const {
        const auto function = [this](std::span<const double> at, std::span<double> gradient) {
            LawUnknowns unknowns{}, slope{};
            std::copy(at.begin(), at.end(), unknowns.begin());
            std::fill(gradient.begin(), gradient.end(), 0.0);
            double sum = 0;
            for (const Point& point : points_) {
                const Huber h = huber(log_loss(unknowns, point.log_n, point.log_d, slope) - point.log_loss);
                sum += h.value;
                for (size_t i = 0; i < gradient.size(); ++i) gradient[i] += h.slope * slope[i];
            }
            return sum;
        };
        return minimize(descent, function, x, most_evaluations);
    }

    LawFit result(const LawUnknowns& x, double value) const {
        return {law_of(shifted(x, 1)), cost_of(value)};
    }

  private:
    LawUnknowns shifted(LawUnknowns x, double direction) const {
        x[kLogA] += direction * x[kAlpha] * middle_n_;
        x[kLogB] += direction * x[kBeta] * middle_d_;
        return x;
    }

    std::vector<Point> points_;
    double middle_n_ = 0, middle_d_ = 0;
};

std::vector<LawUnknowns> published_starts() {
    std::vector<LawUnknowns> starts;
    for (double a : {0.0, 5.0, 10.0})
        for (double b : {0.0, 5.0, 10.0})
            for (double alpha : {0.0, 0.5, 1.0})
                for (double beta : {0.0, 0.5, 1.0})
                    for (double gamma : {0.0, 0.5, 1.0})
                        for (double e : {0.0, 0.5}) starts.push_back({a, b, alpha, beta, gamma, e});
    return starts;
}

// A descent may stop early where many residuals are near the kink; started again it goes on.
double descend_to_the_end(const LawProblem& problem, LawUnknowns& x) {
    double value = INFINITY;
    for (int round = 0; round < 5; ++round) {
        const double before = value;
        value = problem.descend(Descent::slsqp, x, 3000);
        if (!(value < before * (1 - 1e-6))) break;
    }
    return value;
}

}  // namespace

double ScalingLaw::loss(double parameters, double tokens, const Efficiency& efficiency) const {
    return std::pow(
               a / std::pow(parameters * efficiency.n, alpha) + b / std::pow(tokens * efficiency.d, beta),
               gamma) +
           e;
}

double log_loss(const LawUnknowns& x, double log_parameters, double log_tokens,
                std::span<double, 6> gradient) {
    const double from_n = x[kLogA] - x[kAlpha] * log_parameters, from_d = x[kLogB] - x[kBeta] * log_tokens;
    const double inner = log_sum(from_n, from_d);                   // ln of the sum in brackets
    const double result = log_sum(x[kGamma] * inner, x[kLogE]);     // ln L
    const double reducible = std::exp(x[kGamma] * inner - result);  // its share in L
    gradient[kLogA] = reducible * x[kGamma] * std::exp(from_n - inner);
    gradient[kLogB] = reducible * x[kGamma] * std::exp(from_d - inner);
    gradient[kAlpha] = -gradient[kLogA] * log_parameters;
    gradient[kBeta] = -gradient[kLogB] * log_tokens;
    gradient[kGamma] = reducible * inner;
    gradient[kLogE] = 1 - reducible;
    return result;
}

std::string why_not_fitted(std::span<const ScalingRun> runs, size_t least) {
    std::set<std::pair<double, double>> different;
    std::set<double> sizes, ratios;
    for (const ScalingRun& run : runs) {
        different.insert({run.parameters, run.tokens});
        sizes.insert(run.parameters);
        ratios.insert(std::round(run.ratio() * 100));
    }
    if (different.size() < least)
        return fmt::format("{} different runs, and {} are needed", different.size(), least);
    if (least > 2 && sizes.size() < 2) return "all of one size";
    if (least > 2 && ratios.size() < 2) return "all of one ratio D/N";
    return "";
}

LawFit fit_law(std::span<const ScalingRun> runs) {
    const LawProblem problem(runs);
    struct Candidate {
        double value;
        LawUnknowns x;
    };
    std::vector<Candidate> candidates;
    for (const LawUnknowns& start : published_starts())
        candidates.push_back({INFINITY, problem.centred(start)});
    parallel_for(static_cast<int64_t>(candidates.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            Candidate& candidate = candidates[static_cast<size_t>(i)];
            candidate.value = problem.descend(Descent::lbfgs, candidate.x, 60);
        }
    });
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Candidate& x, const Candidate& y) { return x.value < y.value; });
    candidates.resize(24);
    parallel_for(static_cast<int64_t>(candidates.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            Candidate& candidate = candidates[static_cast<size_t>(i)];
            candidate.value = descend_to_the_end(problem, candidate.x);
        }
    });
    const auto best =
        std::min_element(candidates.begin(), candidates.end(),
                         [](const Candidate& x, const Candidate& y) { return x.value < y.value; });
    require(std::isfinite(best->value), "the scaling law fits none of its {} starts; are the losses in nats?",
            published_starts().size());
    return problem.result(best->x, best->value);
}

LawFit refit_law(std::span<const ScalingRun> runs, const ScalingLaw& start) {
    const LawProblem problem(runs);
    LawUnknowns x = problem.centred(unknowns_of(start));
    const double value = descend_to_the_end(problem, x);
    return problem.result(x, value);
}

EfficiencyFit fit_efficiency(const ScalingLaw& law, std::span<const ScalingRun> runs, Fitted fitted) {
    const std::vector<Point> points = points_of(runs);
    const LawUnknowns unknowns = unknowns_of(law);
    const bool moves_n = fitted != Fitted::d_only, moves_d = fitted != Fitted::n_only;
    // x: ln eff_N and ln eff_D, or the one of them that moves.
    const auto both = [&](std::span<const double> x) {
        return std::pair(moves_n ? x.front() : 0.0, moves_d ? x.back() : 0.0);
    };
    const auto function = [&](std::span<const double> x, std::span<double> gradient) {
        const std::pair<double, double> logs = both(x);
        LawUnknowns slope{};
        double sum = 0, slope_n = 0, slope_d = 0;
        for (const Point& point : points) {
            const Huber h =
                huber(log_loss(unknowns, point.log_n + logs.first, point.log_d + logs.second, slope) -
                      point.log_loss);
            sum += h.value;
            slope_n -= h.slope * slope[kLogA] * law.alpha;
            slope_d -= h.slope * slope[kLogB] * law.beta;
        }
        if (gradient.empty()) return sum;
        if (moves_d) gradient.back() = slope_d;
        if (moves_n) gradient.front() = slope_n;
        return sum;
    };
    EfficiencyFit best{{}, INFINITY};
    for (double start_n : {0.9, 0.3})
        for (double start_d : {0.9, 0.3}) {
            std::vector<double> x;
            if (moves_n) x.push_back(std::log(start_n));
            if (moves_d) x.push_back(std::log(start_d));
            const double cost = cost_of(minimize(Descent::slsqp, function, x, 500));
            if (!(cost < best.cost)) continue;
            best = {{std::exp(both(x).first), std::exp(both(x).second)}, cost};
        }
    return best;
}

}  // namespace nibble
