// nibble report: compare runs.
#include "train/report.h"

#include <memory>

#include "cli/commands.h"

namespace nibble {

namespace {

struct Options {
    std::vector<std::string> folders;
    fs::path out = "report.html", chart, spread;
};

void report(const Options& options) {
    const std::vector<ReportedRun> runs = read_runs(options.folders);
    const SeedLosses seeds = options.spread.empty() ? SeedLosses() : read_seed_losses(options.spread);
    const std::string html = to_html(runs, seeds);
    const std::string chart = options.chart.empty() ? "" : to_svg(runs);
    write_text(options.out, html);
    if (!options.chart.empty()) write_text(options.chart, chart);
    fmt::print("{}", to_text_table(runs, seeds));
    log()->info("{} written", options.out.string());
}

}  // namespace

void add_report_command(CLI::App& app) {
    CLI::App* command = app.add_subcommand("report", "Compare runs: a table, and a page with their curves");
    auto options = std::make_shared<Options>();
    command->add_option("runs", options->folders, "Output folders of runs")->required()->type_name("OUT");
    command->add_option("--out", options->out, "The page")->type_name("FILE.html")->capture_default_str();
    command->add_option("--chart", options->chart, "Also the loss curves alone")->type_name("FILE.svg");
    command
        ->add_option("--spread", options->spread,
                     "Losses of earlier runs by seed, {\"recipe\": [loss, ...]}: printed beside the gaps")
        ->type_name("FILE.json");
    command->callback([options] { report(*options); });
}

}  // namespace nibble
