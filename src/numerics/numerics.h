// numerics/: everything that decides a bit, one scalar at a time: codecs, rounding, random numbers, the
// rotation, the scale rules one group at a time. Small host and device functions without state; they are the
// oracle that SIMD code and kernels must equal.
#pragma once

#include "numerics/bf16.h"
#include "numerics/e2m1.h"
#include "numerics/e4m3.h"
#include "numerics/e8m0.h"
#include "numerics/elements.h"
#include "numerics/fp32_scale.h"
#include "numerics/hadamard.h"
#include "numerics/mxfp4.h"
#include "numerics/mxfp8.h"
#include "numerics/nvfp4.h"
#include "numerics/philox.h"
#include "numerics/power.h"
#include "numerics/reduce.h"
#include "numerics/stochastic.h"
