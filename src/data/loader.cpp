#include "data/loader.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "core/error.h"
#include "core/parallel.h"
#include "numerics/philox.h"

namespace nibble {

namespace {

// The words of Philox that data order uses: one a round of the permutation, and one for an epoch's offset.
constexpr int kRounds = 8;
constexpr uint8_t kOffsetDraw = 255;

void require_batch(const Tensor& tokens, const Tensor& targets, int64_t sequence_length) {
    require(tokens.shape.rank() == 2 && tokens.shape[1] == sequence_length && tokens.shape == targets.shape,
            "a batch of tokens and targets should both be [n, {}], not {} and {}", sequence_length,
            tokens.shape.str(), targets.shape.str());
}

}  // namespace

WindowPermutation::WindowPermutation(int64_t size, uint64_t seed, uint32_t epoch)
    : seed_(seed), epoch_(epoch), size_(static_cast<uint64_t>(size)) {
    require(size >= 1, "there is no permutation of {} windows", size);
    half_bits_ = std::max(1, (static_cast<int>(std::bit_width(size_ - 1)) + 1) / 2);
}

int64_t WindowPermutation::operator()(int64_t index) const {
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    auto value = static_cast<uint64_t>(index);
    do {
        uint64_t left = value >> half_bits_, right = value & mask;
        for (int round = 0; round < kRounds; ++round) {
            const Philox draw =
                philox_draw(seed_, Purpose::data_order, right, epoch_, 0, 0, static_cast<uint8_t>(round));
            const uint64_t mixed = left ^ (draw.word[0] & mask);
            left = right;
            right = mixed;
        }
        value = left << half_bits_ | right;
    } while (value >= size_);
    return static_cast<int64_t>(value);
}

Loader::Loader(const TokenShards& data, int64_t sequence_length, int64_t batch_size, uint64_t seed)
    : data_(data), sequence_length_(sequence_length), batch_size_(batch_size), seed_(seed) {
    require(sequence_length >= 1 && batch_size >= 1, "a batch needs sequences and tokens, not {} of {}",
            batch_size, sequence_length);
    windows_ = (data.tokens() - 1) / sequence_length;
    require(windows_ >= 1,
            "{} has {} tokens, fewer than one sequence of {} and its last target; use more text or a shorter "
            "sequence",
            data.path().string(), data.tokens(), sequence_length);
    // Room for the offset, where there is more than one window.
    if (windows_ > 1) --windows_;
}

double Loader::epoch_of(int64_t step) const {
    return static_cast<double>(step) * static_cast<double>(batch_size_) / static_cast<double>(windows_);
}

int64_t Loader::offset_of(uint32_t epoch) const {
    const int64_t room = std::min(sequence_length_, data_.tokens() - windows_ * sequence_length_);
    const Philox draw = philox_draw(seed_, Purpose::data_order, 0, epoch, 0, 0, kOffsetDraw);
    const uint64_t random = static_cast<uint64_t>(draw.word[1]) << 32 | draw.word[0];
    return static_cast<int64_t>(random % static_cast<uint64_t>(room));
}

void Loader::load(int64_t step, int64_t first, const Tensor& tokens, const Tensor& targets) const {
    require_batch(tokens, targets, sequence_length_);
    const int64_t count = tokens.shape[0];
    require(step >= 0 && first >= 0 && count <= batch_size_ - first,
            "sequences {}..{} are not in a batch of {}", first, first + count, batch_size_);
    auto* inputs = tokens.as<int32_t>();
    auto* outputs = targets.as<int32_t>();
    parallel_for(count, 16, [&](int64_t begin, int64_t end) {
        std::vector<int32_t> window(static_cast<size_t>(sequence_length_ + 1));
        for (int64_t row = begin; row < end; ++row) {
            const int64_t sequence = step * batch_size_ + first + row;
            const auto epoch = static_cast<uint32_t>(sequence / windows_);
            const int64_t place = WindowPermutation(windows_, seed_, epoch)(sequence % windows_);
            data_.copy(offset_of(epoch) + place * sequence_length_, window);
            std::copy(window.begin(), window.end() - 1, inputs + row * sequence_length_);
            std::copy(window.begin() + 1, window.end(), outputs + row * sequence_length_);
        }
    });
}

EvaluationLoader::EvaluationLoader(const TokenShards& data, int64_t sequence_length)
    : data_(data), sequence_length_(sequence_length) {
    require(sequence_length >= 1, "a sequence needs at least 1 token, not {}", sequence_length);
    require(data.tokens() >= 2, "{} has {} tokens; evaluation needs at least 2", data.path().string(),
            data.tokens());
    windows_ = (data.tokens() - 2) / sequence_length + 1;
}

void EvaluationLoader::load(int64_t first, const Tensor& tokens, const Tensor& targets) const {
    require_batch(tokens, targets, sequence_length_);
    require(first >= 0, "evaluation windows count from 0, not {}", first);
    auto* inputs = tokens.as<int32_t>();
    auto* outputs = targets.as<int32_t>();
    parallel_for(tokens.shape[0], 16, [&](int64_t begin, int64_t end) {
        std::vector<int32_t> window(static_cast<size_t>(sequence_length_ + 1));
        for (int64_t row = begin; row < end; ++row) {
            const int64_t start = std::min(data_.tokens(), (first + row) * sequence_length_);
            const auto size = static_cast<size_t>(std::min(sequence_length_ + 1, data_.tokens() - start));
            data_.copy(start, std::span(window).first(size));
            // The last token of the data is a target only.
            const size_t real = size == 0 ? 0 : size - 1;
            for (int64_t i = 0; i < sequence_length_; ++i) {
                const bool is_real = static_cast<size_t>(i) < real;
                inputs[row * sequence_length_ + i] = is_real ? window[i] : data_.end_of_text();
                outputs[row * sequence_length_ + i] = is_real ? window[i + 1] : kPaddingTarget;
            }
        }
    });
}

}  // namespace nibble
