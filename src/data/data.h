// data/: text to tokens to batches. Byte-level BPE tokenizers (tokenizer.h, tokenizer_train.h), documents out
// of files (documents.h), token shards (tokenize.h, shard.h), and the order in which training sees them
// (loader.h). It knows nothing of models; it never keeps a generator's state, and never holds a corpus in
// memory.
#pragma once

#include "data/documents.h"
#include "data/loader.h"
#include "data/shard.h"
#include "data/tokenize.h"
#include "data/tokenizer.h"
#include "data/tokenizer_train.h"
