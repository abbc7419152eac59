// optim/: from gradients to new weights: the learning rate of a step, clipping, AdamW.
//
// Everything is FP32 on the masters; nothing here depends on the number of threads. This room knows neither
// models nor recipes nor data: it sees named tensors with their gradients.
#pragma once

#include "optim/adamw.h"
#include "optim/clip.h"
#include "optim/schedule.h"
