#include "train/run_table.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace nibble {

using Json = nlohmann::ordered_json;

namespace {

struct Summary {
    std::string recipe;
    int64_t steps = 0, tokens = 0;
    bool complete = false;
    std::optional<double> loss, bf16_loss, bits_per_byte;  // validation, the last of each kind
    double tokens_per_s = 0, sol = 0;
};

Summary summarize(const ReportedRun& run) {
    Summary s;
    s.recipe = recipe_of(run);
    s.complete = run.log.end.is_object() && run.log.end.value("reason", "") == "complete";
    for (const RunLog::Eval& eval : run.log.evals) {
        if (eval.forward == "bf16") s.bf16_loss = eval.loss;
        if (eval.own) s.loss = eval.loss, s.bits_per_byte = eval.bits_per_byte;
    }
    // Rates of the whole run: time over work, so slow steps weigh what they cost.
    double seconds = 0, light = 0;
    int64_t before = 0;
    for (const RunLog::Step& step : run.log.steps) {
        const double spent = static_cast<double>(step.tokens - before) / step.tokens_per_s;
        before = step.tokens;
        seconds += spent;
        light += spent * step.sol;
    }
    if (!run.log.steps.empty()) {
        s.steps = run.log.steps.back().step;
        s.tokens = before;
        s.tokens_per_s = static_cast<double>(before) / seconds;
        s.sol = light / seconds;
    }
    return s;
}

// What a gap is measured from: the complete bf16 run, if there is one.
std::optional<double> bf16_reference(const std::vector<ReportedRun>& runs) {
    for (const ReportedRun& run : runs)
        if (recipe_of(run) == "bf16") return summarize(run).loss;
    return {};
}

double standard_deviation(const std::vector<double>& values) {
    double mean = 0, squares = 0;
    for (double x : values) mean += x / static_cast<double>(values.size());
    for (double x : values) squares += (x - mean) * (x - mean);
    return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

std::string fixed(const std::optional<double>& value, int digits) {
    return value ? fmt::format("{:.{}f}", *value, digits) : "–";
}

// 1234567 -> "1,234,567"
std::string grouped(int64_t value) {
    std::string text = std::to_string(value);
    for (auto at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3)
        text.insert(static_cast<size_t>(at), 1, ',');
    return text;
}

}  // namespace

std::string text_at(const Json& json, const std::string& pointer) {
    const Json::json_pointer at(pointer);
    if (!json.contains(at)) return "–";
    const Json& value = json.at(at);
    return value.is_string() ? value.get<std::string>() : value.dump();
}

std::string recipe_of(const ReportedRun& run) {
    std::string name = text_at(run.log.header, "/recipe/name");
    if (!run.log.header.contains("phases")) return name;
    const std::vector<size_t>& begun = run.log.phases_begun;
    size_t number = 0;
    for (const Json& phase : run.log.header.at("phases")) {
        // One that waits for the monitor may never begin.
        ++number;
        if (!phase.contains("when") || std::find(begun.begin(), begun.end(), number) != begun.end())
            name += ", then " + text_at(phase, "/recipe");
    }
    return name;
}

std::string label_of(const std::vector<ReportedRun>& runs, const ReportedRun& run) {
    const auto same = std::count_if(runs.begin(), runs.end(), [&](const ReportedRun& other) {
        return recipe_of(other) == recipe_of(run);
    });
    if (same <= 1) return recipe_of(run);
    const std::string folder = fs::path(run.where).lexically_normal().filename().string();
    return fmt::format("{} ({})", recipe_of(run), folder.empty() ? run.where : folder);
}

TableRows run_table(const std::vector<ReportedRun>& runs, const SeedLosses& seeds) {
    TableRows rows = {{"recipe", "validation loss", "… with bf16", "bits per byte", "gap to bf16",
                       "seed spread", "tokens", "tokens/s", "% SOL", "state"}};
    const std::optional<double> reference = bf16_reference(runs);
    for (const ReportedRun& run : runs) {
        const Summary s = summarize(run);
        std::string gap = "–", spread = "–";
        if (s.loss && reference && s.recipe != "bf16")
            gap = fmt::format("{:+.4f} ({:+.2f} %)", *s.loss - *reference, 100 * (*s.loss / *reference - 1));
        if (const auto found = seeds.find(s.recipe); found != seeds.end())
            spread =
                fmt::format("±{:.4f} ({} seeds)", standard_deviation(found->second), found->second.size());
        const int64_t steps =
            text_at(run.log.header, "/steps") == "–" ? s.steps : run.log.header.at("steps").get<int64_t>();
        rows.push_back({label_of(runs, run), fixed(s.loss, 4), fixed(s.bf16_loss, 4),
                        fixed(s.bits_per_byte, 4), gap, spread, grouped(s.tokens),
                        grouped(std::llround(s.tokens_per_s)), fmt::format("{:.1f}", 100 * s.sol),
                        s.complete ? "complete" : fmt::format("step {} of {}", s.steps, steps)});
    }
    for (size_t column = rows[0].size(); column-- > 1;) {
        const auto is_empty = [&](const auto& row) { return row[column] == "–"; };
        const bool all_complete = rows[0][column] == "state" &&
                                  std::all_of(rows.begin() + 1, rows.end(),
                                              [&](const auto& row) { return row[column] == "complete"; });
        if (all_complete || std::all_of(rows.begin() + 1, rows.end(), is_empty))
            for (auto& row : rows) row.erase(row.begin() + static_cast<std::ptrdiff_t>(column));
    }
    return rows;
}

SeedLosses read_seed_losses(const fs::path& path) {
    const Json json = Json::parse(read_text(path), nullptr, false);
    require(json.is_object(), "{}: not a JSON object of recipes with lists of losses", path.string());
    SeedLosses seeds;
    for (const auto& [recipe, losses] : json.items()) {
        if (recipe.starts_with('_')) continue;
        const bool numbers =
            losses.is_array() && losses.size() >= 2 &&
            std::all_of(losses.begin(), losses.end(), [](const Json& x) { return x.is_number(); });
        require(numbers, "{}: \"{}\" must be a list of at least two losses", path.string(), recipe);
        seeds[recipe] = losses.get<std::vector<double>>();
    }
    return seeds;
}

std::vector<ReportedRun> read_runs(const std::vector<std::string>& folders) {
    std::vector<ReportedRun> runs;
    for (const std::string& folder : folders)
        runs.push_back({folder, read_run_log(fs::path(folder) / "log.jsonl")});
    return runs;
}

std::string to_text_table(const std::vector<ReportedRun>& runs, const SeedLosses& seeds) {
    return aligned(run_table(runs, seeds));
}

}  // namespace nibble
