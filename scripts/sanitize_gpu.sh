#!/usr/bin/env bash
# compute-sanitizer over the tests of the GPU's kernels, a tool and a part at a time: some minutes on an H100.
# What calls cuDNN's attention is left out of racecheck, which reports hazards in kernels of that library.
#   scripts/sanitize_gpu.sh [BUILD]
set -uo pipefail
tests=${1:-build/hopper}/tests/test_cuda
parts=(
    '*QuantisersOfLarge*' 'Quantisers.*-Quantisers.GiveTheRecorded*'
    '*CrossEntropyOnGpu*:*HeadLossOnGpu*:*ElementwiseOnGpu*:*EmbeddingOnGpu*:*RmsnormOnGpu*:*QkNormOnGpu*:OptimOnGpu*'
    'Fp8OnAGpu.*Codes*:*LinearPartsOnGpu*:*OutliersOnGpu*:ModifiersOnGpu*:*SmoothSwigluOnGpu*:CudaAttention.OfOther*:Choices*'
    'Products.*-Products.*WhateverAlgorithm*' 'LinearLayers.*'
)
with_attention=('CudaAttention.*' 'StepReplays.*:TransformerOnGpu.*')
failed=0
nvidia-smi -L || exit 1
check() {  # check TOOL FILTER
    printf '%s  %s\n' "$1" "$2"
    if ! "$tests" --gtest_list_tests --gtest_filter="$2" | grep -q '^  '; then
        echo "no test has such a name"
        failed=1
        return
    fi
    compute-sanitizer --tool "$1" --error-exitcode 9 "$tests" --gtest_brief=1 --gtest_filter="$2" || failed=1
}
for tool in memcheck initcheck racecheck; do
    for part in "${parts[@]}"; do check $tool "$part"; done
    [ $tool = racecheck ] && continue
    for part in "${with_attention[@]}"; do check $tool "$part"; done
done
exit $failed
