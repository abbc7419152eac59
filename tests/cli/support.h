// Runs the real program in a temporary folder and captures what it prints.
//
//   Workspace work;
//   write_text(work / "run.toml", "...");
//   const RunResult result = work.nibble({"train", "run.toml"});
//   EXPECT_EQ(result.exit_code, 0) << result.err;
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/file.h"

extern "C" char** environ;

namespace nibble {

struct RunResult {
    int exit_code = -1;  // 128 + signal if one ended the program
    std::string out, err;
};

// The program, started and not waited for: to send it a signal in the middle of its work.
class RunningProgram {
  public:
    RunningProgram(const fs::path& folder, std::vector<std::string> arguments,
                   const std::vector<std::string>& environment = {})
        : out_(folder / ".stdout"), err_(folder / ".stderr") {
        arguments.insert(arguments.begin(), NIBBLE_PROGRAM);
        std::vector<char*> argv;
        for (std::string& argument : arguments) argv.push_back(argument.data());
        argv.push_back(nullptr);
        std::vector<std::string> variables = environment;
        for (char** variable = environ; *variable != nullptr; ++variable) variables.emplace_back(*variable);
        std::vector<char*> envp;
        for (std::string& variable : variables) envp.push_back(variable.data());
        envp.push_back(nullptr);

        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
        posix_spawn_file_actions_addopen(&actions, 1, out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        posix_spawn_file_actions_addopen(&actions, 2, err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        posix_spawn_file_actions_addchdir_np(&actions, folder.c_str());
        const int error = ::posix_spawn(&pid_, NIBBLE_PROGRAM, &actions, nullptr, argv.data(), envp.data());
        posix_spawn_file_actions_destroy(&actions);
        require(error == 0, "cannot start {}", NIBBLE_PROGRAM);
    }
    ~RunningProgram() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }
    RunningProgram(const RunningProgram&) = delete;
    RunningProgram& operator=(const RunningProgram&) = delete;

    void send(int signal) const { ::kill(pid_, signal); }
    // What it has printed so far.
    std::string out() const { return read_text(out_); }
    std::string err() const { return read_text(err_); }
    RunResult wait() {
        int status = 0;
        while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
        }
        pid_ = -1;
        return {WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), out(), err()};
    }

  private:
    fs::path out_, err_;
    pid_t pid_ = -1;
};

// A temporary folder, removed at the end; the program runs in it.
class Workspace {
  public:
    Workspace() {
        std::string name = (fs::temp_directory_path() / "nibble-test-XXXXXX").string();
        require(::mkdtemp(name.data()) != nullptr, "cannot create {}", name);
        folder_ = name;
    }
    ~Workspace() {
        std::error_code ignored;
        fs::remove_all(folder_, ignored);
    }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    const fs::path& folder() const { return folder_; }
    fs::path operator/(const std::string& name) const { return folder_ / name; }

    // `environment`: variables to set, "NAME=value", before those of the test itself.
    RunResult nibble(std::vector<std::string> arguments,
                     const std::vector<std::string>& environment = {}) const {
        return RunningProgram(folder_, std::move(arguments), environment).wait();
    }

  private:
    fs::path folder_;
};

// The promise for every failure: this exit code, nothing on stdout, and exactly one line on stderr that
// begins with "nibble: " and holds each of `parts`.
inline void expect_refusal(const RunResult& result, int exit_code, const std::vector<std::string>& parts) {
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_EQ(result.err.rfind("nibble: ", 0), 0u) << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_TRUE(result.err.ends_with('\n')) << result.err;
    for (const std::string& part : parts) {
        EXPECT_NE(result.err.find(part), std::string::npos) << "no '" << part << "' in: " << result.err;
    }
}

}  // namespace nibble
