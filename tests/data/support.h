// What the tests of this room share: a folder to write in, small tokenizers, small shards, seeded damage.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "core/core.h"
#include "data/data.h"
#include "numerics/philox.h"

namespace nibble::test {

// A temporary folder, removed at the end.
class Folder {
  public:
    Folder() {
        std::string name = (fs::temp_directory_path() / "nibble-data-XXXXXX").string();
        require(::mkdtemp(name.data()) != nullptr, "cannot create {}", name);
        path_ = name;
    }
    ~Folder() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;

    const fs::path& path() const { return path_; }
    fs::path operator/(const std::string& name) const { return path_ / name; }

  private:
    fs::path path_;
};

inline fs::path recorded(const std::string& name) {
    return fs::path(NIBBLE_SOURCE_DIR) / "tests" / "golden" / "tokenizers" / name;
}

// Token 0 is end-of-text, token b + 1 is byte b.
inline Tokenizer byte_tokenizer(const std::string& end_of_text = "<|endoftext|>",
                                int64_t vocabulary_size = 257) {
    TokenizerDescription description;
    description.patterns = {kLlama3Pattern};
    description.vocabulary = {end_of_text};
    for (int byte = 0; byte < 256; ++byte) description.vocabulary.emplace_back(1, static_cast<char>(byte));
    description.vocabulary.resize(static_cast<size_t>(vocabulary_size));
    description.added_tokens = {{0, end_of_text, true, false}};
    return Tokenizer(std::move(description));
}

// Shards of tokens 1, 2, 3, ... (modulo 50000), as one document of `tokens` tokens with its end-of-text, or
// of several of equal length.
inline void write_counting_shards(const fs::path& folder, int64_t tokens, int64_t documents = 1,
                                  int64_t tokens_per_shard = int64_t{1} << 40) {
    fs::create_directories(folder);
    ShardWriter writer(folder, byte_tokenizer("<|endoftext|>", 60000), tokens_per_shard);
    std::vector<int32_t> document;
    int32_t next = 0;
    for (int64_t i = 0; i < documents; ++i) {
        document.resize(static_cast<size_t>(tokens / documents - 1));
        for (int32_t& token : document) token = next++ % 50000 + 1;
        writer.add_document(document, static_cast<int64_t>(document.size()));
    }
    writer.finish();
}

// Without the care that write_text takes: for many files, soon gone.
inline void write_quickly(const fs::path& path, std::string_view content) {
    std::ofstream(path, std::ios::binary) << content;
}

inline uint32_t random_word(uint64_t seed, uint64_t i) {
    return philox_draw(seed, Purpose::sampling, i).word[0];
}

// `bytes` with one to four seeded changes: a bit flipped, a byte set, a piece cut out, the end cut off, a
// piece doubled.
inline std::string damaged(std::string bytes, uint64_t seed) {
    uint64_t draws = 0;
    const auto below = [&](size_t n) { return n == 0 ? 0 : random_word(seed, draws++) % n; };
    for (size_t change = 0, changes = 1 + below(4); change < changes && !bytes.empty(); ++change) {
        const size_t at = below(bytes.size()), length = 1 + below(16);
        switch (below(5)) {
            case 0:
                bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
                break;
            case 1:
                bytes[at] = static_cast<char>(below(256));
                break;
            case 2:
                bytes.erase(at, length);
                break;
            case 3:
                bytes.resize(at);
                break;
            default:
                bytes.insert(below(bytes.size()), bytes.substr(at, length));
        }
    }
    return bytes;
}

// The message of the Error that `body` throws, or "accepted". Any other exception fails the test.
inline std::string refusal(const std::function<void()>& body) {
    try {
        body();
    } catch (const Error& error) {
        EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos)
            << "more than one line: " << error.what();
        return error.what();
    }
    return "accepted";
}

inline void expect_contains(const std::string& text, const std::vector<std::string>& parts) {
    for (const std::string& part : parts) {
        EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "' in: " << text;
    }
}

}  // namespace nibble::test
