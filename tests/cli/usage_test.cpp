#include "cli/support.h"
#include "core/version.h"

namespace nibble {
namespace {

TEST(Usage, PrintsItsVersion) {
    const RunResult result = Workspace().nibble({"--version"});
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_EQ(result.out, "nibble " + std::string(version()) + "\n");
    EXPECT_EQ(result.err, "");
}

TEST(Usage, PrintsHelpForTheProgramAndForACommand) {
    const Workspace work;
    const RunResult program = work.nibble({"--help"});
    EXPECT_EQ(program.exit_code, 0);
    EXPECT_NE(program.out.find("recipes"), std::string::npos);
    EXPECT_NE(program.out.find("--threads"), std::string::npos);
    const RunResult command = work.nibble({"recipes", "show", "--help"});
    EXPECT_EQ(command.exit_code, 0);
    EXPECT_NE(command.out.find("--toml"), std::string::npos);
}

TEST(Usage, NeedsACommand) {
    expect_refusal(Workspace().nibble({}), 2, {"nibble needs a command", "recipes"});
}

TEST(Usage, NamesTheNearestCommand) {
    const Workspace work;
    expect_refusal(work.nibble({"recipe"}), 2, {"no command 'recipe'", "did you mean 'recipes'"});
    expect_refusal(work.nibble({"recipes", "shwo", "bf16"}), 2,
                   {"nibble recipes has no command 'shwo'", "'show'"});
}

TEST(Usage, NamesTheNearestOption) {
    expect_refusal(Workspace().nibble({"recipes", "show", "bf16", "--tmol"}), 2,
                   {"nibble recipes show has no option '--tmol'", "'--toml'"});
}

TEST(Usage, NamesTheOptionThatIsMissing) {
    expect_refusal(Workspace().nibble({"recipes", "show"}), 2,
                   {"recipe", "required", "nibble recipes show --help"});
}

TEST(Usage, RefusesANumberOfThreadsThatIsNone) {
    const Workspace work;
    expect_refusal(work.nibble({"--threads", "0", "recipes"}), 2, {"--threads"});
    expect_refusal(work.nibble({"--threads", "two", "recipes"}), 2, {"--threads", "two"});
}

TEST(Usage, TakesGlobalOptionsBeforeAndAfterTheCommand) {
    const Workspace work;
    EXPECT_EQ(work.nibble({"--threads", "1", "recipes"}).exit_code, 0);
    EXPECT_EQ(work.nibble({"recipes", "--threads", "1"}).exit_code, 0);
}

}  // namespace
}  // namespace nibble
