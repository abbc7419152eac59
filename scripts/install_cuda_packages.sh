#!/bin/sh
# Fetches what a CUDA build takes from neither the distribution nor the CUDA toolkit: the C++ headers of
# cudnn-frontend (Apache 2.0 and MIT). They go to build/cuda-packages/include, or to the directory given, where
# cmake looks for them. Does nothing when they are there.
set -eu
version=1.32.0
to=${1:-$(dirname "$0")/../build/cuda-packages}
[ -f "$to/include/cudnn_frontend.h" ] && exit 0

if ! python3 -m pip --version >/dev/null 2>&1; then
    echo "nibble: python3 has no pip to fetch nvidia-cudnn-frontend $version with; install python3-pip" >&2
    exit 1
fi
echo "nibble: fetching the headers of nvidia-cudnn-frontend $version"
wheel=$(mktemp -d)
trap 'rm -rf "$wheel"' EXIT
python3 -m pip download -q --no-deps --only-binary=:all: --dest "$wheel" "nvidia-cudnn-frontend==$version"
python3 -m zipfile -e "$wheel"/*.whl "$wheel"
mkdir -p "$to"
cp -R "$wheel/include" "$to/"
cp -R "$wheel"/*.dist-info/licenses "$to/include/cudnn_frontend/"
