// nibble scaling: the scaling law of finished runs.
#include <charconv>
#include <cmath>
#include <memory>
#include <optional>

#include "cli/commands.h"
#include "study/study.h"

namespace nibble {

namespace {

struct Options {
    fs::path runs, json, plot;
    ScalingOptions study;
    std::vector<std::string> hold_out, speeds;
};

std::optional<double> positive_number(std::string_view text) {
    double value = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec != std::errc() || result.ptr != text.data() + text.size() || !(value > 0) ||
        !std::isfinite(value))
        return {};
    return value;
}

// "430M" -> 430e6
double size_of_model(const std::string& text) {
    constexpr std::pair<char, double> kUnits[] = {{'k', 1e3}, {'K', 1e3}, {'M', 1e6}, {'B', 1e9}};
    double unit = 1;
    std::string_view digits = text;
    for (const auto& known : kUnits)
        if (text.ends_with(known.first)) unit = known.second, digits.remove_suffix(1);
    const std::optional<double> value = positive_number(digits);
    if (!value) fail_usage("--hold-out '{}': a size is a number of parameters, such as 430M", text);
    return *value * unit;
}

// "quartet=2,1.5"
SchemeSpeed parse_speed(const std::string& text) {
    const size_t equals = text.rfind('='), comma = text.rfind(',');
    if (equals != std::string::npos && comma != std::string::npos && equals < comma) {
        const std::string_view all = text;
        const std::optional<double> forward = positive_number(all.substr(equals + 1, comma - equals - 1)),
                                    backward = positive_number(all.substr(comma + 1));
        if (forward && backward) return {text.substr(0, equals), {*forward, *backward}};
    }
    fail_usage("--speed '{}': write SCHEME=FORWARD,BACKWARD, such as quartet-sr=2,1.5", text);
}

std::vector<SchemeSpeed> parse_speeds(const Options& options) {
    std::vector<SchemeSpeed> speeds;
    for (const std::string& text : options.speeds) {
        SchemeSpeed speed = parse_speed(text);
        if (speed.scheme == options.study.law_from)
            fail_usage("--speed '{}': speeds are relative to {}, whose own is 1", text, speed.scheme);
        for (const SchemeSpeed& other : speeds)
            if (other.scheme == speed.scheme) fail_usage("--speed: {} is there twice", speed.scheme);
        speeds.push_back(std::move(speed));
    }
    return speeds;
}

// eff_N is all that a quantised forward costs, and eff_D all that a quantised backward does; never both.
void check_held(const ScalingOptions& study) {
    for (const std::string& scheme : study.n_only)
        if (std::find(study.d_only.begin(), study.d_only.end(), scheme) != study.d_only.end())
            fail_usage("{} is both --forward-only and --backward-only; leave both out to fit both", scheme);
}

void fit(Options options) {
    check_held(options.study);
    constexpr int kFewest = 40;  // a 95 % interval leaves one value on each side
    if (options.study.resamples > 0 && options.study.resamples < kFewest)
        fail_usage("--bootstrap {}: 95 % intervals need {} resamples or more; 0 turns them off",
                   options.study.resamples, kFewest);
    for (const std::string& size : options.hold_out) options.study.hold_out.push_back(size_of_model(size));
    const std::vector<SchemeSpeed> speeds = parse_speeds(options);

    const ScalingStudy study =
        study_scaling(read_scaling_runs(options.runs), options.study, options.runs.string());
    std::string text = to_text(study);
    nlohmann::ordered_json json = to_json(study);
    if (!speeds.empty()) {
        const BudgetMap map = map_budgets(study, speeds);
        text += to_text(map);
        json["budgets"] = to_json(map);
    }
    const std::string plot = options.plot.empty() ? "" : draw_svg_file(scaling_chart(study));
    if (!options.json.empty()) write_text(options.json, json.dump(2) + "\n");
    if (!options.plot.empty()) write_text(options.plot, plot);
    fmt::print("{}", text);
}

void add_fit(CLI::App& scaling) {
    auto options = std::make_shared<Options>();
    ScalingOptions& study = options->study;
    CLI::App* command =
        scaling.add_subcommand("fit", "Fit the scaling law, with eff_N and eff_D of each scheme");
    command
        ->add_option("runs", options->runs,
                     "Runs, one a line: columns scheme, non_embedding_parameters, tokens, and loss (or any "
                     "name that ends in _loss)")
        ->required()
        ->type_name("RUNS.csv");
    command->add_option("--law-from", study.law_from, "The scheme whose runs fix the law")
        ->type_name("SCHEME")
        ->capture_default_str();
    command->add_option("--max-ratio", study.max_ratio, "The law's runs have D/N below this")
        ->check(CLI::PositiveNumber)
        ->type_name("R")
        ->capture_default_str();
    command
        ->add_option("--hold-out", options->hold_out,
                     "Fit without the runs of this size (within 5 %), and report the errors on them")
        ->delimiter(',')
        ->allow_extra_args(false)
        ->type_name("N");
    command
        ->add_option("--forward-only", study.n_only,
                     "A scheme that quantises only the forward: its eff_D is 1")
        ->type_name("SCHEME")
        ->allow_extra_args(false);
    command
        ->add_option("--backward-only", study.d_only,
                     "A scheme that quantises only the backward: its eff_N is 1")
        ->type_name("SCHEME")
        ->allow_extra_args(false);
    command->add_option("--bootstrap", study.resamples, "Resamples behind the intervals; 0: none")
        ->check(CLI::Range(0, 100000))
        ->type_name("N")
        ->capture_default_str();
    command->add_option("--seed", study.seed, "Seed of the bootstrap (default: 0)")
        ->check(kWholeNumber)
        ->type_name("S");
    command
        ->add_option("--speed", options->speeds,
                     "Speed of a scheme's forward and backward, relative to the law's scheme: prints which "
                     "scheme is best for which budget")
        ->allow_extra_args(false)
        ->type_name("SCHEME=FW,BW");
    command->add_option("--json", options->json, "Also write all numbers")->type_name("FILE.json");
    command->add_option("--plot", options->plot, "Also draw runs and fits (gnuplot)")->type_name("FILE.svg");
    command->callback([options] { fit(*options); });
}

}  // namespace

void add_scaling_command(CLI::App& app) {
    CLI::App* scaling = app.add_subcommand("scaling", "Scaling laws of finished runs");
    scaling->require_subcommand(1);
    add_fit(*scaling);
}

}  // namespace nibble
