// Byte-pair merging of one piece of text (Sennrich et al., arXiv 1508.07909).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/tokenizer_json.h"

namespace nibble {

// The merges by their pair. Where a pair is listed twice the later entry counts, as in Hugging Face's
// tokenizers.
class MergeTable {
  public:
    struct Entry {
        uint64_t pair = kEmpty;
        int32_t rank = 0, merged = 0;
    };

    MergeTable() : MergeTable(std::span<const Merge>()) {}
    explicit MergeTable(std::span<const Merge> merges);
    // Null where the two are not merged.
    const Entry* find(int32_t left, int32_t right) const;

  private:
    static constexpr uint64_t kEmpty = ~uint64_t{0};
    size_t slot_of(uint64_t pair) const;

    std::vector<Entry> slots_;  // open addressing; a power of two, at most half full
    size_t mask_ = 0;
};

// Applies merges, lowest rank first and among equal ranks from left to right. O(n log n) for n symbols. One
// object serves one thread.
class BytePairMerger {
  public:
    // Merges `tokens` in place.
    void merge(const MergeTable& table, std::vector<int32_t>& tokens);

  private:
    struct Symbol {
        int32_t token;
        int32_t previous, next;  // -1 at the ends; a symbol that was merged away has token -1
    };
    struct Candidate {
        int32_t rank, position, merged;
        // Heap order: the candidate to take first is the greatest.
        friend bool operator<(const Candidate& a, const Candidate& b) {
            return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
        }
    };
    void push(const MergeTable& table, int32_t left);

    std::vector<Symbol> symbols_;
    std::vector<Candidate> heap_;
};

}  // namespace nibble
