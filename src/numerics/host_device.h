// NIBBLE_HD marks the functions that decide bits: one definition, compiled for CPU and GPU.
#pragma once

#if defined(__CUDACC__)
#define NIBBLE_HD __host__ __device__ inline
#else
#define NIBBLE_HD inline
#endif
