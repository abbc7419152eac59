#include "data/shard.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/error.h"
#include "core/parallel.h"

namespace nibble {

namespace {

static_assert(std::endian::native == std::endian::little, "shards are little-endian and mapped as they are");

constexpr char kMagic[8] = {'n', 'i', 'b', 'b', 'l', 'e', 't', 'k'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kLastFlag = 1;

struct Header {
    char magic[8];
    uint32_t version;
    uint32_t token_width;
    uint64_t vocabulary_hash;
    uint32_t vocabulary_size;
    uint32_t end_of_text;
    uint64_t tokens;
    uint64_t documents;
    uint64_t text_bytes;
    uint64_t checksum;
    uint32_t index;
    uint32_t flags;
    uint8_t zero[48];
    uint64_t header_checksum;  // XXH64 of all before it
};
static_assert(sizeof(Header) == 128 && offsetof(Header, header_checksum) == 120);

uint64_t header_checksum(const Header& header) { return xxh64(&header, offsetof(Header, header_checksum)); }

ShardInfo read_header(const fs::path& path, std::span<const std::byte> bytes) {
    const std::string name = path.string();
    Header header;
    require(bytes.size() >= sizeof header,
            "{} is no token shard or is truncated: it has {} bytes, a header alone has {}", name,
            bytes.size(), sizeof header);
    std::memcpy(&header, bytes.data(), sizeof header);
    require(std::memcmp(header.magic, kMagic, sizeof kMagic) == 0,
            "{} is no token shard; make shards with: nibble tokenize", name);
    require(header.version == kVersion,
            "{} has shard format {}, this nibble reads format {}; tokenise the text again", name,
            header.version, kVersion);
    require(header.header_checksum == header_checksum(header),
            "{} is damaged: the checksum of its header is wrong", name);
    require(header.token_width == 2 || header.token_width == 4, "{} is damaged: its tokens have {} bytes",
            name, header.token_width);
    require(header.vocabulary_size <= 0x7fffffffu && header.end_of_text < header.vocabulary_size,
            "{} is damaged: end-of-text {} in a vocabulary of {}", name, header.end_of_text,
            header.vocabulary_size);
    const uint64_t payload = bytes.size() - sizeof header;
    // Not tokens * width == payload: the product can overflow.
    require(payload / header.token_width == header.tokens && payload % header.token_width == 0,
            "{} is truncated or has something behind it: {} tokens of {} bytes should be in its {} bytes",
            name, header.tokens, header.token_width, payload);
    require(
        header.text_bytes <= INT64_MAX && header.documents <= header.tokens && header.index <= 0x7fffffffu,
        "{} is damaged: its header counts more than there can be", name);
    ShardInfo info;
    info.token_width = static_cast<int32_t>(header.token_width);
    info.vocabulary_hash = header.vocabulary_hash;
    info.vocabulary_size = header.vocabulary_size;
    info.end_of_text = static_cast<int32_t>(header.end_of_text);
    info.tokens = static_cast<int64_t>(header.tokens);
    info.documents = static_cast<int64_t>(header.documents);
    info.text_bytes = static_cast<int64_t>(header.text_bytes);
    info.checksum = header.checksum;
    info.index = static_cast<int32_t>(header.index);
    info.is_last = (header.flags & kLastFlag) != 0;
    return info;
}

Header make_header(const ShardInfo& info) {
    Header header{};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.version = kVersion;
    header.token_width = static_cast<uint32_t>(info.token_width);
    header.vocabulary_hash = info.vocabulary_hash;
    header.vocabulary_size = static_cast<uint32_t>(info.vocabulary_size);
    header.end_of_text = static_cast<uint32_t>(info.end_of_text);
    header.tokens = static_cast<uint64_t>(info.tokens);
    header.documents = static_cast<uint64_t>(info.documents);
    header.text_bytes = static_cast<uint64_t>(info.text_bytes);
    header.checksum = info.checksum;
    header.index = static_cast<uint32_t>(info.index);
    header.flags = info.is_last ? kLastFlag : 0;
    header.header_checksum = header_checksum(header);
    return header;
}

template <typename Stored>
int64_t copy_tokens(const std::byte* stored, std::span<int32_t> tokens) {
    uint32_t largest = 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
        Stored token;
        std::memcpy(&token, stored + i * sizeof token, sizeof token);
        largest = std::max<uint32_t>(largest, token);
        tokens[i] = static_cast<int32_t>(token);
    }
    return largest;
}

}  // namespace

Shard::Shard(const fs::path& path) : path_(path), file_(path), info_(read_header(path, file_.bytes())) {}

void Shard::copy(int64_t first, std::span<int32_t> tokens) const {
    require(
        first >= 0 && first <= info_.tokens && static_cast<int64_t>(tokens.size()) <= info_.tokens - first,
        "{} tokens from number {} on are not in {}", tokens.size(), first, path_.string());
    const std::byte* stored = file_.bytes().data() + sizeof(Header) + first * info_.token_width;
    const int64_t largest = info_.token_width == 2 ? copy_tokens<uint16_t>(stored, tokens)
                                                   : copy_tokens<uint32_t>(stored, tokens);
    require(tokens.empty() || largest < info_.vocabulary_size,
            "{} is damaged: there is a token {} near token {}, but the vocabulary has {}", path_.string(),
            largest, first, info_.vocabulary_size);
}

void Shard::verify() const {
    const auto payload = file_.bytes().subspan(sizeof(Header));
    require(xxh64(payload.data(), payload.size()) == info_.checksum,
            "{} is damaged: the checksum of its tokens is wrong; tokenise the text again", path_.string());
}

TokenShards::TokenShards(const fs::path& path) : path_(path) {
    const std::string name = path.string();
    require(fs::exists(path), "{} does not exist; make token shards with: nibble tokenize", name);
    const bool is_folder = fs::is_directory(path);
    std::vector<fs::path> files;
    if (is_folder) {
        for (const auto& entry : fs::directory_iterator(path)) {
            if (entry.path().extension() == ".shard") files.push_back(entry.path());
        }
        require(!files.empty(), "{} holds no *.shard files; make token shards with: nibble tokenize", name);
        std::sort(files.begin(), files.end());
    } else {
        files.push_back(path);
    }
    for (const fs::path& file : files) {
        const Shard& shard = shards_.emplace_back(file);
        const ShardInfo& info = shard.info();
        begins_.push_back(begins_.back() + info.tokens);
        if (!is_folder) break;
        const ShardInfo& first = shards_[0].info();
        require(info.vocabulary_hash == first.vocabulary_hash &&
                    info.vocabulary_size == first.vocabulary_size && info.end_of_text == first.end_of_text,
                "{} was made with another tokenizer than {}; keep them in folders of their own",
                shard.path().string(), shards_[0].path().string());
        const auto expected = static_cast<int32_t>(shards_.size()) - 1;
        require(info.index == expected, "{} is not complete: shard {} is missing ({} says it is number {})",
                name, expected, shard.path().string(), info.index);
        require(info.is_last == (file == files.back()), "{} is not complete: {}", name,
                info.is_last ? "it has shards behind the last one" : "the last shards are missing");
    }
}

int64_t TokenShards::documents() const {
    int64_t sum = 0;
    for (const Shard& shard : shards_) sum += shard.info().documents;
    return sum;
}

int64_t TokenShards::text_bytes() const {
    int64_t sum = 0;
    for (const Shard& shard : shards_) sum += shard.info().text_bytes;
    return sum;
}

uint64_t TokenShards::hash() const {
    std::vector<uint64_t> checksums;
    for (const Shard& shard : shards_) checksums.push_back(shard.info().checksum);
    return xxh64(checksums.data(), checksums.size() * sizeof(uint64_t));
}

void TokenShards::copy(int64_t first, std::span<int32_t> tokens) const {
    require(first >= 0 && first <= this->tokens() &&
                static_cast<int64_t>(tokens.size()) <= this->tokens() - first,
            "{} tokens from number {} on are not in {}, which has {}", tokens.size(), first, path_.string(),
            this->tokens());
    auto shard =
        static_cast<size_t>(std::upper_bound(begins_.begin(), begins_.end(), first) - begins_.begin()) - 1;
    while (!tokens.empty()) {
        const auto size = static_cast<size_t>(
            std::min<int64_t>(begins_[shard + 1] - first, static_cast<int64_t>(tokens.size())));
        shards_[shard].copy(first - begins_[shard], tokens.first(size));
        first += static_cast<int64_t>(size);
        tokens = tokens.subspan(size);
        ++shard;
    }
}

void TokenShards::verify() const {
    parallel_for(static_cast<int64_t>(shards_.size()), 1, [this](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) shards_[i].verify();
    });
}

