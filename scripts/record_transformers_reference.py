#!/usr/bin/env python3
"""Records tests/golden/transformers_llama.safetensors: the logits that transformers' LlamaForCausalLM computes in
FP32 for two small random models. Needs torch, transformers and safetensors; the tests need only the recorded file.

    scripts/record_transformers_reference.py [OUT]

For each model M ("untied": grouped queries, heads wider than hidden_size / heads; "tied": head and embedding shared):
    M.NAME      F32  the weights under their Hugging Face names
    M.tokens    I32  [sequences, length]
    M.logits    F32  [sequences, length, vocab]
Metadata: M.config, the config.json that transformers writes.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

MODELS = {
    "untied": dict(hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=2, head_dim=12, vocab_size=96, max_position_embeddings=64,
                   rope_theta=500000.0, rms_norm_eps=1e-6, tie_word_embeddings=False),
    "tied": dict(hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=3,
                 num_key_value_heads=3, vocab_size=80, max_position_embeddings=64, rope_theta=10000.0,
                 rms_norm_eps=1e-5, tie_word_embeddings=True),
}


def main():
    default = Path(__file__).resolve().parent.parent / "tests/golden/transformers_llama.safetensors"
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    torch.manual_seed(7)
    tensors, metadata = {}, {"transformers": transformers.__version__, "torch": torch.__version__}
    for name, settings in MODELS.items():
        model = LlamaForCausalLM(LlamaConfig(**settings)).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else 0.2 * noise)
            tokens = torch.randint(settings["vocab_size"], (2, 24))
            logits = model(tokens, use_cache=False).logits
        for key, weight in model.state_dict().items():
            if not (settings["tie_word_embeddings"] and key == "lm_head.weight"):
                tensors[f"{name}.{key}"] = weight.clone()
        tensors[f"{name}.tokens"] = tokens.int()
        tensors[f"{name}.logits"] = logits.contiguous()
        metadata[f"{name}.config"] = model.config.to_json_string()
    save_file(tensors, out, metadata=metadata)
    print(f"{out}: {len(tensors)} tensors, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
