#include "data/tokenizer_train.h"

#include <algorithm>
#include <mutex>
#include <queue>
#include <tuple>

#include "core/error.h"
#include "core/parallel.h"
#include "data/byte_level.h"
#include "data/utf8.h"

namespace nibble {

namespace {

constexpr int64_t kSmallestVocabulary = 257;  // end-of-text and the bytes
// Every merge reads the pieces it touches again, so a piece of a million bytes is counted in parts.
constexpr size_t kLongestPiece = 4096;

struct Word {
    std::vector<int32_t> tokens;
    int64_t count;
};

uint64_t pair_key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right);
}

struct Pair {
    int64_t count;
    uint64_t key;
    // Queue order: the pair to merge first is the greatest.
    friend bool operator<(const Pair& a, const Pair& b) {
        return a.count != b.count ? a.count < b.count : a.key > b.key;
    }
};

// The merging itself. Counts of pairs are kept exact; the queue may hold old counts, which are put right when
// they come up.
class MergeLearner {
  public:
    explicit MergeLearner(std::vector<Word> words) : words_(std::move(words)) {
        for (size_t word = 0; word < words_.size(); ++word) {
            const auto& tokens = words_[word].tokens;
            for (size_t i = 0; i + 1 < tokens.size(); ++i)
                change(tokens[i], tokens[i + 1], word, words_[word].count);
        }
        for (const auto& [key, state] : pairs_) queue_.push({state.count, key});
        touched_.clear();
    }

    // The most frequent pair, or a count of 0 when none is left.
    Pair most_frequent() {
        while (!queue_.empty()) {
            const Pair top = queue_.top();
            const int64_t count = pairs_[top.key].count;
            if (count == top.count) return top;
            queue_.pop();
            if (count > 0) queue_.push({count, top.key});
        }
        return {0, 0};
    }

    void merge(uint64_t key, int32_t merged) {
        const auto left = static_cast<int32_t>(key >> 32), right = static_cast<int32_t>(key & 0xffffffffu);
        std::vector<size_t> where = std::move(pairs_[key].words);
        pairs_[key].words.clear();
        std::sort(where.begin(), where.end());
        where.erase(std::unique(where.begin(), where.end()), where.end());
        for (size_t word : where) merge_in_word(word, left, right, merged);
        // Only new pairs can have become more frequent.
        std::sort(touched_.begin(), touched_.end());
        touched_.erase(std::unique(touched_.begin(), touched_.end()), touched_.end());
        for (uint64_t touched : touched_) {
            if (const int64_t count = pairs_[touched].count; count > 0) queue_.push({count, touched});
        }
        touched_.clear();
    }

  private:
    struct State {
        int64_t count = 0;
        std::vector<size_t> words;  // where the pair occurs, or once did
    };

    void change(int32_t left, int32_t right, size_t word, int64_t by) {
        const uint64_t key = pair_key(left, right);
        State& state = pairs_[key];
        state.count += by;
        if (by > 0) {
            if (state.words.empty() || state.words.back() != word) state.words.push_back(word);
            touched_.push_back(key);
        }
    }

    void merge_in_word(size_t word, int32_t left, int32_t right, int32_t merged) {
        auto& [tokens, count] = words_[word];
        bool present = false;
        for (size_t i = 0; i + 1 < tokens.size() && !present; ++i)
            present = tokens[i] == left && tokens[i + 1] == right;
        if (!present) return;
        before_.assign(tokens.begin(), tokens.end());
        size_t size = 0;
        for (size_t i = 0; i < before_.size(); ++i) {
            const bool here = i + 1 < before_.size() && before_[i] == left && before_[i + 1] == right;
            tokens[size++] = here ? merged : before_[i];
            i += here;
        }
        tokens.resize(size);
        // Pairs that stay would be touched for nothing: skip what both have at the front and at the end.
        size_t front = 0, end = 0;
        while (front < size && tokens[front] == before_[front]) ++front;
        while (end < size - front && tokens[size - 1 - end] == before_[before_.size() - 1 - end]) ++end;
        const size_t first = front == 0 ? 0 : front - 1;
        const auto last = [end](size_t length) { return std::min(length - 1, length - end); };
        for (size_t i = first; i < last(before_.size()); ++i)
            change(before_[i], before_[i + 1], word, -count);
        for (size_t i = first; i < last(size); ++i) change(tokens[i], tokens[i + 1], word, count);
    }

