// train/: from a configuration to a trained model, and what a run leaves behind.
//
// RunConfig holds every key; Trainer owns the run (the step, evaluation, the order of events); MetricsLog,
// Checkpoint and the model directory are what it writes; the report is made of its log. This room decides no
// numerics, which belong to the rooms below, and knows nothing of the command line above.
#pragma once

#include "train/checkpoint.h"
#include "train/metrics_log.h"
#include "train/model_directory.h"
#include "train/report.h"
#include "train/run_config.h"
#include "train/run_header.h"
#include "train/speed_of_light.h"
#include "train/trainer.h"
