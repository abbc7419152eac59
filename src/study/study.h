// study/: what can be learnt from many runs together. The scaling law of arXiv 2505.14669 with what a scheme
// is worth in parameters and in data (eff_N, eff_D), and the scheme to choose for a budget.
//
// It reads the results of runs and makes tables and charts; it trains nothing and knows no model.
#pragma once

#include "study/scaling_law.h"
#include "study/scaling_report.h"
#include "study/scaling_runs.h"
#include "study/scaling_speed.h"
#include "study/scaling_study.h"
