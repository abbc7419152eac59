// The pictures of the studies.
#pragma once

#include <string>
#include <vector>

#include "io/plot.h"
#include "study/align_study.h"
#include "study/bias_study.h"
#include "study/linear_study.h"
#include "study/quantizer_study.h"

namespace nibble {

struct QuantizerResult {
    std::string data, spec;
    QuantizerFigures figures;
};
struct LayerResult {
    std::string data, recipe;
    LayerErrors errors;
};
struct BiasResult {
    std::string data, recipe;
    BiasCurve curve;
};
struct AlignmentResult {
    std::string recipe;
    RecipeAlignment alignment;
};

// Relative MSE. The longer list, of data or of specs, names the rows; the other one the colours.
Chart quantizer_chart(const std::vector<QuantizerResult>& results);
// The rest draw one chart for each kind of data, or of gradient.
// Errors of Y, dX, dW and of the means, a row for each recipe.
std::vector<Chart> layer_charts(const std::vector<LayerResult>& results);
// Squared error over B, and the line of 1/B that begins at the geometric mean of the first points.
std::vector<Chart> bias_charts(const std::vector<BiasResult>& results);
// Over the blocks: cosine and projection of the residual stream's gradient, cosines of the weight gradients.
std::vector<Chart> alignment_charts(const std::vector<AlignmentResult>& results);

}  // namespace nibble
