// nn/: the layers of a Llama-family language model (Llama, Qwen2, Qwen3), forward and backward, and the model
// made of them.
//
// Each component is a pair of functions over tensors, with the same names and argument order on every device.
// Activations are BF16 or F32 (all tensors of a call alike); parameters, their gradients, statistics and
// losses are F32; arithmetic is F32. This room knows recipes and products, but no data, no optimizer and no
// files.
#pragma once

#include "nn/attention.h"
#include "nn/cross_entropy.h"
#include "nn/embedding.h"
#include "nn/model_config.h"
#include "nn/quant_linear.h"
#include "nn/rmsnorm.h"
#include "nn/rope.h"
#include "nn/swiglu.h"
#include "nn/transformer.h"
