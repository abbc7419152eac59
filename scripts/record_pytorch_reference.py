#!/usr/bin/env python3
"""Records tests/golden/pytorch_llama.safetensors: what an independent PyTorch implementation of the small Llama
computes. Needs torch and safetensors; the tests need only the recorded file.

    scripts/record_pytorch_reference.py [OUT]

The model is written here in plain PyTorch, twice in one: `exact` in float64, and `bf16`, in float32 with values
rounded to BF16 where nibble stores BF16 (activations, their gradients, weights as they enter a product).
Both start from the same weights and see the same batches.

Tensors (names of parameters as in a Hugging Face directory):
    weight.NAME                     F32   at the start
    tokens, targets                 I32   [steps, sequences, length]; target -100 does not count
    VARIANT.gradient.NAME           F32   of the mean loss of batch 0 at the start
    VARIANT.losses, .gradient_norms F64   [steps], of each step before its update
Metadata: config (config.json of the model), optimizer (JSON: lr, betas, epsilon, weight_decay, clip, steps,
warmup_steps, final).
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
OPTIMIZER = {
    "lr": 5e-3,
    "betas": [0.9, 0.95],
    "epsilon": 1e-8,
    "weight_decay": 0.1,
    "clip": 0.5,
    "steps": 20,
    "warmup_steps": 4,
    "final": 0.1,
}
SEQUENCES, LENGTH = 4, 32
IGNORED = -100


class RoundBoth(torch.autograd.Function):
    """A tensor stored in BF16, whose gradient is stored in BF16 too."""

    @staticmethod
    def forward(ctx, x):
        return x.to(torch.bfloat16).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to(torch.bfloat16).to(gradient.dtype)


class RoundValue(torch.autograd.Function):
    """A master weight that enters a product as BF16; its gradient stays wide."""

    @staticmethod
    def forward(ctx, x):
        return x.to(torch.bfloat16).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Llama:
    def __init__(self, weights, rounded):
        self.dtype = torch.float32 if rounded else torch.float64
        self.p = {name: w.to(self.dtype, copy=True).requires_grad_() for name, w in weights.items()}
        self.stored = RoundBoth.apply if rounded else (lambda x: x)
        self.entering = RoundValue.apply if rounded else (lambda x: x)

    def product(self, x, name):
        return x @ self.entering(self.p[name]).T

    def norm(self, x, name):
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return self.stored(x * torch.rsqrt(mean_square + CONFIG["rms_norm_eps"]) * self.p[name])

    def rope(self, x):
        # x: [sequences, heads, length, head_dim]; element i pairs with i + head_dim/2.
        half = x.shape[-1] // 2
        frequency = CONFIG["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequency
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        a, b = x[..., :half], x[..., half:]
        return self.stored(torch.cat([a * cos - b * sin, b * cos + a * sin], -1))

    def attention(self, x, prefix):
        heads, kv_heads = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
        sequences, length, _ = x.shape

        def split(name, count):
            y = self.stored(self.product(x, f"{prefix}.{name}_proj.weight"))
            return y.view(sequences, length, count, CONFIG["head_dim"]).transpose(1, 2)

        q, k, v = self.rope(split("q", heads)), self.rope(split("k", kv_heads)), split("v", kv_heads)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(CONFIG["head_dim"])
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        probabilities = scores.masked_fill(future, -math.inf).softmax(-1)
        mixed = self.stored((probabilities @ v).transpose(1, 2).reshape(sequences, length, -1))
        return self.stored(self.product(mixed, f"{prefix}.o_proj.weight"))

    def mlp(self, x, prefix):
        gate = self.stored(self.product(x, f"{prefix}.gate_proj.weight"))
        up = self.stored(self.product(x, f"{prefix}.up_proj.weight"))
        hidden = self.stored(gate * torch.sigmoid(gate) * up)
        return self.stored(self.product(hidden, f"{prefix}.down_proj.weight"))

    def loss(self, tokens, targets):
        x = self.stored(self.p["model.embed_tokens.weight"][tokens.long()])
        for i in range(CONFIG["num_hidden_layers"]):
            block = f"model.layers.{i}"
            y = self.attention(self.norm(x, f"{block}.input_layernorm.weight"), f"{block}.self_attn")
            x = self.stored(x + y)
            y = self.mlp(self.norm(x, f"{block}.post_attention_layernorm.weight"), f"{block}.mlp")
            x = self.stored(x + y)
        logits = self.product(self.norm(x, "model.norm.weight"), "lm_head.weight")
        counted = targets != IGNORED
        log_probabilities = logits.log_softmax(-1)[counted]
        return -log_probabilities.gather(-1, targets[counted].long()[:, None]).mean()

    def gradients(self, tokens, targets):
        loss = self.loss(tokens, targets)
        return loss.item(), dict(zip(self.p, torch.autograd.grad(loss, list(self.p.values()))))


def is_matrix(name):
    return "_proj" in name


def learning_rate(step):
    warmup, steps = OPTIMIZER["warmup_steps"], OPTIMIZER["steps"]
    if step < warmup:
        return OPTIMIZER["lr"] * (step + 1) / warmup
    p = (step - warmup + 1) / (steps - warmup)
    return OPTIMIZER["lr"] * (OPTIMIZER["final"] + (1 - OPTIMIZER["final"]) * (1 + math.cos(math.pi * p)) / 2)


def train(model, tokens, targets):
    """Losses and gradient norms of each step: clipping by the global norm, then AdamW."""
    (beta1, beta2), clip = OPTIMIZER["betas"], OPTIMIZER["clip"]
    m = {name: torch.zeros_like(p) for name, p in model.p.items()}
    v = {name: torch.zeros_like(p) for name, p in model.p.items()}
    losses, norms = [], []
    for step in range(OPTIMIZER["steps"]):
        loss, gradients = model.gradients(tokens[step], targets[step])
        norm = math.sqrt(sum(g.double().pow(2).sum().item() for g in gradients.values()))
        lr, t = learning_rate(step), step + 1
        with torch.no_grad():
            for name, p in model.p.items():
                g = gradients[name] * min(1.0, clip / norm)
                m[name] = beta1 * m[name] + (1 - beta1) * g
                v[name] = beta2 * v[name] + (1 - beta2) * g * g
                if is_matrix(name):
                    p *= 1 - lr * OPTIMIZER["weight_decay"]
                p -= lr * (m[name] / (1 - beta1**t)) / ((v[name] / (1 - beta2**t)).sqrt() + OPTIMIZER["epsilon"])
        losses.append(loss)
        norms.append(norm)
    return losses, norms


def start_weights(generator):
    c, f, v = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    q, kv = (CONFIG[k] * CONFIG["head_dim"] for k in ("num_attention_heads", "num_key_value_heads"))
    shapes = {"model.embed_tokens.weight": (v, c)}
    for i in range(CONFIG["num_hidden_layers"]):
        block = f"model.layers.{i}"
        shapes[f"{block}.input_layernorm.weight"] = (c,)
        shapes[f"{block}.post_attention_layernorm.weight"] = (c,)
        for name, shape in {"q": (q, c), "k": (kv, c), "v": (kv, c), "o": (c, q)}.items():
            shapes[f"{block}.self_attn.{name}_proj.weight"] = shape
        for name, shape in {"gate": (f, c), "up": (f, c), "down": (c, f)}.items():
            shapes[f"{block}.mlp.{name}_proj.weight"] = shape
    shapes["model.norm.weight"] = (c,)
    shapes["lm_head.weight"] = (v, c)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        # Larger than an ordinary start, so that attention is far from uniform and norms far from 1.
        weights[name] = 0.1 * noise if len(shape) == 2 else 1 + 0.2 * noise
    return weights


def batches(generator):
    """Sequences in which each token depends on the one before: the next is one of four."""
    steps, vocab = OPTIMIZER["steps"], CONFIG["vocab_size"]
    successors = torch.randint(vocab, (vocab, 4), generator=generator)
    text = torch.empty(steps, SEQUENCES, LENGTH + 1, dtype=torch.int64)
    text[..., 0] = torch.randint(vocab, text.shape[:2], generator=generator)
    for i in range(LENGTH):
        choice = torch.randint(4, text.shape[:2], generator=generator)
        text[..., i + 1] = successors[text[..., i], choice]
    targets = text[..., 1:].clone()
    targets[:, 1, :5] = IGNORED
    return text[..., :-1].int().contiguous(), targets.int().contiguous()


def main():
    default = Path(__file__).resolve().parent.parent / "tests/golden/pytorch_llama.safetensors"
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    generator = torch.Generator().manual_seed(20)
    weights = start_weights(generator)
    tokens, targets = batches(generator)
    tensors = {f"weight.{name}": w for name, w in weights.items()} | {"tokens": tokens, "targets": targets}
    for variant in ("exact", "bf16"):
        _, gradients = Llama(weights, variant == "bf16").gradients(tokens[0], targets[0])
        losses, norms = train(Llama(weights, variant == "bf16"), tokens, targets)
        print(f"{variant}: losses", " ".join(f"{x:.4f}" for x in losses))
        print(f"{variant}: norms ", " ".join(f"{x:.4f}" for x in norms))
        tensors |= {f"{variant}.gradient.{name}": g.float() for name, g in gradients.items()}
        tensors[f"{variant}.losses"] = torch.tensor(losses, dtype=torch.float64)
        tensors[f"{variant}.gradient_norms"] = torch.tensor(norms, dtype=torch.float64)
    metadata = {"config": json.dumps(CONFIG), "optimizer": json.dumps(OPTIMIZER), "torch": torch.__version__}
    save_file({k: t.detach().contiguous() for k, t in tensors.items()}, out, metadata=metadata)
    print(f"{out}: {len(tensors)} tensors, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
