#!/usr/bin/env bash
# Trains the demo's recipes with seeds 1, 2 and 3 and records the final validation losses in
# configs/runs/demo-spread.json, which make demo prints beside the gaps. Run make demo first: it makes the data.
# usage: record_demo_spread.sh PROGRAM
set -euo pipefail
cd "$(dirname "$0")/.."
nibble=$1
for recipe in bf16 quartet2 nvidia; do
    for seed in 1 2 3; do
        out=runs/demo-spread/$recipe-$seed
        rm -rf "$out"
        "$nibble" train configs/runs/demo.toml --set recipe.name=$recipe --set seed=$seed --set output.dir="$out"
    done
done
python3 - <<'PYTHON'
import json
losses = {}
for recipe in ("bf16", "quartet2", "nvidia"):
    for seed in (1, 2, 3):
        lines = [json.loads(line) for line in open(f"runs/demo-spread/{recipe}-{seed}/log.jsonl")]
        final = [line["loss"] for line in lines if line["type"] == "eval" and line["forward"] == recipe][-1]
        losses.setdefault(recipe, []).append(round(final, 5))
with open("configs/runs/demo-spread.json", "w") as file:
    file.write(json.dumps(losses, indent=2) + "\n")
PYTHON
