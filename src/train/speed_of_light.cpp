#include "train/speed_of_light.h"

#include <algorithm>
#include <chrono>

#include "gemm/matmul.h"

namespace nibble {

int64_t matmul_parameters(const ModelConfig& c) {
    const int64_t attention_size = int64_t{c.num_attention_heads} * c.head_dim;
    const int64_t block = c.hidden_size * (c.qkv_size() + attention_size + 3 * c.intermediate_size);
    return c.num_hidden_layers * block + c.vocab_size * c.hidden_size;
}

double training_flops_per_token(const ModelConfig& c, int64_t sequence_length) {
    const double attention_size = static_cast<double>(c.num_attention_heads) * c.head_dim;
    return 6.0 * static_cast<double>(matmul_parameters(c)) +
           6.0 * c.num_hidden_layers * attention_size * static_cast<double>(sequence_length + 1);
}

double forward_flops_per_token(const ModelConfig& c, int64_t sequence_length) {
    return training_flops_per_token(c, sequence_length) / 3.0;
}

double measure_gemm_peak(double seconds) {
    using Clock = std::chrono::steady_clock;
    constexpr int64_t kSizes[] = {512, 1024, 2048};
    double best = 0;
    for (const int64_t n : kSizes) {
        const Buffer a(DType::bf16, {n, n}), b(DType::bf16, {n, n}), c(DType::f32, {n, n});
        std::fill_n(a.tensor().as<Bf16>(), n * n, Bf16{0x3f80});  // ones: denormals or NaNs would be slow
        std::fill_n(b.tensor().as<Bf16>(), n * n, Bf16{0x3f80});
        Arena arena;
        Context context{arena};
        const auto product = [&] {
            const ArenaScope scope(arena);
            matmul(context, a.tensor(), b.tensor(), c.tensor());
        };
        product();  // plans its scratch memory
        arena.commit();
        const auto first = Clock::now();
        product();  // warms up
        // On a slow machine the next size would take longer than it teaches.
        const bool is_last = std::chrono::duration<double>(Clock::now() - first).count() > seconds / 8;
        const auto end = Clock::now() + std::chrono::duration<double>(seconds / std::size(kSizes));
        do {
            const auto begin = Clock::now();
            product();
            const double elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
            best = std::max(best, 2.0 * static_cast<double>(n * n * n) / elapsed);
        } while (Clock::now() < end);
        if (is_last) break;
    }
    return best;
}

}  // namespace nibble
