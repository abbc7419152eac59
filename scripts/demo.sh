#!/usr/bin/env bash
# make demo: a small text in, three trained models, one table and a report out.
# usage: demo.sh PROGRAM      DEMO_TEXT=file trains on that text instead of Jane Austen's novels
set -euo pipefail
cd "$(dirname "$0")/.."
nibble=$1
recipes=(bf16 quartet2 nvidia)

if [ -n "${DEMO_TEXT:-}" ]; then
    data=data/demo-text
    texts=("$DEMO_TEXT")
    [ "$DEMO_TEXT" -nt "$data/train" ] 2>/dev/null && rm -rf "$data"
else
    data=data/austen
    [ -d "$data/text" ] || scripts/fetch_austen.sh "$data/text"
    texts=("$data"/text/*)
fi

if [ ! -d "$data/tokenizer" ]; then
    "$nibble" tokenizer train --vocab-size 2048 --out "$data/tokenizer" "${texts[@]}"
fi
if [ ! -d "$data/train" ] || [ ! -d "$data/validation" ]; then
    "$nibble" tokenize --tokenizer "$data/tokenizer" --out "$data" --validation-fraction 0.05 "${texts[@]}"
fi

spread=()
[ -f configs/runs/demo-spread.json ] && [ -z "${DEMO_TEXT:-}" ] && spread=(--spread configs/runs/demo-spread.json)

for recipe in "${recipes[@]}"; do
    printf '\n== %s\n' "$recipe"
    rm -rf "runs/demo/$recipe"
    "$nibble" train configs/runs/demo.toml --set recipe.name="$recipe" --set output.dir="runs/demo/$recipe" \
        --set data.train="$data/train" --set data.validation="$data/validation"
done

printf '\n'
"$nibble" report "${recipes[@]/#/runs/demo/}" --out report.html "${spread[@]}"
printf '\nWhat the quartet2 model writes:\n'
"$nibble" generate --model runs/demo/quartet2/model --prompt "It was" --max-tokens 96 --temperature 0.8 --seed 1
