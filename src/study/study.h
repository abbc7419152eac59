// study/: what can be learnt without training. What quantisers and recipes do to data, and to the gradients
// of a whole model; and what many runs tell together: the scaling law of arXiv 2505.14669 with what a scheme
// is worth in parameters and in data (eff_N, eff_D), and the scheme to choose for a budget.
//
// It draws data or reads the results of runs, and gives figures, tables and charts; it trains nothing.
#pragma once

#include "study/align_study.h"
#include "study/bias_study.h"
#include "study/linear_study.h"
#include "study/quantizer_study.h"
#include "study/scaling_law.h"
#include "study/scaling_report.h"
#include "study/scaling_runs.h"
#include "study/scaling_speed.h"
#include "study/scaling_study.h"
#include "study/study_charts.h"
