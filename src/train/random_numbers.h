// Numbers for measurements and self-checks: the same for a seed whatever the machine.
#pragma once

#include "core/core.h"
#include "numerics/bf16.h"
#include "numerics/philox.h"

namespace nibble {

// Fills a tensor of the CPU, BF16 or F32, with sums of four uniform numbers: mean 0, between -2 and 2.
inline void fill_about_normal(const Tensor& here, uint64_t seed) {
    with_elements(here, [&]<typename T>(T* values) {
        parallel_for(here.count(), 1 << 14, [=](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const Philox draw = philox_draw(seed, Purpose::sampling, static_cast<uint64_t>(i));
                float sum = -2;
                for (const uint32_t word : draw.word) sum += static_cast<float>(word) * 0x1p-32f;
                if constexpr (std::is_same_v<T, Bf16>)
                    values[i] = bf16_encode(sum);
                else
                    values[i] = sum;
            }
        });
    });
}

// Fills an I32 tensor of the CPU with integers from 0 to limit - 1.
inline void fill_below(const Tensor& here, int64_t limit, uint64_t seed) {
    uint64_t i = 0;
    for (int32_t& value : here.span<int32_t>())
        value = static_cast<int32_t>(philox_draw(seed, Purpose::sampling, i++).word[0] %
                                     static_cast<uint32_t>(limit));
}

}  // namespace nibble
