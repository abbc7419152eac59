// The scaling law of Quartet (arXiv 2505.14669, eq. 1) and its two fits.
//
//   L(N, D) = (A / (N eff_N)^alpha + B / (D eff_D)^beta)^gamma + E
//
// L: validation loss in nats; N: parameters without embeddings; D: training tokens. Stage 1 fits the six
// constants to runs in full precision, where eff_N = eff_D = 1. Stage 2 holds them and fits, for one scheme,
// the share of its parameters (eff_N) and of its data (eff_D) that count.
//
// Both minimise the sum of Huber losses of r = ln L(N, D) - ln loss: r^2 / 2 up to |r| = 1e-4, and
// 1e-4 (|r| - 1e-4 / 2) beyond (appendix of the paper, and its published notebook).
#pragma once

#include <array>
#include <span>
#include <string>

#include "study/scaling_runs.h"

namespace nibble {

constexpr double kHuberDelta = 1e-4;

struct Efficiency {
    double n = 1, d = 1;  // eff_N, eff_D
};

struct ScalingLaw {
    double a = 0, alpha = 0, b = 0, beta = 0, gamma = 0, e = 0;

    double loss(double parameters, double tokens, const Efficiency& efficiency = {}) const;
};

// The six numbers that stage 1 moves: ln A, ln B, alpha, beta, gamma, ln E.
using LawUnknowns = std::array<double, 6>;
// ln L, and its derivatives by the six unknowns. Finite wherever L is, however far the start.
double log_loss(const LawUnknowns& unknowns, double log_parameters, double log_tokens,
                std::span<double, 6> gradient);

struct LawFit {
    ScalingLaw law;
    double cost = 0;  // the sum of Huber losses
};

// Empty when the runs can be fitted: at least `least` that differ in N or D, of two or more N, and of two or
// more D / N. Otherwise what is missing.
std::string why_not_fitted(std::span<const ScalingRun> runs, size_t least);

// Stage 1. Starts from the paper's 486 points (its notebook: ln A and ln B in {0, 5, 10}, alpha, beta and
// gamma in {0, 1/2, 1}, ln E in {0, 1/2}) and follows the most promising to their ends.
LawFit fit_law(std::span<const ScalingRun> runs);
// The same from one start, for resamples of runs whose law is known.
LawFit refit_law(std::span<const ScalingRun> runs, const ScalingLaw& start);

// Which of the two stage 2 fits; the other is 1. The paper fits only eff_N where only the forward is
// quantised, and only eff_D where only the backward is.
enum class Fitted : unsigned char { both, n_only, d_only };

struct EfficiencyFit {
    Efficiency efficiency;
    double cost = 0;
};

// Stage 2.
EfficiencyFit fit_efficiency(const ScalingLaw& law, std::span<const ScalingRun> runs,
                             Fitted fitted = Fitted::both);

}  // namespace nibble
