// The smallest value of a smooth function, found by NLopt from one start. Deterministic.
#pragma once

#include <functional>
#include <span>
#include <vector>

namespace nibble {

// f(x), with its gradient written to `gradient` unless that is empty.
using SmoothFunction = std::function<double(std::span<const double> x, std::span<double> gradient)>;

// lbfgs: cheap steps, for a first look. slsqp: keeps a dense model of the curvature and ends closer.
enum class Descent : unsigned char { lbfgs, slsqp };

// Moves `x` downhill until nothing is gained or `most_evaluations` are spent; returns f there. A start where
// f is not finite stays where it is.
double minimize(Descent descent, const SmoothFunction& function, std::span<double> x, int most_evaluations);

}  // namespace nibble
