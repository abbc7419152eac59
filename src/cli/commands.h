// cli/: the program. One file a sub-command, each with one function that declares its options and what it
// runs. Commands read options, call the rooms below and print; they decide no numbers.
//
// Results go to stdout, progress and the log to stderr. A command throws: UsageError for wrong usage (exit
// code 2), anything else for a failure (exit code 1); main() prints the one line.
#pragma once

#include <CLI/CLI.hpp>

#include "core/core.h"

namespace nibble {

// To add a command: write src/cli/NAME.cpp, declare its function here, call it in main.cpp.
void add_codec_command(CLI::App& app);
void add_recipes_command(CLI::App& app);

}  // namespace nibble
