// Token shards: tokens on disk, mapped into memory. docs/data.md gives the format to the byte.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"
#include "data/hash.h"
#include "data/tokenizer.h"

namespace nibble {

// What the header of a shard says.
struct ShardInfo {
    int32_t token_width = 0;  // bytes of a token: 2 or 4
    uint64_t vocabulary_hash = 0;
    int64_t vocabulary_size = 0;
    int32_t end_of_text = 0;
    int64_t tokens = 0;      // with the end-of-text tokens
    int64_t documents = 0;   // each followed by an end-of-text token
    int64_t text_bytes = 0;  // UTF-8 bytes of the documents
    uint64_t checksum = 0;   // XXH64 of the tokens
    int32_t index = 0;       // 0, 1, ... among the shards of a folder
    bool is_last = false;
};

// One shard. Opening checks the header and the size of the file; verify() reads it all.
class Shard {
  public:
    explicit Shard(const fs::path& path);

    const fs::path& path() const { return path_; }
    const ShardInfo& info() const { return info_; }
    // Copies the tokens from `first` on. Throws Error for a token that is outside the vocabulary.
    void copy(int64_t first, std::span<int32_t> tokens) const;
    // Throws Error unless the checksum is right.
    void verify() const;

  private:
    fs::path path_;
    MappedFile file_;
    ShardInfo info_;
};

// The tokens of a folder of shards (all *.shard files, made in one run), or of a single shard, as one
// sequence.
class TokenShards {
  public:
    // Throws Error when shards are missing, truncated, damaged in their header or of different vocabularies.
    explicit TokenShards(const fs::path& path);

    const fs::path& path() const { return path_; }
    const std::vector<Shard>& shards() const { return shards_; }
    int64_t tokens() const { return begins_.back(); }
    int64_t documents() const;
    int64_t text_bytes() const;
    int32_t end_of_text() const { return shards_[0].info().end_of_text; }
    int64_t vocabulary_size() const { return shards_[0].info().vocabulary_size; }
    uint64_t vocabulary_hash() const { return shards_[0].info().vocabulary_hash; }
    // XXH64 of the shards' checksums: names these tokens in logs and checkpoints.
    uint64_t hash() const;

    // Copies tokens [first, first + tokens.size()).
    void copy(int64_t first, std::span<int32_t> tokens) const;
    void verify() const;
    // Throws Error unless the shards were made with this vocabulary. `name` names the tokenizer.
    void require_tokenizer(const Tokenizer& tokenizer, std::string_view name) const;

  private:
    fs::path path_;
    std::vector<Shard> shards_;
    std::vector<int64_t> begins_{0};  // the first token of each shard, and the end
};

// Writes the shards 00000.shard, 00001.shard, ... of a folder. Shards hold whole documents.
class ShardWriter {
  public:
    // A shard is closed once it has `tokens_per_shard` tokens. `directory` must exist.
    ShardWriter(fs::path directory, const Tokenizer& tokenizer, int64_t tokens_per_shard);
    ~ShardWriter();

    // A document without its end-of-text token, which is added; `text_bytes` is the size of its text.
    void add_document(std::span<const int32_t> tokens, int64_t text_bytes);
    // Closes the last shard. Throws Error if there was no document.
    void finish();

    int64_t tokens() const { return finished_tokens_ + info_.tokens; }
    int64_t documents() const { return finished_documents_ + info_.documents; }
    int64_t text_bytes() const { return finished_text_bytes_ + info_.text_bytes; }
    int32_t shards() const { return info_.index; }

  private:
    void open();
    void close(bool is_last);
    void put(int32_t token);
    void flush();

    fs::path directory_;
    int64_t tokens_per_shard_;
    ShardInfo info_;  // of the open shard
    int64_t finished_tokens_ = 0, finished_documents_ = 0, finished_text_bytes_ = 0;
    std::optional<AtomicFile> file_;
    std::unique_ptr<Xxh64> checksum_;
    std::string buffer_;
};

}  // namespace nibble
