#include "data/hash.h"

#include <xxhash.h>

#include <new>

namespace nibble {

struct Xxh64::State {
    XXH64_state_t* state = XXH64_createState();
    ~State() { XXH64_freeState(state); }
};

uint64_t xxh64(const void* data, size_t bytes) { return XXH64(data, bytes, 0); }

Xxh64::Xxh64() : state_(std::make_unique<State>()) {
    if (state_->state == nullptr) throw std::bad_alloc();
    XXH64_reset(state_->state, 0);
}
Xxh64::~Xxh64() = default;
void Xxh64::update(const void* data, size_t bytes) { XXH64_update(state_->state, data, bytes); }
uint64_t Xxh64::digest() const { return XXH64_digest(state_->state); }

}  // namespace nibble
