#include "train/speed_of_light.h"

#include <algorithm>
#include <chrono>

#include "core/cuda.h"
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

namespace {

// Of both signs and magnitudes around 1: products of equal numbers, or of zeros, draw less power.
void fill_random(const Tensor& tensor, uint64_t seed) {
    const Buffer memory(tensor.dtype, tensor.shape);
    auto* const values = memory.tensor().as<Bf16>();
    parallel_for(tensor.count(), 1 << 14, [=](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const auto bits =
                static_cast<uint64_t>(i + 1) * 0x9e3779b97f4a7c15ull ^ seed * 0xbf58476d1ce4e5b9ull;
            values[i] = {static_cast<uint16_t>(0x3f00u | (bits >> 40 & 0x80ffu))};
        }
    });
    copy(memory.tensor(), tensor);
}

}  // namespace

double measure_gemm_peak(Device device, double seconds) {
    using Clock = std::chrono::steady_clock;
    const bool is_gpu = device == Device::cuda;
    double best = 0;
    for (int64_t n : {512, 1024, 2048}) {
        if (is_gpu) n *= 4;
        const Buffer a(DType::bf16, {n, n}, device), b(DType::bf16, {n, n}, device),
            c(is_gpu ? DType::bf16 : DType::f32, {n, n}, device);
        fill_random(a.tensor(), 1);
        fill_random(b.tensor(), 2);
        Arena arena(device);
        Context context{arena};
        const auto product = [&] {
            const ArenaScope scope(arena);
            matmul(context, a.tensor(), b.tensor(), c.tensor());
            if (!context.planning()) synchronize(context);
        };
        product();  // plans its scratch memory
        arena.commit();
        const auto first = Clock::now();
        product();  // warms up
        // On a slow machine the next size would take longer than it teaches.
        const bool is_last = std::chrono::duration<double>(Clock::now() - first).count() > seconds / 8;
        const auto end = Clock::now() + std::chrono::duration<double>(seconds / 3);
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
