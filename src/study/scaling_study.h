// The whole of `nibble scaling fit`: the law, every scheme's eff_N and eff_D, bootstrap intervals for all of
// them, and the errors on runs that the fits have not seen.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "study/scaling_law.h"
#include "study/scaling_runs.h"

namespace nibble {

struct ScalingOptions {
    std::string law_from = "bf16";  // the scheme of stage 1
    double max_ratio = 1000;        // stage 1 uses runs with D/N below it
    std::vector<double> hold_out;   // sizes N that no fit sees: each means all runs within 5 % of it
    std::vector<std::string> n_only, d_only;  // schemes whose eff_D, or eff_N, is held at 1
    int resamples = 200;                      // of the bootstrap; 0: no intervals
    uint64_t seed = 0;                        // of the bootstrap
};

// From the 2.5th to the 97.5th percentile over resamples.
struct Interval {
    double low = 0, high = 0;
};

struct LawIntervals {
    Interval a, alpha, b, beta, gamma, e;
};

// |L(N, D) - loss|, in nats.
struct FitErrors {
    double mean = 0, largest = 0;
};

struct LawResult : LawFit {
    std::vector<ScalingRun> runs;  // that it was fitted to
    FitErrors errors;
    std::optional<LawIntervals> intervals;
};

struct SchemeResult : EfficiencyFit {
    std::string scheme;
    Fitted fitted = Fitted::both;
    std::vector<ScalingRun> runs;  // that it was fitted to
    std::string not_fitted;        // empty, or why the numbers mean nothing
    FitErrors errors;
    std::optional<Interval> n, d;  // of eff_N and eff_D, where fitted
};

// A run that its fit has not seen, and what the fit says of it.
struct UnseenRun {
    ScalingRun run;
    std::string reason;  // "held out", "D/N"
    double predicted = 0;
};

struct ScalingStudy {
    ScalingOptions options;
    LawResult law;
    std::vector<SchemeResult> schemes;  // all but law_from, in the order of the file
    std::vector<UnseenRun> unseen;

    // eff_N and eff_D of a scheme, 1 and 1 for law_from. Throws Error when it was not fitted.
    Efficiency efficiency_of(const std::string& scheme) const;
};

// The bootstrap draws runs with replacement, the law's and each scheme's apart, and repeats both stages, so
// that a scheme's interval holds the uncertainty of the law too. Draws are Philox (Purpose::resampling): the
// same for every number of threads. Throws Error with `where`, the file's name, when runs are missing.
ScalingStudy study_scaling(const std::vector<ScalingRun>& runs, const ScalingOptions& options,
                           const std::string& where);

}  // namespace nibble
