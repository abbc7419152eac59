// XXH64, seed 0: checksums of shards and identities of vocabularies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace nibble {

uint64_t xxh64(const void* data, size_t bytes);

// The same over data that comes in parts.
class Xxh64 {
  public:
    Xxh64();
    ~Xxh64();
    void update(const void* data, size_t bytes);
    uint64_t digest() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace nibble
