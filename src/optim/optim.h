// optim/: from gradients to new weights: the learning rate of a step, clipping, AdamW, and what methods do to
// weights after an update.
//
// Everything is FP32 on the masters; nothing here depends on the number of threads. This room knows neither
// models nor data: it sees tensors with their gradients, and the quantiser of a forward's weight.
#pragma once

#include "optim/adamw.h"
#include "optim/cage.h"
#include "optim/clip.h"
#include "optim/oscireset.h"
#include "optim/qema.h"
#include "optim/schedule.h"
