// The table of configuration keys. A new key is a member of RunConfig and one entry here.
#include "train/run_config.h"

namespace nibble {

#define NIBBLE_SLOT(member) [](RunConfig& c) -> ConfigSlot { return &c.member; }

const std::vector<ConfigKey>& config_keys() {
    constexpr double kAny = 1e18, kOneBillion = 1e9;
    constexpr OnResume kFixed = OnResume::fixed, kFree = OnResume::free;
    static const std::vector<ConfigKey> keys = {
        {"name", NIBBLE_SLOT(name), "what the run is called in logs and reports"},
        {"seed", NIBBLE_SLOT(seed), "decides initial weights, data order, rotations and stochastic rounding",
         kFixed, 0, 9.2e18},

        {"model.config", NIBBLE_SLOT(model.config),
         "a Hugging Face config.json: start from random weights of this shape", kFree},
        {"model.init", NIBBLE_SLOT(model.init), "a Hugging Face directory: start from its weights", kFree},

        {"data.train", NIBBLE_SLOT(data.train), "folder of token shards to train on"},
        {"data.validation", NIBBLE_SLOT(data.validation), "folder of token shards to evaluate on"},
        {"data.tokenizer", NIBBLE_SLOT(data.tokenizer),
         "folder of tokenizer.json; empty: the copy that lies with data.train"},
        {"data.sequence_length", NIBBLE_SLOT(data.sequence_length), "tokens in a sequence", kFixed, 1,
         kOneBillion},

        {"recipe.name", NIBBLE_SLOT(recipe.name), "a built-in method: `nibble recipes` lists them"},
        {"recipe.file", NIBBLE_SLOT(recipe.file), "a method of your own, as TOML; replaces recipe.name"},
        {"recipe.keep_first", NIBBLE_SLOT(recipe.keep_first),
         "blocks at the start kept in bf16: \"recipe\", a number, or a share like \"15%\""},
        {"recipe.keep_last", NIBBLE_SLOT(recipe.keep_last),
         "blocks at the end kept in bf16: \"recipe\", a number, or a share like \"15%\""},
        {"recipe.lm_head", NIBBLE_SLOT(recipe.lm_head), "precision of the LM head", kFree, 0, 0, {"bf16"}},

        {"precision.activations",
         NIBBLE_SLOT(precision.activations),
         "dtype of activations and their gradients (fp32: for study)",
         kFixed,
         0,
         0,
         {"bf16", "fp32"}},

        {"optimizer.name", NIBBLE_SLOT(optimizer.name), "the optimizer", kFixed, 0, 0, {"adamw"}},
        {"optimizer.lr", NIBBLE_SLOT(optimizer.lr), "learning rate at its peak", kFree, 0, 1e3},
        {"optimizer.betas",
         NIBBLE_SLOT(optimizer.betas),
         "decay of the first and of the second moment",
         kFree,
         0,
         0.9999999,
         {},
         2},
        {"optimizer.eps", NIBBLE_SLOT(optimizer.eps), "added to the root of the second moment", kFree, 0, 1},
        {"optimizer.weight_decay", NIBBLE_SLOT(optimizer.weight_decay),
         "decoupled weight decay, per unit of lr", kFree, 0, 1e3},
        {"optimizer.decay",
         NIBBLE_SLOT(optimizer.decay),
         "the kinds of parameters that weight decay acts on",
         kFree,
         0,
         0,
         {"matrices", "embedding", "head", "norms"}},
        {"optimizer.grad_clip", NIBBLE_SLOT(optimizer.grad_clip),
         "largest global norm of the gradient; 0: no clipping", kFree, 0, kAny},

        {"schedule.name",
         NIBBLE_SLOT(schedule.name),
         "course of the learning rate after the warm-up",
         kFree,
         0,
         0,
         {"cosine", "linear", "wsd", "constant"}},
        {"schedule.warmup", NIBBLE_SLOT(schedule.warmup), "fraction of the run in which the rate rises",
         kFree, 0, 1},
        {"schedule.decay", NIBBLE_SLOT(schedule.decay), "wsd: fraction of the run in which the rate falls",
         kFree, 0, 1},
        {"schedule.final", NIBBLE_SLOT(schedule.final), "rate at the end, as a fraction of optimizer.lr",
         kFree, 0, 1},

        {"train.steps", NIBBLE_SLOT(train.steps), "optimizer steps of the run", kFree, 0, 4e9},
        {"train.tokens", NIBBLE_SLOT(train.tokens), "or: tokens of the run, rounded up to whole steps", kFree,
         0, kAny},
        {"train.batch_size", NIBBLE_SLOT(train.batch_size), "sequences in an optimizer step", kFixed, 1,
         kOneBillion},
        {"train.micro_batch_size", NIBBLE_SLOT(train.micro_batch_size),
         "sequences at once; the gradients of batch_size / micro_batch_size of them add up", kFree, 1,
         kOneBillion},
        {"train.eval_every", NIBBLE_SLOT(train.eval_every), "steps between evaluations; 0: only at the end",
         kFree, 0, 4e9},
        {"train.eval_batches", NIBBLE_SLOT(train.eval_batches),
         "micro-batches in an evaluation; 0: all of data.validation", kFree, 0, kOneBillion},

        {"checkpoint.every", NIBBLE_SLOT(checkpoint.every),
         "steps between checkpoints; 0: only when the run ends or is stopped", kFree, 0, 4e9},
        {"checkpoint.keep", NIBBLE_SLOT(checkpoint.keep), "newest checkpoints that are kept; 0: all", kFree,
         0, kOneBillion},

        {"device.kind", NIBBLE_SLOT(device.kind), "where the run executes", kFree, 0, 0, {"cpu"}},
        {"device.threads", NIBBLE_SLOT(device.threads), "threads; 0: as many as the machine has cores", kFree,
         0, 4096},
        {"device.allow",
         NIBBLE_SLOT(device.allow),
         "substitutes for exact products that are acceptable, by name; the cpu needs none",
         kFree,
         0,
         0,
         {"fp8-folded"}},

        {"output.dir", NIBBLE_SLOT(output.dir),
         "folder of the log, the checkpoints, the model and the report"},
        {"output.dtype",
         NIBBLE_SLOT(output.dtype),
         "dtype of the weights in the model folder",
         kFree,
         0,
         0,
         {"f32", "bf16"}},
    };
    return keys;
}

}  // namespace nibble
