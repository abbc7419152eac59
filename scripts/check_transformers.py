#!/usr/bin/env python3
"""Loads a model directory with transformers and compares its logits with those that nibble computed.

    scripts/check_transformers.py MODEL_DIR LOGITS.safetensors [--tolerance 1e-4]

LOGITS.safetensors holds `tokens`, integers [sequences, length], and `logits`, F32: [sequences, length, vocab], or
[sequences, vocab] for the last position alone. Prints the largest difference and the root mean square of both;
exit code 1 if the difference exceeds the tolerance. Also loads tokenizer and generation settings where they are.
Needs torch, transformers and safetensors.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("logits", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()

    model, report = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=torch.float32, output_loading_info=True
    )
    problems = {kind: sorted(names) for kind, names in report.items() if names}
    if problems:
        sys.exit(f"{arguments.model}: the weights do not fit the model: {problems}")
    recorded = load_file(arguments.logits)
    tokens, ours = recorded["tokens"].long(), recorded["logits"]
    with torch.no_grad():
        theirs = model.eval()(tokens, use_cache=False).logits
    if ours.dim() == 2:
        theirs = theirs[:, -1]
    if ours.shape != theirs.shape:
        sys.exit(f"{arguments.logits}: logits {list(ours.shape)}, but the model gives {list(theirs.shape)}")
    difference = (ours - theirs).abs().max().item()
    print(f"parameters           {sum(p.numel() for p in model.parameters())}")
    print(f"rms of logits        {theirs.pow(2).mean().sqrt().item():.6f}")
    print(f"rms of difference    {(ours - theirs).pow(2).mean().sqrt().item():.3e}")
    print(f"largest difference   {difference:.3e}")
    if (arguments.model / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        print(f"tokens               {tokenizer.decode(tokens[0, :16])!r}")
    if not difference <= arguments.tolerance:
        sys.exit(f"the logits differ by {difference:.3e}, more than {arguments.tolerance:.1e}")


if __name__ == "__main__":
    main()
