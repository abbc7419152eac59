// Specs that between them use every rule, rounding, correction, tensor scale and rotation.
#pragma once

#include <string>
#include <vector>

namespace nibble::test {

inline const std::vector<std::string> kSpecs = {
    "nvfp4 1x16",
    "nvfp4 1x16 tensor=none round=nearest-away",
    "nvfp4 1x16 range=16/17 round=stochastic",
    "nvfp4 1x16 scale=max4",
    "nvfp4 1x16 scale=four-six:mse",
    "nvfp4 1x16 scale=four-six:mae",
    "nvfp4 1x16 scale=four-six:amax",
    "nvfp4 1x16 scale=four-six:mse round=stochastic rotate=rht:16",
    "nvfp4 1x16 scale=eden",
    "nvfp4 1x16 scale=eden rotate=rht:128",
    "nvfp4 1x16 scale=eden rotate=rht2:128",
    "nvfp4 1x16 scale=eden tensor=posthoc rotate=rht:64",
    "nvfp4 1x16 correct=eden-block range=1600/1581 scale-round=stochastic rotate=rht:32",
    "nvfp4 1x16 tensor=posthoc",
    "nvfp4 1x16 tensor=none",
    "nvfp4 1x16 tensor=delayed",
    "nvfp4 1x16 rotate=rht:16 signs=te out=bf16",
    "nvfp4 1x16 rotate=hadamard:128",
    "nvfp4 16x16",
    "nvfp4 16x16 round=stochastic",
    "nvfp4 16x16 scale=four-six:mse",
    "nvfp4 16x16 scale=four-six:amax rotate=rht:32",
    "nvfp4 16x16 tensor=posthoc scale-round=stochastic",
    "mxfp4 1x32 scale=floor",
    "mxfp4 1x32 scale=floor round=nearest-down",
    "mxfp4 1x32 scale=ceil round=stochastic",
    "mxfp4 1x32 scale=rceil rotate=rht:16",
    "mxfp4 1x32 scale=rceil rotate=rht2:16",
    "mxfp4 1x32 scale=even",
    "mxfp4 1x32 scale=three-quarters round=stochastic rotate=rht:32",
    "mxfp4 1x32 scale=quest:std rotate=hadamard:32 mask=clip",
    "mxfp4 1x32 scale=quest:rms mult=1.5 rotate=hadamard:128 mask=clip",
    "nvfp4 1x16 scale=four-six:mse round=nearest-away arithmetic=emulation",
    "mxfp4 1x32 scale=quest:std round=nearest-down rotate=hadamard:32 mask=clip arithmetic=emulation",
};

}  // namespace nibble::test
