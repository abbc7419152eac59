#!/usr/bin/env python3
"""Records what transformers computes in FP32 for small random models. Needs torch, transformers and safetensors;
the tests need only the recorded files.

    scripts/record_transformers_reference.py llama [OUT]    tests/golden/transformers_llama.safetensors
    scripts/record_transformers_reference.py qwen [OUT]     tests/golden/transformers_qwen.safetensors

For each model M (Llamas "untied": grouped queries, heads wider than hidden_size / heads; "tied": head and embedding
shared; "qwen2": biases of queries, keys and values, tied; "qwen3": norms of their heads):
    M.NAME      F32  the weights under their Hugging Face names
    M.tokens    I32  [sequences, length]
    M.logits    F32  [sequences, length, vocab]
    M.loss      F32  [1], the mean over all targets; target i is token i + 1, the last position has none (Qwen)
    M.grad.NAME F32  its gradients (Qwen)
Metadata: M.config, the config.json that transformers writes.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

SMALL = dict(hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=96, max_position_embeddings=64, rope_theta=500000.0, rms_norm_eps=1e-6)
FAMILIES = {
    "llama": {
        "untied": LlamaConfig(**SMALL, head_dim=12, tie_word_embeddings=False),
        "tied": LlamaConfig(hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=3,
                            num_key_value_heads=3, vocab_size=80, max_position_embeddings=64, rope_theta=10000.0,
                            rms_norm_eps=1e-5, tie_word_embeddings=True),
    },
    "qwen": {
        "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=False),
    },
}


def main():
    family = sys.argv[1]
    default = Path(__file__).resolve().parent.parent / f"tests/golden/transformers_{family}.safetensors"
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else default
    torch.manual_seed(7)
    tensors, metadata = {}, {"transformers": transformers.__version__, "torch": torch.__version__}
    for name, config in FAMILIES[family].items():
        model = AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(1 + 0.2 * noise if "norm" in key else 0.2 * noise)
        tokens = torch.randint(config.vocab_size, (2, 24))
        output = model(tokens, labels=tokens, use_cache=False)
        for key, weight in model.state_dict().items():
            if not (config.tie_word_embeddings and key == "lm_head.weight"):
                tensors[f"{name}.{key}"] = weight.clone()
        tensors[f"{name}.tokens"] = tokens.int()
        tensors[f"{name}.logits"] = output.logits.detach().contiguous()
        metadata[f"{name}.config"] = model.config.to_json_string()
        if family == "llama":
            continue
        output.loss.backward()
        tensors[f"{name}.loss"] = output.loss.detach().reshape(1)
        for key, parameter in model.named_parameters():
            tensors[f"{name}.grad.{key}"] = parameter.grad.contiguous()
    save_file(tensors, out, metadata=metadata)
    print(f"{out}: {len(tensors)} tensors, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
