// nibble: the command line. Exit codes: 0 success, 1 failure (one line on stderr), 2 wrong usage.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "cli/commands.h"

namespace nibble {
namespace {

// In the order of the help text.
void add_commands(CLI::App& app) {
    add_tokenizer_command(app);
    add_tokenize_command(app);
    add_data_command(app);
    add_train_command(app);
    add_report_command(app);
    add_eval_command(app);
    add_generate_command(app);
    add_recipes_command(app);
    add_codec_command(app);
    add_study_command(app);
    add_scaling_command(app);
    add_doctor_command(app);
    add_bench_command(app);
}

// The command that the words of the command line reached.
const CLI::App& reached(const CLI::App& app) {
    const CLI::App* at = &app;
    while (!at->get_subcommands().empty()) at = at->get_subcommands().front();
    return *at;
}

std::string full_name(const CLI::App& command) {
    const std::string parent = command.get_parent() == nullptr ? "" : full_name(*command.get_parent()) + " ";
    return parent + command.get_name();
}

std::vector<std::string> command_names(const CLI::App& app) {
    std::vector<std::string> names;
    for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
        names.push_back(command->get_name());
    }
    return names;
}

std::vector<std::string> option_names(const CLI::App& app) {
    std::vector<std::string> names;
    for (const CLI::App* at = &app; at != nullptr; at = at->get_parent()) {
        for (const CLI::Option* option : at->get_options()) {
            for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
        }
    }
    return names;
}

std::string with_nearest(std::string message, const std::string& word,
                         const std::vector<std::string>& known) {
    const std::string nearest = nearest_name(word, known);
    if (!nearest.empty()) message += fmt::format("; did you mean '{}'?", nearest);
    return message;
}

// What was wrong with the words of the command line, in one line.
std::string explain(const CLI::App& app, const CLI::ParseError& error) {
    const CLI::App& command = reached(app);
    const std::string help = fmt::format("; see {} --help", full_name(command));
    std::vector<std::string> unknown = app.remaining(true);
    const auto option = std::find_if(unknown.begin(), unknown.end(), [](const std::string& word) {
        return word.size() > 1 && word[0] == '-';
    });
    const std::vector<std::string> commands = command_names(command);
    if (!commands.empty() && !unknown.empty() && option != unknown.begin()) {
        return with_nearest(fmt::format("{} has no command '{}'", full_name(command), unknown.front()),
                            unknown.front(), commands) +
               help;
    }
    if (option != unknown.end()) {
        const std::string name = option->substr(0, option->find('='));
        return with_nearest(fmt::format("{} has no option '{}'", full_name(command), name), name,
                            option_names(command)) +
               help;
    }
    if (!unknown.empty())
        return fmt::format("{}: '{}' was not expected", full_name(command), unknown.front()) + help;
    if (command.get_require_subcommand_min() > 0 && dynamic_cast<const CLI::RequiredError*>(&error))
        return fmt::format("{} needs a command: {}", full_name(command), fmt::join(commands, ", ")) + help;
    return fmt::format("{}: {}", full_name(command), error.what()) + help;
}

// Names from files may hold anything; a message stays one line.
int report(int exit_code, std::string message) {
    std::replace_if(
        message.begin(), message.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, ' ');
    std::fflush(stdout);
    fmt::print(stderr, "nibble: {}\n", message);
    return exit_code;
}

// OpenMP's threads wait for each other some hundred times in a step, and by default burn their core for
// milliseconds before they sleep. Beside a single other busy program that costs a factor of seven to ten:
// what the waiting thread burns is what the other one needs. The library reads its environment when it is
// loaded, so the program starts once more; a choice that the user made stays.
void wait_without_burning(char** argv) {
    if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    execv("/proc/self/exe", argv);  // where there is no such file, the program goes on as it is
}

int run(int argc, char** argv) {
    CLI::App app("Trains language models in 4-bit floating point.", "nibble");
    app.set_version_flag("--version", "nibble " + std::string(version()), "Print the version and exit");
    app.set_help_flag("--help,-h", "Print this help and exit");
    app.require_subcommand(1);
    app.fallthrough();  // global options may stand anywhere
    app.get_formatter()->column_width(36);
    app.add_option_function<int>(
           "--threads", [](const int& threads) { set_thread_count(threads); },
           "Number of threads (default: all cores)")
        ->check(CLI::Range(1, 1024))
        ->type_name("N");
    add_commands(app);
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& help_or_version) {
        return app.exit(help_or_version);
    } catch (const CLI::ParseError& error) {
        return report(2, explain(app, error));
    }
    if (std::fflush(stdout) != 0) return report(1, "cannot write the output");
    return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
    using nibble::report;
    nibble::wait_without_burning(argv);
    try {
        return nibble::run(argc, argv);
    } catch (const nibble::UsageError& error) {
        return report(2, error.what());
    } catch (const std::bad_alloc&) {
        return report(1, "out of memory; make the input, the batch or the model smaller");
    } catch (const std::exception& error) {
        return report(1, error.what());
    }
}
