// nibble train: pre-train a model.
#include <memory>

#include "cli/commands.h"
#include "train/trainer.h"

namespace nibble {

namespace {

struct Options {
    std::string config;
    std::vector<std::string> overrides;
    TrainOptions train;
    bool print_config = false;
};

std::string as_typed(const Options& options) {
    std::string text = "nibble train " + options.config;
    for (const std::string& key : options.overrides) text += " --set " + key;
    if (options.train.resume) text += " --resume";
    if (options.train.overwrite) text += " --overwrite";
    if (options.train.until > 0) text += fmt::format(" --until {}", options.train.until);
    return text;
}

void run_training(Options& options, bool threads_given) {
    const RunConfig config = load_run_config(options.config, options.overrides);
    if (options.print_config) {
        fmt::print("{}", to_annotated_toml(config));
        return;
    }
    if (options.config.empty() && options.overrides.empty())
        fail_usage("nibble train needs a CONFIG.toml; --print-config shows all keys");
    check_complete(config);
    if (config.device.threads > 0 && !threads_given)
        set_thread_count(static_cast<int>(config.device.threads));
    options.train.command = as_typed(options);
    train(config, options.train);
}

}  // namespace

void add_train_command(CLI::App& app) {
    CLI::App* command = app.add_subcommand("train", "Pre-train a model as a configuration says");
    auto options = std::make_shared<Options>();
    command->add_option("config", options->config, "The configuration")->type_name("CONFIG.toml");
    command->add_option("--set", options->overrides, "Override a key: section.key=value (may be repeated)")
        ->type_name("KEY=VALUE")
        ->expected(1)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    command->add_flag("--resume", options->train.resume, "Go on from the newest checkpoint in output.dir");
    command->add_flag("--overwrite", options->train.overwrite,
                      "Remove what an earlier run left in output.dir");
    command
        ->add_option("--until", options->train.until,
                     "Stop after this step; the schedule is that of the whole run")
        ->check(CLI::PositiveNumber)
        ->type_name("STEP");
    command->add_flag("--print-config", options->print_config,
                      "Print every key, its value, where it came from and what it means");
    command->footer(
        "Writes log.jsonl, checkpoints/step-N/, model/ (a Hugging Face directory) and report.html into "
        "output.dir.");
    command->callback([options, &app] { run_training(*options, app.count("--threads") > 0); });
}

}  // namespace nibble
