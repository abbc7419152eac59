// io/: the ecosystem's file formats. safetensors in and out; charts as SVG.
// It stands on core alone: it knows tensors and names, but no model, no recipe and no run.
#pragma once

#include "io/plot.h"
#include "io/safetensors.h"
