// The instruction sets that nibble's Highway code is compiled for, chosen at run time: AVX-512, AVX2 and SSE4
// on x86-64, NEON on ARM. Include before any header of Highway. Others are left out to keep builds short;
// vectors of unknown length (SVE) do not fit the lane layout.
#pragma once

#define HWY_DISABLED_TARGETS \
    (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

// Highway always compiles a baseline without vector instructions. It has no kernels: the reference serves
// there.
#define NIBBLE_HAS_LANES (HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128)
