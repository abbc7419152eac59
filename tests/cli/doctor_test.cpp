#include "cli/support.h"
#include "recipe/recipe.h"

namespace nibble {
namespace {

TEST(Doctor, FindsThisMachineWellAndSaysHowEachRecipeRuns) {
    const RunResult result = Workspace().nibble({"doctor"}, {"OMP_WAIT_POLICY=passive"});
    EXPECT_EQ(result.exit_code, 0) << result.err << result.out;
    EXPECT_NE(result.out.find("quantisers  reference: "), std::string::npos) << result.out;
    EXPECT_EQ(result.out.find("OTHER BYTES"), std::string::npos);
    EXPECT_NE(result.out.find("product     cpu, nvfp4 1x16: error "), std::string::npos);
    EXPECT_NE(result.out.find("all is well"), std::string::npos);
    for (const Recipe& recipe : builtin_recipes())
        EXPECT_NE(result.out.find("on cpu      " + recipe.name + " "), std::string::npos) << recipe.name;
}

}  // namespace
}  // namespace nibble
