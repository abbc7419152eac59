#!/usr/bin/env python3
"""Every built-in recipe, or those named, on the demo's model, data and learning rate, with several seeds.

usage: compare_methods.py PROGRAM [--seeds 1,2,3] [--jobs N] [--threads N] [--recipes A,B.toml] [--out DIR]

Trains what is not in DIR (runs/methods) yet, --jobs runs of --threads (1) each at a time, with the program's --resume
where a run was cut off. Then prints the table of docs/methods/README.md, the rank correlation between the recipes'
layer errors and their gaps, and the loss of a bigram model of the same tokens. Without --recipes it also writes the
losses by seed to configs/runs/demo-spread.json, which `make demo` prints beside its gaps. Run `make demo` first: it
makes the data.
"""
import argparse
import array
import collections
import concurrent.futures
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def log_of(folder):
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_complete(folder):
    lines = log_of(folder)
    return bool(lines) and lines[-1]["type"] == "end" and lines[-1]["reason"] == "complete"


def train(program, recipe, seed, folder, threads):
    if is_complete(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    key = "file" if recipe.endswith(".toml") else "name"
    command = [program, "train", "configs/runs/demo.toml", "--set", f"recipe.{key}={recipe}", "--set", f"seed={seed}",
               "--set", f"output.dir={folder}"]
    if folder.exists():
        command.append("--resume")
    with open(f"{folder}.txt", "w") as output:
        subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stdout=output,
                       stderr=subprocess.STDOUT, check=False)
    print(f"{folder.name}: {'done' if is_complete(folder) else 'NOT complete, see ' + str(folder) + '.txt'}",
          file=sys.stderr, flush=True)


def final_losses(folder):
    """Validation loss with the recipe's own forward and with bf16, at the end; None where the run stopped early."""
    if not is_complete(folder):
        return None
    evaluations = [line for line in log_of(folder) if line["type"] == "eval"]
    last = [line for line in evaluations if line["step"] == evaluations[-1]["step"]]
    bf16 = [line["loss"] for line in last if line["forward"] == "bf16"]
    own = [line["loss"] for line in last if line["forward"] != "bf16"]
    return (own or bf16)[0], bf16[0]


def layer_errors(program, recipes):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "linear.json"
        subprocess.run([program, "study", "linear", *recipes, "--json", path], cwd=ROOT, check=True,
                       stdout=subprocess.DEVNULL)
        return dict(zip(recipes, json.loads(path.read_text())))


def tokens_of(part):
    """The tokens of the demo's one shard: 16 bits each after a header of 128 bytes (docs/data.md)."""
    tokens = array.array("H")
    tokens.frombytes((ROOT / "data/austen" / part / "00000.shard").read_bytes()[128:])
    return tokens


def bigram_loss(tokens_trained, vocabulary=2048):
    """Validation loss of a bigram model, smoothed towards the unigrams by the best of a few weights."""
    train, validation = tokens_of("train")[:tokens_trained], tokens_of("validation")
    pairs, firsts = collections.Counter(zip(train, train[1:])), collections.Counter(train[:-1])
    unigrams = collections.Counter(train)
    share = [(unigrams[token] + 0.5) / (len(train) + 0.5 * vocabulary) for token in range(vocabulary)]
    return min(statistics.mean(-math.log((pairs[a, b] + weight * share[b]) / (firsts[a] + weight))
                               for a, b in zip(validation, validation[1:]))
               for weight in (1, 3, 10, 30, 100, 300))


def with_spread(values, sign=False):
    mean = f"{statistics.mean(values):+.4f}" if sign else f"{statistics.mean(values):.4f}"
    return mean + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def ranks(values):
    order = sorted(range(len(values)), key=values.__getitem__)
    return [order.index(i) for i in range(len(values))]


def rank_correlation(a, b):
    n = len(a)
    return 1 - 6 * sum((x - y) ** 2 for x, y in zip(ranks(a), ranks(b))) / (n * (n * n - 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipes", default="")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs/methods")
    options = parser.parse_args()
    program = str(pathlib.Path(options.program).resolve())
    listed = subprocess.run([program, "recipes"], check=True, capture_output=True, text=True).stdout.splitlines()
    recipes = options.recipes.split(",") if options.recipes else [line.split()[0] for line in listed]
    if "bf16" not in recipes:
        recipes.insert(0, "bf16")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    folder = {(recipe, seed): (options.out / f"{pathlib.Path(recipe).stem}-{seed}").resolve()
              for recipe in recipes for seed in seeds}

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda key: train(program, *key, folder[key], options.threads), folder))

    losses = {}
    for recipe in recipes:
        of_seeds = [final_losses(folder[recipe, seed]) for seed in seeds]
        if all(of_seeds):
            losses[recipe] = of_seeds
        else:
            print(f"{recipe}: left out, a run did not complete", file=sys.stderr)
    errors = layer_errors(program, list(losses))
    gap = {recipe: [own - base[1] for (own, _), base in zip(of_seeds, losses["bf16"])]
           for recipe, of_seeds in losses.items()}
    gap_bf16 = {recipe: [other - base[1] for (_, other), base in zip(of_seeds, losses["bf16"])]
                for recipe, of_seeds in losses.items()}
    print("| recipe | validation loss | gap to bf16 | gap with a bf16 forward | layer error Y | dX | dW |")
    print("|---|---|---|---|---|---|---|")
    for recipe in sorted(losses, key=lambda r: statistics.mean(gap[r])):
        e = errors[recipe]
        gaps = ("–", "–") if recipe == "bf16" else (with_spread(gap[recipe], True), with_spread(gap_bf16[recipe], True))
        print(f"| {recipe} | {with_spread([own for own, _ in losses[recipe]])} | {gaps[0]} | {gaps[1]} | "
              f"{e['y']:.3f} | {e['dx']:.3f} | {e['dw']:.3f} |")
    quantised = [recipe for recipe in losses if recipe != "bf16"]
    if len(quantised) > 2:
        means = [statistics.mean(gap[recipe]) for recipe in quantised]
        print("\nRank correlation (Spearman) of the gap with the layer error over "
              f"{len(quantised)} recipes: " + ", ".join(
                  f"{name} {rank_correlation(means, [errors[r][key] for r in quantised]):+.2f}"
                  for name, key in (("Y", "y"), ("dX", "dx"), ("dW", "dw"))))
    tokens_trained = log_of(folder["bf16", seeds[0]])[-1]["tokens"]
    print(f"A bigram model of the same {tokens_trained:,} tokens: {bigram_loss(tokens_trained):.4f}")
    if not options.recipes:
        spread = {recipe: [round(own, 5) for own, _ in of_seeds] for recipe, of_seeds in losses.items()}
        (ROOT / "configs/runs/demo-spread.json").write_text(json.dumps(spread, indent=2) + "\n")


if __name__ == "__main__":
    main()
