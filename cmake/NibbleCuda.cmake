# CUDA: the language, its libraries, and how .cu files are compiled.
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
find_package(CUDNN REQUIRED)
# CMake 3.25.1 does not know that nvcc 13 has C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
# The same arithmetic as on the CPU, one rounding an operation (docs/numerics.md).
set(NIBBLE_CUDA_FLAGS -fmad=false -ftz=false -prec-div=true -prec-sqrt=true --expt-relaxed-constexpr
                      --expt-extended-lambda
                      -DFMT_CONSTEVAL= -DFMT_USE_CONSTEXPR=1)  # nvcc cannot evaluate the format checks of fmt 9
