#include "data/byte_pairs.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "core/error.h"

namespace nibble {

namespace {

uint64_t pair_key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

MergeTable::MergeTable(std::span<const Merge> merges) {
    slots_.resize(std::bit_ceil(2 * merges.size() + 2));
    mask_ = slots_.size() - 1;
    for (size_t rank = 0; rank < merges.size(); ++rank) {
        const uint64_t pair = pair_key(merges[rank].left, merges[rank].right);
        slots_[slot_of(pair)] = {pair, static_cast<int32_t>(rank), merges[rank].merged};
    }
}

size_t MergeTable::slot_of(uint64_t pair) const {
    uint64_t hash = pair * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
    size_t slot = hash & mask_;
    while (slots_[slot].pair != pair && slots_[slot].pair != kEmpty) slot = (slot + 1) & mask_;
    return slot;
}

const MergeTable::Entry* MergeTable::find(int32_t left, int32_t right) const {
    const uint64_t pair = pair_key(left, right);
    const Entry& entry = slots_[slot_of(pair)];
    return entry.pair == pair ? &entry : nullptr;
}

void BytePairMerger::push(const MergeTable& table, int32_t left) {
    if (left < 0 || symbols_[left].next < 0) return;
    const auto* entry = table.find(symbols_[left].token, symbols_[symbols_[left].next].token);
    if (entry == nullptr) return;
    heap_.push_back({entry->rank, left, entry->merged});
    std::push_heap(heap_.begin(), heap_.end());
}

void BytePairMerger::merge(const MergeTable& table, std::vector<int32_t>& tokens) {
    require(tokens.size() < static_cast<size_t>(std::numeric_limits<int32_t>::max()),
            "a piece of text of {} bytes is too long to encode", tokens.size());
    const auto count = static_cast<int32_t>(tokens.size());
    symbols_.resize(tokens.size());
    heap_.clear();
    for (int32_t i = 0; i < count; ++i) symbols_[i] = {tokens[i], i - 1, i + 1 < count ? i + 1 : -1};
    for (int32_t i = 0; i + 1 < count; ++i) push(table, i);

    while (!heap_.empty()) {
        const Candidate top = heap_.front();
        std::pop_heap(heap_.begin(), heap_.end());
        heap_.pop_back();
        Symbol& left = symbols_[top.position];
        if (left.token < 0 || left.next < 0) continue;
        // The candidate is stale if the pair here has become another one.
        const auto* entry = table.find(left.token, symbols_[left.next].token);
        if (entry == nullptr || entry->merged != top.merged) continue;
        Symbol& right = symbols_[left.next];
        left.token = top.merged;
        left.next = right.next;
        right.token = -1;
        if (left.next >= 0) symbols_[left.next].previous = top.position;
        push(table, left.previous);
        push(table, top.position);
    }

    tokens.clear();
    for (int32_t i = 0; i >= 0 && i < count; i = symbols_[i].next) tokens.push_back(symbols_[i].token);
}

}  // namespace nibble
