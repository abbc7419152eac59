#!/usr/bin/env bash
# compute-sanitizer over the tests of the GPU's kernels, a tool and a part at a time: some minutes on a Hopper GPU.
# racecheck reports hazards in kernels of cuBLASLt and of cuDNN, too: those are counted, and others fail. What calls
# cuDNN's attention is left out there.
#   scripts/sanitize_gpu.sh [BUILD]
set -uo pipefail
tests=${1:-build/hopper}/tests/test_cuda
parts=(
    '*QuantisersOfLarge*' '*BothOrientations*' 'Quantisers.*-Quantisers.GiveTheRecorded*'
    '*CrossEntropyOnGpu*:*HeadLossOnGpu*:*ElementwiseOnGpu*:*EmbeddingOnGpu*:*RmsnormOnGpu*:*QkNormOnGpu*:OptimOnGpu*'
    'Fp8OnAGpu.*Codes*:*LinearPartsOnGpu*:*OutliersOnGpu*:ModifiersOnGpu*:*SmoothSwigluOnGpu*:CudaAttention.OfOther*'
    'Products.*-Products.*WhateverAlgorithm*' 'LinearLayers.*' 'Fp8OnAGpu.Layers*' 'Choices*'
)
with_attention=('CudaAttention.*' 'StepReplays.*:TransformerOnGpu.*-StepReplays.Choose*' 'StepReplays.Choose*')
library='access at (nvjet_|cudnn_|cutlass)'
failed=0
nvidia-smi -L || exit 1
check() {  # check TOOL FILTER
    printf '%s  %s\n' "$1" "$2"
    if ! "$tests" --gtest_list_tests --gtest_filter="$2" | grep -q '^  '; then
        echo "no test has such a name"
        failed=1
        return
    fi
    local report code
    report=$(compute-sanitizer --tool "$1" --error-exitcode 9 "$tests" --gtest_brief=1 --gtest_filter="$2" 2>&1)
    code=$?
    if [ $code = 9 ] && [ "$1" = racecheck ] && ! grep -q 'FAILED' <<<"$report" &&
        [ "$(grep 'access at' <<<"$report" | grep -cvE "$library")" = 0 ]; then
        printf 'hazards in kernels of libraries alone: %s\n' "$(grep -cE "Race reported" <<<"$report")"
        return
    fi
    printf '%s\n' "$report"
    [ $code = 0 ] || failed=1
}
for tool in memcheck initcheck racecheck; do
    for part in "${parts[@]}"; do
        [[ $tool = initcheck && $part = *HeadLoss* ]] && part+='-*ManyLogits*'  # 700 MB, byte by byte
        check $tool "$part"
    done
    [ $tool = racecheck ] && continue
    for part in "${with_attention[@]}"; do check $tool "$part"; done
done
exit $failed
