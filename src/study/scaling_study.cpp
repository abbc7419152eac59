#include "study/scaling_study.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "core/core.h"
#include "numerics/philox.h"

namespace nibble {

namespace {

constexpr size_t kLawRuns = 7;  // one more than constants

bool held_out(const ScalingRun& run, const std::vector<double>& sizes) {
    return std::any_of(sizes.begin(), sizes.end(),
                       [&](double size) { return std::abs(run.parameters - size) <= 0.05 * size; });
}

std::vector<std::string> schemes_of(const std::vector<ScalingRun>& runs) {
    std::vector<std::string> names;
    for (const ScalingRun& run : runs)
        if (std::find(names.begin(), names.end(), run.scheme) == names.end()) names.push_back(run.scheme);
    return names;
}

void check_options(const std::vector<ScalingRun>& runs, const ScalingOptions& options,
                   const std::string& where) {
    const std::vector<std::string> names = schemes_of(runs);
    std::vector<std::string> asked = {options.law_from};
    asked.insert(asked.end(), options.n_only.begin(), options.n_only.end());
    asked.insert(asked.end(), options.d_only.begin(), options.d_only.end());
    for (const std::string& name : asked)
        require(std::find(names.begin(), names.end(), name) != names.end(),
                "{}: there is no scheme '{}'; it has {}", where, name, fmt::join(names, ", "));
    for (const double size : options.hold_out) {
        std::set<double> sizes;
        for (const ScalingRun& run : runs) sizes.insert(run.parameters);
        require(std::any_of(runs.begin(), runs.end(),
                            [&](const ScalingRun& run) { return held_out(run, {size}); }),
                "{}: no run is within 5 % of {:.0f} parameters, which were to be held out; sizes: {:.0f}",
                where, size, fmt::join(sizes, ", "));
    }
}

FitErrors errors_of(const ScalingLaw& law, const Efficiency& efficiency,
                    const std::vector<ScalingRun>& runs) {
    FitErrors errors;
    for (const ScalingRun& run : runs) {
        const double error = std::abs(law.loss(run.parameters, run.tokens, efficiency) - run.loss);
        errors.mean += error / static_cast<double>(runs.size());
        errors.largest = std::max(errors.largest, error);
    }
    return errors;
}

// As many runs, drawn with replacement. Draws that could not be fitted are drawn again; empty when a
// thousand in a row could not.
std::vector<ScalingRun> resample(const std::vector<ScalingRun>& runs, size_t least, uint64_t seed, int number,
                                 size_t scheme) {
    std::vector<ScalingRun> drawn(runs.size());
    for (uint64_t attempt = 0; attempt < 1000; ++attempt) {
        for (size_t i = 0; i < runs.size(); ++i) {
            const Philox draw = philox_draw(seed, Purpose::resampling, (attempt << 24) + i,
                                            static_cast<uint32_t>(number), static_cast<uint16_t>(scheme));
            drawn[i] = runs[static_cast<size_t>(uint64_t{draw.word[0]} * runs.size() >> 32)];
        }
        if (why_not_fitted(drawn, least).empty()) return drawn;
    }
    return {};
}

// The p-th quantile, 0 to 1, between the two nearest values.
double quantile(const std::vector<double>& sorted, double p) {
    const double at = p * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<size_t>(at);
    const size_t above = std::min(below + 1, sorted.size() - 1);
    if (sorted[below] == sorted[above]) return sorted[below];  // both may be infinite
    return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

template <typename Row, typename Get>
Interval interval_of(const std::vector<Row>& rows, Get&& get) {
    std::vector<double> values;
    for (const Row& row : rows) values.push_back(get(row));
    std::sort(values.begin(), values.end());
    return {quantile(values, 0.025), quantile(values, 0.975)};
}

// One resample, both stages.
struct Resampled {
    ScalingLaw law;
    std::vector<Efficiency> schemes;  // in the order of the study's
};

size_t least_runs(Fitted fitted) { return fitted == Fitted::both ? 2 : 1; }

Resampled repeat(const ScalingStudy& study, int number) {
    const uint64_t seed = study.options.seed;
    const std::vector<ScalingRun> drawn = resample(study.law.runs, kLawRuns - 1, seed, number, 0);
    require(!drawn.empty(), "the bootstrap finds no resample of {}'s {} runs that can be fitted; turn it off",
            study.options.law_from, study.law.runs.size());
    Resampled result{refit_law(drawn, study.law.law).law, {}};
    for (size_t i = 0; i < study.schemes.size(); ++i) {
        const SchemeResult& scheme = study.schemes[i];
        Efficiency& efficiency = result.schemes.emplace_back();
        if (!scheme.not_fitted.empty()) continue;
        efficiency =
            fit_efficiency(result.law, resample(scheme.runs, least_runs(scheme.fitted), seed, number, i + 1),
                           scheme.fitted)
                .efficiency;
    }
    return result;
}

void add_intervals(ScalingStudy& study) {
    std::vector<Resampled> rows(static_cast<size_t>(study.options.resamples));
    parallel_for(study.options.resamples, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            rows[static_cast<size_t>(i)] = repeat(study, static_cast<int>(i));
    });
    const auto of_law = [&](double ScalingLaw::*constant) {
        return interval_of(rows, [&](const Resampled& row) { return row.law.*constant; });
    };
    study.law.intervals =
        LawIntervals{of_law(&ScalingLaw::a),    of_law(&ScalingLaw::alpha), of_law(&ScalingLaw::b),
                     of_law(&ScalingLaw::beta), of_law(&ScalingLaw::gamma), of_law(&ScalingLaw::e)};
    for (size_t i = 0; i < study.schemes.size(); ++i) {
        SchemeResult& scheme = study.schemes[i];
        if (!scheme.not_fitted.empty()) continue;
        if (scheme.fitted != Fitted::d_only)
            scheme.n = interval_of(rows, [&](const Resampled& row) { return row.schemes[i].n; });
        if (scheme.fitted != Fitted::n_only)
            scheme.d = interval_of(rows, [&](const Resampled& row) { return row.schemes[i].d; });
    }
}

LawResult fit_law_of(const std::vector<ScalingRun>& runs, const std::string& where,
                     const ScalingOptions& options) {
    LawResult result;
    for (const ScalingRun& run : runs)
        if (run.scheme == options.law_from && run.ratio() < options.max_ratio &&
            !held_out(run, options.hold_out))
            result.runs.push_back(run);
    const std::string missing = why_not_fitted(result.runs, kLawRuns);
    require(missing.empty(), "{}: the law cannot be fitted to the runs of {} with D/N below {}{}: {}", where,
            options.law_from, options.max_ratio, options.hold_out.empty() ? "" : " that are not held out",
            missing);
    static_cast<LawFit&>(result) = fit_law(result.runs);
    const ScalingLaw& law = result.law;
    constexpr double kFalls = 1e-3;
    require(
        std::min({law.alpha, law.beta, law.gamma}) > kFalls,
        "{}: the losses of {} do not fall with N and with D (alpha {:.3g}, beta {:.3g}, gamma {:.3g}), so "
        "there is no law to fit; check the columns",
        where, options.law_from, law.alpha, law.beta, law.gamma);
    result.errors = errors_of(result.law, {}, result.runs);
    return result;
}

SchemeResult fit_scheme(const std::string& name, const ScalingLaw& law, const std::vector<ScalingRun>& runs,
                        const ScalingOptions& options) {
    const auto named = [&](const std::vector<std::string>& names) {
        return std::find(names.begin(), names.end(), name) != names.end();
    };
    SchemeResult result;
    result.scheme = name;
    result.fitted = named(options.n_only)   ? Fitted::n_only
                    : named(options.d_only) ? Fitted::d_only
                                            : Fitted::both;
    for (const ScalingRun& run : runs)
        if (run.scheme == name && !held_out(run, options.hold_out)) result.runs.push_back(run);
    result.not_fitted = why_not_fitted(result.runs, least_runs(result.fitted));
    if (!result.not_fitted.empty()) return result;
    static_cast<EfficiencyFit&>(result) = fit_efficiency(law, result.runs, result.fitted);
    result.errors = errors_of(law, result.efficiency, result.runs);
    return result;
}

std::vector<UnseenRun> unseen_runs(const ScalingStudy& study, const std::vector<ScalingRun>& runs) {
    std::vector<UnseenRun> unseen;
    for (const ScalingRun& run : runs) {
        const bool held = held_out(run, study.options.hold_out),
                   beyond = run.scheme == study.options.law_from && run.ratio() >= study.options.max_ratio;
        if (!held && !beyond) continue;
        const auto scheme = std::find_if(study.schemes.begin(), study.schemes.end(),
                                         [&](const SchemeResult& s) { return s.scheme == run.scheme; });
        if (scheme != study.schemes.end() && !scheme->not_fitted.empty()) continue;
        const double predicted =
            study.law.law.loss(run.parameters, run.tokens, study.efficiency_of(run.scheme));
        unseen.push_back({run, held ? "held out" : "D/N", predicted});
    }
    return unseen;
}

}  // namespace

Efficiency ScalingStudy::efficiency_of(const std::string& scheme) const {
    if (scheme == options.law_from) return {};
    for (const SchemeResult& result : schemes) {
        if (result.scheme != scheme) continue;
        require(result.not_fitted.empty(), "scheme '{}' was not fitted: {}", scheme, result.not_fitted);
        return result.efficiency;
    }
    std::vector<std::string> names = {options.law_from};
    for (const SchemeResult& result : schemes) names.push_back(result.scheme);
    fail("there is no scheme '{}' among the runs; there are {}", scheme, fmt::join(names, ", "));
}

ScalingStudy study_scaling(const std::vector<ScalingRun>& runs, const ScalingOptions& options,
                           const std::string& where) {
    check_options(runs, options, where);
    ScalingStudy study;
    study.options = options;
    study.law = fit_law_of(runs, where, options);
    for (const std::string& name : schemes_of(runs))
        if (name != options.law_from) study.schemes.push_back(fit_scheme(name, study.law.law, runs, options));
    study.unseen = unseen_runs(study, runs);
    if (options.resamples > 0) add_intervals(study);
    return study;
}

}  // namespace nibble
