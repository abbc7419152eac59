#!/usr/bin/env bash
# make bench: runs every benchmark. usage: bench.sh BUILD_FOLDER [Google Benchmark options]
# Quantisers and layers are timed on one thread; docs/performance.md says what each figure means.
set -euo pipefail
build=$1
shift
for program in "$build"/bench/bench_*; do
    printf '\n== %s\n' "$(basename "$program")"
    "$program" "$@"
done
