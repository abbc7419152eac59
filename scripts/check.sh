#!/usr/bin/env bash
# make check: what is too slow or too demanding for make test. Each part says its name; all run, the first
# failure decides the exit code.
set -uo pipefail
cd "$(dirname "$0")/.."
jobs=${1:-2}
failed=()

part() {  # part NAME COMMAND...
    printf '\n== %s\n' "$1"
    "${@:2}" || failed+=("$1")
}

build_and_test() {  # build_and_test PRESET
    cmake --preset "$1" >/dev/null && cmake --build "build/$1" -j "$jobs" && ctest --preset "$1" -j "$jobs"
}

check_format() { git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format --dry-run --Werror; }

# The kernels, as C++, on the GPU of tests/simulated_gpu, but for tests that take it more than some minutes; the
# quantisers' once more with the threads of a block in the other order, products by groups in the memory of smaller GPUs.
build_simulated() {
    local slow='CudaAttention|RecomputeOnGpu|ResumesToTheBit|IsMonitored|IsNotChanged|GiveTheRecordedDigests'
    cmake --preset simulated >/dev/null && cmake --build build/simulated -j "$jobs" --target nibble_program test_cuda &&
        ctest --preset simulated -j "$jobs" -L cuda -E "$slow" &&
        NIBBLE_SIMULATED_ORDER=backward ctest --preset simulated -j "$jobs" -R QuantisersOfLarge &&
        NIBBLE_SIMULATED_GPU=ada ctest --preset simulated -j "$jobs" -R OfGroupsWithFp32Scales
}

build_hopper() {  # tests of kernels are skipped where there is no GPU
    scripts/install_cuda_packages.sh && cmake --preset hopper >/dev/null &&
        cmake --build build/hopper -j "$jobs" && ctest --preset hopper -j "$jobs"
}

build_ampere() {  # compiles, without the tests
    cmake --preset ampere -DNIBBLE_BENCH=OFF >/dev/null && cmake --build build/ampere -j "$jobs" --target nibble_program
}

scripts/install_packages.sh clang clang-format libomp-dev libboost-context-dev || exit 1
part "formatting" check_format
part "benchmarks compile" cmake --build build/cpu -j "$jobs" --target benchmarks
part "address and undefined-behaviour sanitizers" build_and_test asan
part "clang" build_and_test clang
part "kernels on a simulated GPU" build_simulated
part "installed package" scripts/check_install.sh "$jobs"
if command -v nvcc >/dev/null; then
    part "CUDA, the preset hopper" build_hopper
    part "CUDA, the preset ampere" build_ampere
else
    printf '\n== CUDA compilation: skipped, there is no nvcc\n'
fi

if [ ${#failed[@]} -gt 0 ]; then
    printf '\nfailed: %s\n' "${failed[*]}"
    exit 1
fi
printf '\nall checks passed\n'
