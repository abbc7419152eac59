// The built-in methods. Each page docs/methods/NAME.md gives the equations and where publications disagree.
#include <fmt/ranges.h>

#include "recipe/recipe.h"

namespace nibble {

namespace {

struct Row {
    Source source;
    const char* spec;
};

constexpr Source kOriginal = Source::original, kForward = Source::forward, kSameBits = Source::same_bits;

// Rows in the order of kOperandNames.
Recipe make(const char* name, const char* title, const char* source, const Row (&rows)[6],
            double keep_last = 0) {
    Recipe recipe;
    recipe.name = name;
    recipe.title = title;
    recipe.source = source;
    recipe.keep_last = keep_last;
    for (size_t i = 0; i < kOperandNames.size(); ++i) {
        operand(recipe, kOperandNames[i]) = {rows[i].source, parse_spec(rows[i].spec)};
    }
    validate(recipe);
    return recipe;
}

std::vector<Recipe> make_all() {
    std::vector<Recipe> all;
    all.push_back(make("bf16", "BF16 operands, FP32 sums: the baseline", "no quantisation",
                       {{kOriginal, "bf16"},
                        {kOriginal, "bf16"},
                        {kOriginal, "bf16"},
                        {kOriginal, "bf16"},
                        {kOriginal, "bf16"},
                        {kOriginal, "bf16"}}));
    // Algorithm 1 and section 5: 4/6 forward; MS-EDEN on all four backward operands, re-quantised from the
    // forward.
    all.push_back(make("quartet2", "Quartet II: NVFP4, Four Over Six forward, MS-EDEN backward",
                       "arXiv 2601.22813",
                       {{kOriginal, "nvfp4 1x16 scale=four-six:mse"},
                        {kOriginal, "nvfp4 1x16 scale=four-six:mse"},
                        {kOriginal, "nvfp4 1x16 scale=eden rotate=rht:128 signs=step"},
                        {kForward, "nvfp4 1x16 scale=eden rotate=rht:128 signs=step"},
                        {kOriginal, "nvfp4 1x16 scale=eden rotate=rht:128 signs=call"},
                        {kForward, "nvfp4 1x16 scale=eden rotate=rht:128 signs=call"}}));
    // Ours: the same with two rotations, which removes the bias of one on rows of few large elements.
    all.push_back(make("quartet2-double", "Quartet II with two rotations: no bias on few active tokens",
                       "arXiv 2601.22813, with a second rotation",
                       {{kOriginal, "nvfp4 1x16 scale=four-six:mse"},
                        {kOriginal, "nvfp4 1x16 scale=four-six:mse"},
                        {kOriginal, "nvfp4 1x16 scale=eden rotate=rht2:128 signs=step"},
                        {kForward, "nvfp4 1x16 scale=eden rotate=rht2:128 signs=step"},
                        {kOriginal, "nvfp4 1x16 scale=eden rotate=rht2:128 signs=call"},
                        {kForward, "nvfp4 1x16 scale=eden rotate=rht2:128 signs=call"}}));
    // Version 4 of the paper, algorithm 1: nearest rounding in the backward.
    all.push_back(make("quartet", "Quartet: MXFP4, QuEST forward, nearest backward", "arXiv 2505.14669v4",
                       {{kOriginal, "mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip"},
                        {kOriginal, "mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip"},
                        {kOriginal, "mxfp4 1x32 scale=three-quarters rotate=rht:32 signs=step"},
                        {kForward, "mxfp4 1x32 scale=three-quarters rotate=rht:32 signs=step"},
                        {kOriginal, "mxfp4 1x32 scale=three-quarters rotate=rht:32 signs=call"},
                        {kForward, "mxfp4 1x32 scale=three-quarters rotate=rht:32 signs=call"}}));
    // Version 1: stochastic rounding in the backward.
    all.push_back(
        make("quartet-sr", "Quartet, first version: MXFP4, QuEST forward, stochastic backward",
             "arXiv 2505.14669v1",
             {{kOriginal, "mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip"},
              {kOriginal, "mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip"},
              {kOriginal, "mxfp4 1x32 scale=three-quarters round=stochastic rotate=rht:32 signs=step"},
              {kForward, "mxfp4 1x32 scale=three-quarters round=stochastic rotate=rht:32 signs=step"},
              {kOriginal, "mxfp4 1x32 scale=three-quarters round=stochastic rotate=rht:32 signs=call"},
              {kForward, "mxfp4 1x32 scale=three-quarters round=stochastic rotate=rht:32 signs=call"}}));
    // Section 4: square weight blocks, stochastic gradients, RHT of 16 on the wgrad alone, signs fixed for
    // the run.
    all.push_back(make("nvidia", "NVIDIA: NVFP4, square weight blocks, stochastic gradients, RHT in wgrad",
                       "arXiv 2509.25149",
                       {{kOriginal, "nvfp4 1x16"},
                        {kOriginal, "nvfp4 16x16"},
                        {kOriginal, "nvfp4 1x16 round=stochastic"},
                        {kSameBits, "nvfp4 16x16"},
                        {kOriginal, "nvfp4 1x16 round=stochastic rotate=rht:16 signs=run"},
                        {kOriginal, "nvfp4 1x16 rotate=rht:16 signs=run"}},
                       0.15));
    // The baseline of arXiv 2601.22813, section 5: 4/6 on both operands of the forward, never on gradients.
    all.push_back(make("nvidia-four-six", "The nvidia table with Four Over Six in the forward alone",
                       "arXiv 2509.25149 and 2512.02010",
                       {{kOriginal, "nvfp4 1x16 scale=four-six:mse"},
                        {kOriginal, "nvfp4 16x16 scale=four-six:mse"},
                        {kOriginal, "nvfp4 1x16 round=stochastic"},
                        {kSameBits, "nvfp4 16x16 scale=four-six:mse"},
                        {kOriginal, "nvfp4 1x16 round=stochastic rotate=rht:16 signs=run"},
                        {kOriginal, "nvfp4 1x16 rotate=rht:16 signs=run"}},
                       0.15));
    // The authors' training layer: the nvidia table with the better of two scales everywhere.
    all.push_back(make(
        "four-six", "Four Over Six: the nvidia table, each block scaled to 6 or to 4", "arXiv 2512.02010",
        {{kOriginal, "nvfp4 1x16 scale=four-six:mse"},
         {kOriginal, "nvfp4 16x16 scale=four-six:mse"},
         {kOriginal, "nvfp4 1x16 scale=four-six:mse range=16/17 round=stochastic"},
         {kSameBits, "nvfp4 16x16 scale=four-six:mse"},
         {kOriginal, "nvfp4 1x16 scale=four-six:mse range=16/17 round=stochastic rotate=rht:16 signs=run"},
         {kOriginal, "nvfp4 1x16 scale=four-six:mse rotate=rht:16 signs=run"}},
        0.17));
    // Equations 4 to 6: nearest in the forward and on D.W, stochastic on the three others; no rotation.
    all.push_back(make("fp4-all-the-way",
                       "FP4 All the Way: NVFP4, stochastic gradients and wgrad activations",
                       "arXiv 2505.19115",
                       {{kOriginal, "nvfp4 1x16"},
                        {kOriginal, "nvfp4 1x16"},
                        {kOriginal, "nvfp4 1x16 round=stochastic"},
                        {kOriginal, "nvfp4 1x16"},
                        {kOriginal, "nvfp4 1x16 round=stochastic"},
                        {kOriginal, "nvfp4 1x16 round=stochastic"}}));
    // The phase that ends a run: the forward stays in 4 bits, the backward products are in BF16.
    all.push_back(make("fp4-all-the-way-qaf", "FP4 All the Way, last phase: 4-bit forward, BF16 backward",
                       "arXiv 2505.19115",
                       {{kOriginal, "nvfp4 1x16"},
                        {kOriginal, "nvfp4 1x16"},
                        {kOriginal, "bf16"},
                        {kOriginal, "bf16"},
                        {kOriginal, "bf16"},
                        {kOriginal, "bf16"}}));
    // The authors' code: scales rounded up, stochastic backward re-quantised from the forward, no rotation.
    all.push_back(make("tetrajet", "TetraJet: MXFP4, stochastic backward, double quantisation",
                       "arXiv 2502.20853",
                       {{kOriginal, "mxfp4 1x32 scale=rceil"},
                        {kOriginal, "mxfp4 1x32 scale=rceil"},
                        {kOriginal, "mxfp4 1x32 scale=rceil round=stochastic"},
                        {kForward, "mxfp4 1x32 scale=rceil round=stochastic"},
                        {kOriginal, "mxfp4 1x32 scale=rceil round=stochastic"},
                        {kForward, "mxfp4 1x32 scale=rceil round=stochastic"}}));
    // Its second version: NVFP4 with an FP32 scale for 128 elements, RHT of 16 with fresh signs in each call.
    all.push_back(make("tetrajet2", "TetraJet-v2: NVFP4 with outer scales, stochastic backward with RHT",
                       "TetraJet-v2, the authors' code",
                       {{kOriginal, "nvfp4 1x16 outer=1x128"},
                        {kOriginal, "nvfp4 1x16 outer=1x128"},
                        {kOriginal, "nvfp4 1x16 round=stochastic outer=1x128 rotate=rht:16 signs=call"},
                        {kForward, "nvfp4 1x16 round=stochastic outer=1x128 rotate=rht:16 signs=call"},
                        {kOriginal, "nvfp4 1x16 round=stochastic outer=1x128 rotate=rht:16 signs=call"},
                        {kForward, "nvfp4 1x16 round=stochastic outer=1x128 rotate=rht:16 signs=call"}}));
    // Per-tensor scaling, as TransformerEngine's current scaling: the weight and x keep one copy for both
    // products.
    all.push_back(make("fp8", "FP8: E4M3 operands, E5M2 gradients, one current scale for a tensor",
                       "arXiv 2209.05433",
                       {{kOriginal, "fp8:e4m3 tensor"},
                        {kOriginal, "fp8:e4m3 tensor"},
                        {kOriginal, "fp8:e5m2 tensor"},
                        {kSameBits, "fp8:e4m3 tensor"},
                        {kOriginal, "fp8:e5m2 tensor"},
                        {kSameBits, "fp8:e4m3 tensor"}}));
    // TransformerEngine's MXFP8BlockScaling: both copies of every tensor from the original.
    all.push_back(make("mxfp8", "MXFP8: E4M3 operands in blocks of 32", "TransformerEngine",
                       {{kOriginal, "mxfp8:e4m3 1x32"},
                        {kOriginal, "mxfp8:e4m3 1x32"},
                        {kOriginal, "mxfp8:e4m3 1x32"},
                        {kOriginal, "mxfp8:e4m3 1x32"},
                        {kOriginal, "mxfp8:e4m3 1x32"},
                        {kOriginal, "mxfp8:e4m3 1x32"}}));
    // INT4 weights and activations; gradients as powers of two, stochastic also below the smallest.
    all.push_back(make("luq", "LUQ: INT4 forward, logarithmic FP4 gradients without bias", "arXiv 2112.10769",
                       {{kOriginal, "int4 row"},
                        {kOriginal, "int4 row"},
                        {kOriginal, "log4 tensor round=stochastic"},
                        {kOriginal, "int4 row"},
                        {kOriginal, "log4 tensor round=stochastic"},
                        {kOriginal, "int4 row"}}));
    // The data flow of Jetfire, which is INT8, with E2M1 elements: what a layer reads and gives is quantised.
    all.push_back(make("jetfire", "Jetfire with FP4: square blocks, quantised results",
                       "arXiv 2403.12422, with FP4",
                       {{kOriginal, "fp4 32x32"},
                        {kOriginal, "fp4 32x32"},
                        {kOriginal, "fp4 32x32"},
                        {kSameBits, "fp4 32x32"},
                        {kOriginal, "fp4 32x32"},
                        {kSameBits, "fp4 32x32"}}));
    all.back().fprop_y = all.back().dgrad_dx = parse_spec("fp4 32x32");
    validate(all.back());
    // Sections 3.1 and 3.2: one scale for a token and for an output channel, backward products in BF16.
    all.push_back(make("dge-occ", "DGE and OCC: FP4 forward, outliers apart, dW follows the rounding",
                       "arXiv 2501.17116",
                       {{kOriginal, "fp4 row"},
                        {kOriginal, "fp4 row"},
                        {kOriginal, "bf16"},
                        {kOriginal, "bf16"},
                        {kOriginal, "bf16"},
                        {kOriginal, "bf16"}}));
    all.back().outliers = Outliers{};
    all.back().wgrad_factor = Dge{};
    validate(all.back());
    // HALO-2: dY is rotated over the tokens in dgrad; wgrad is not rotated.
    all.push_back(make("halo", "HALO-2 in FP4: one scale a tensor, Hadamard rotations", "arXiv 2501.02625",
                       {{kOriginal, "fp4 tensor rotate=hadamard:128"},
                        {kOriginal, "fp4 tensor rotate=hadamard:128"},
                        {kOriginal, "fp4 tensor rotate=hadamard:128@rows"},
                        {kOriginal, "fp4 tensor"},
                        {kOriginal, "fp4 tensor"},
                        {kOriginal, "fp4 tensor"}}));
    return all;
}

}  // namespace

const std::vector<Recipe>& builtin_recipes() {
    static const std::vector<Recipe> all = make_all();
    return all;
}

Recipe find_recipe(std::string_view name_or_path) {
    if (name_or_path.ends_with(".toml")) {
        return parse_recipe(read_text(fs::path(name_or_path)), name_or_path);
    }
    std::vector<std::string> names;
    for (const Recipe& recipe : builtin_recipes()) {
        if (recipe.name == name_or_path) return recipe;
        names.push_back(recipe.name);
    }
    const std::string nearest = nearest_name(name_or_path, names);
    fail_usage("there is no recipe '{}'{}; the built-in ones are {}; a file of your own ends in .toml",
               name_or_path, nearest.empty() ? "" : fmt::format(" (did you mean '{}'?)", nearest),
               fmt::join(names, ", "));
}

}  // namespace nibble
