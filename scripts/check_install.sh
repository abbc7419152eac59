#!/usr/bin/env bash
# Installs the library and the program into a folder of its own, runs the installed program, and builds and runs a
# project that finds the package there.   scripts/check_install.sh [JOBS]
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${1:-2}
root=$PWD/build/install-check
rm -rf "$root"

cmake -S . -B "$root/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DNIBBLE_TESTS=OFF -DNIBBLE_BENCH=OFF >/dev/null
cmake --build "$root/build" -j "$jobs"
cmake --install "$root/build" --prefix "$root/prefix" >/dev/null
"$root/prefix/bin/nibble" recipes >/dev/null

cmake -S tests/install -B "$root/consumer" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$root/prefix" \
      >/dev/null
cmake --build "$root/consumer" -j "$jobs"
expected=$("$root/prefix/bin/nibble" --version)
printed=$("$root/consumer/consumer" "$root/model")
[ "$printed" = "$expected" ] || { echo "the consumer says '$printed', the program '$expected'"; exit 1; }
echo "installed: $printed"