void TokenShards::require_tokenizer(const Tokenizer& tokenizer, std::string_view name) const {
    require(vocabulary_hash() == tokenizer.vocabulary_hash(),
            "{} was made with another tokenizer (vocabulary {:016x}) than {} (vocabulary {:016x}); tokenise "
            "the text again",
            path_.string(), vocabulary_hash(), name, tokenizer.vocabulary_hash());
}

ShardWriter::ShardWriter(fs::path directory, const Tokenizer& tokenizer, int64_t tokens_per_shard)
    : directory_(std::move(directory)), tokens_per_shard_(tokens_per_shard) {
    info_.token_width = tokenizer.vocabulary_size() <= 0x10000 ? 2 : 4;
    info_.vocabulary_hash = tokenizer.vocabulary_hash();
    info_.vocabulary_size = tokenizer.vocabulary_size();
    info_.end_of_text = tokenizer.end_of_text();
}
ShardWriter::~ShardWriter() = default;

void ShardWriter::open() {
    file_.emplace(directory_ / fmt::format("{:05}.shard", info_.index));
    checksum_ = std::make_unique<Xxh64>();
    const Header placeholder{};
    file_->write(&placeholder, sizeof placeholder);
}

void ShardWriter::close(bool is_last) {
    flush();
    info_.checksum = checksum_->digest();
    info_.is_last = is_last;
    const Header header = make_header(info_);
    file_->write_at(0, &header, sizeof header);
    file_->commit();
    file_.reset();
    finished_tokens_ += std::exchange(info_.tokens, 0);
    finished_documents_ += std::exchange(info_.documents, 0);
    finished_text_bytes_ += std::exchange(info_.text_bytes, 0);
    ++info_.index;
}

void ShardWriter::put(int32_t token) {
    // Little-endian, so a narrow token is the front of a wide one.
    buffer_.append(reinterpret_cast<const char*>(&token), static_cast<size_t>(info_.token_width));
    ++info_.tokens;
}

void ShardWriter::flush() {
    checksum_->update(buffer_.data(), buffer_.size());
    file_->write(buffer_);
    buffer_.clear();
}

void ShardWriter::add_document(std::span<const int32_t> tokens, int64_t text_bytes) {
    if (file_ && info_.tokens >= tokens_per_shard_) close(false);
    if (!file_) open();
    for (int32_t token : tokens) put(token);
    put(info_.end_of_text);
    ++info_.documents;
    info_.text_bytes += text_bytes;
    if (buffer_.size() >= (size_t{1} << 20)) flush();
}

void ShardWriter::finish() {
    require(file_.has_value(), "there is no text to tokenise");
    close(true);
}

}  // namespace nibble
