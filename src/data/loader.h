// Batches of token windows. What a step sees is a pure function of (seed, step): nothing is shuffled in
// memory, no state is saved, and the number of threads, shards or micro-steps changes nothing.
#pragma once

#include <cstdint>

#include "core/tensor.h"
#include "data/shard.h"

namespace nibble {

// The target of positions behind the end of the data; the loss leaves it out (kIgnoredTarget in
// nn/cross_entropy.h).
inline constexpr int32_t kPaddingTarget = -100;

// A permutation of [0, size), chosen by (seed, epoch): the image of one index in O(1), without a table. A
// Feistel network of Philox rounds over the next power of four, walked until it lands inside (Black and
// Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002).
class WindowPermutation {
  public:
    WindowPermutation(int64_t size, uint64_t seed, uint32_t epoch);
    int64_t operator()(int64_t index) const;

  private:
    uint64_t seed_;
    uint32_t epoch_;
    uint64_t size_;
    int half_bits_;
};

// Training windows. The tokens of all shards, one after the other, are cut into windows of `sequence_length`
// inputs and as many targets (the inputs moved by one). Each epoch is a permutation of its windows, and
// begins at an offset of its own below sequence_length, so that windows differ from epoch to epoch; it leaves
// out fewer than 2 * sequence_length tokens. Sequence s of step t is number t * batch_size + s of the endless
// row of epochs.
class Loader {
  public:
    // `data` must outlive the loader. Throws Error if it has no window.
    Loader(const TokenShards& data, int64_t sequence_length, int64_t batch_size, uint64_t seed);

    int64_t windows() const { return windows_; }  // of an epoch
    int64_t sequence_length() const { return sequence_length_; }
    int64_t batch_size() const { return batch_size_; }
    // The epoch that the first sequence of a step belongs to, as a number with a fraction.
    double epoch_of(int64_t step) const;

    // Fills I32 [n, sequence_length] with the sequences [first, first + n) of the batch of `step`.
    // A micro-step takes first = micro_step * n.
    void load(int64_t step, int64_t first, const Tensor& tokens, const Tensor& targets) const;

  private:
    int64_t offset_of(uint32_t epoch) const;

    const TokenShards& data_;
    int64_t sequence_length_, batch_size_, windows_;
    uint64_t seed_;
};

// Evaluation windows, in order, over every token: each but the first is a target once. The last window is
// filled up with end-of-text and kPaddingTarget.
class EvaluationLoader {
  public:
    // `data` must outlive the loader. Throws Error if it has fewer than two tokens.
    EvaluationLoader(const TokenShards& data, int64_t sequence_length);

    int64_t windows() const { return windows_; }

    // Fills I32 [n, sequence_length] with the windows [first, first + n). Windows behind the last are all
    // padding.
    void load(int64_t first, const Tensor& tokens, const Tensor& targets) const;

  private:
    const TokenShards& data_;
    int64_t sequence_length_, windows_;
};

}  // namespace nibble