    std::vector<Word> words_;
    std::unordered_map<uint64_t, State> pairs_;
    std::priority_queue<Pair> queue_;
    std::vector<uint64_t> touched_;
    std::vector<int32_t> before_;
};

}  // namespace

TokenizerTrainer::TokenizerTrainer(TokenizerTrainOptions options)
    : options_(std::move(options)),
      pre_tokenizer_({options_.pattern.empty() ? std::string(kLlama3Pattern) : options_.pattern}) {
    if (options_.vocabulary_size < kSmallestVocabulary) {
        fail_usage("a vocabulary of {} is too small: end-of-text and the 256 bytes need {}",
                   options_.vocabulary_size, kSmallestVocabulary);
    }
    if (options_.end_of_text.empty()) fail_usage("the end-of-text token needs a text");
    if (options_.min_frequency < 1)
        fail_usage("the smallest frequency must be at least 1, not {}", options_.min_frequency);
}

void TokenizerTrainer::add(std::span<const std::string> texts) {
    std::mutex lock;
    parallel_for(static_cast<int64_t>(texts.size()), 1, [&](int64_t begin, int64_t end) {
        PreTokenizer::Scratch scratch;
        Counts counts;
        std::string key;
        const auto count_piece = [&](std::string_view piece) {
            for (; !piece.empty(); piece.remove_prefix(std::min(piece.size(), kLongestPiece))) {
                key = piece.substr(0, kLongestPiece);
                ++counts[key];
            }
        };
        for (int64_t i = begin; i < end; ++i) {
            std::string_view text = texts[i];
            std::string repaired;
            if (!is_utf8(text)) text = repaired = repair_utf8(text);
            pre_tokenizer_.split(text, scratch, count_piece);
        }
        const std::lock_guard guard(lock);
        for (const auto& [piece, count] : counts) counts_[piece] += count;
    });
}

Tokenizer TokenizerTrainer::train() const {
    require(!counts_.empty(), "there is no text to train a tokenizer on");
    TokenizerDescription description;
    description.patterns = pre_tokenizer_.patterns();
    description.added_tokens.push_back({0, options_.end_of_text, true, false});
    description.vocabulary.push_back(options_.end_of_text);

    std::vector<std::pair<char32_t, uint8_t>> alphabet;
    for (int byte = 0; byte < 256; ++byte)
        alphabet.emplace_back(byte_level_alphabet()[byte], static_cast<uint8_t>(byte));
    std::sort(alphabet.begin(), alphabet.end());
    int32_t byte_tokens[256];
    for (const auto& [symbol, byte] : alphabet) {
        byte_tokens[byte] = static_cast<int32_t>(description.vocabulary.size());
        description.vocabulary.emplace_back(1, static_cast<char>(byte));
    }

    std::vector<Word> words;
    for (const auto& [piece, count] : counts_) {
        Word& word = words.emplace_back(Word{{}, count});
        for (char c : piece) word.tokens.push_back(byte_tokens[static_cast<uint8_t>(c)]);
    }
    MergeLearner learner(std::move(words));
    // The same bytes can come about in two ways (ab+c, a+bc): two merges, one token.
    std::unordered_map<std::string, int32_t> ids;
    for (size_t id = 1; id < description.vocabulary.size(); ++id)
        ids.emplace(description.vocabulary[id], static_cast<int32_t>(id));

    while (static_cast<int64_t>(description.vocabulary.size()) < options_.vocabulary_size) {
        const Pair pair = learner.most_frequent();
        if (pair.count < options_.min_frequency) {
            fail(
                "a vocabulary of {} is larger than the text allows: at most {} (pairs that occur {} times or "
                "more)",
                options_.vocabulary_size, description.vocabulary.size(), options_.min_frequency);
        }
        const auto left = static_cast<int32_t>(pair.key >> 32),
                   right = static_cast<int32_t>(pair.key & 0xffffffffu);
        std::string bytes = description.vocabulary[left] + description.vocabulary[right];
        const auto [found, is_new] =
            ids.try_emplace(bytes, static_cast<int32_t>(description.vocabulary.size()));
        if (is_new) description.vocabulary.push_back(std::move(bytes));
        description.merges.push_back({left, right, found->second});
        learner.merge(pair.key, found->second);
    }
    return Tokenizer(std::move(description));
}

}  // namespace nibble
