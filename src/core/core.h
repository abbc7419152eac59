// core/: what every other room stands on: errors, tensors, arenas, threads, files, the log.
// It knows nothing of quantisation, models or training.
#pragma once

#include "core/arena.h"
#include "core/choice.h"
#include "core/context.h"
#include "core/error.h"
#include "core/file.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "core/parallel.h"
#include "core/recording.h"
#include "core/tensor.h"
#include "core/text_table.h"
#include "core/version.h"
