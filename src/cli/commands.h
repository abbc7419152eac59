// cli/: the program. One file a sub-command, each with one function that declares its options and what it
// runs. Commands read options, call the rooms below and print; they decide no numbers.
//
// Results go to stdout, progress and the log to stderr. A command throws: UsageError for wrong usage (exit
// code 2), anything else for a failure (exit code 1); main() prints the one line.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>

#include "core/core.h"

namespace nibble {

// To add a command: write src/cli/NAME.cpp, declare its function here, call it in main.cpp.
void add_bench_command(CLI::App& app);
void add_codec_command(CLI::App& app);
void add_data_command(CLI::App& app);
void add_doctor_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_recipes_command(CLI::App& app);
void add_report_command(CLI::App& app);
void add_scaling_command(CLI::App& app);
void add_study_command(CLI::App& app);
void add_tokenize_command(CLI::App& app);
void add_tokenizer_command(CLI::App& app);
void add_train_command(CLI::App& app);

// For options that take any unsigned number: CLI11 alone would read -1 as a very large one.
inline const CLI::Validator kWholeNumber(
    [](const std::string& text) -> std::string {
        const bool digits = !text.empty() && std::all_of(text.begin(), text.end(),
                                                         [](char c) { return '0' <= c && c <= '9'; });
        return digits ? "" : "'" + text + "' is not a whole number from 0 up";
    },
    "");

}  // namespace nibble
