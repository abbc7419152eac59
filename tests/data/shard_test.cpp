#include "data/shard.h"

#include <cstring>
#include <numeric>

#include "data/support.h"

namespace nibble {
namespace {

using Tokens = std::vector<int32_t>;

Tokens all_tokens(const TokenShards& data) {
    Tokens tokens(static_cast<size_t>(data.tokens()));
    data.copy(0, tokens);
    return tokens;
}

std::string opening(const fs::path& path) {
    return test::refusal([&] {
        const TokenShards data(path);
        all_tokens(data);
    });
}

void write_documents(const fs::path& folder, const Tokenizer& tokenizer, const std::vector<Tokens>& documents,
                     int64_t tokens_per_shard = int64_t{1} << 40) {
    fs::create_directories(folder);
    ShardWriter writer(folder, tokenizer, tokens_per_shard);
    for (const Tokens& document : documents)
        writer.add_document(document, static_cast<int64_t>(document.size()));
    writer.finish();
}

TEST(Shard, WritesTheDocumentedBytes) {
    const test::Folder folder;
    const Tokenizer tokenizer = test::byte_tokenizer();
    write_documents(folder.path(), tokenizer, {{66, 67}, {68}});
    const std::string file = read_text(folder / "00000.shard");
    ASSERT_EQ(file.size(), 128u + 5 * 2);
    const auto at = [&file](size_t offset, auto value) {
        std::memcpy(&value, file.data() + offset, sizeof value);
        return value;
    };
    EXPECT_EQ(file.substr(0, 8), "nibbletk");
    EXPECT_EQ(at(8, uint32_t{}), 1u);
    EXPECT_EQ(at(12, uint32_t{}), 2u);
    EXPECT_EQ(at(16, uint64_t{}), tokenizer.vocabulary_hash());
    EXPECT_EQ(at(24, uint32_t{}), 257u);
    EXPECT_EQ(at(28, uint32_t{}), 0u);
    EXPECT_EQ(at(32, uint64_t{}), 5u);
    EXPECT_EQ(at(40, uint64_t{}), 2u);
    EXPECT_EQ(at(48, uint64_t{}), 3u);
    EXPECT_EQ(at(56, uint64_t{}), xxh64(file.data() + 128, 10));
    EXPECT_EQ(at(64, uint32_t{}), 0u);
    EXPECT_EQ(at(68, uint32_t{}), 1u);
    EXPECT_EQ(file.substr(72, 48), std::string(48, '\0'));
    EXPECT_EQ(at(120, uint64_t{}), xxh64(file.data(), 120));
    EXPECT_EQ(file.substr(128), std::string("\x42\0\x43\0\0\0\x44\0\0\0", 10));
}

TEST(Shard, ReadsBackBothWidths) {
    for (const int64_t vocabulary : {65536, 65537}) {
        const test::Folder folder;
        const Tokens document = {1, 2, static_cast<int32_t>(vocabulary) - 1};
        write_documents(folder.path(), test::byte_tokenizer("<|endoftext|>", vocabulary), {document});
        const TokenShards data(folder.path());
        EXPECT_EQ(data.shards()[0].info().token_width, vocabulary == 65536 ? 2 : 4);
        EXPECT_EQ(all_tokens(data), (Tokens{1, 2, static_cast<int32_t>(vocabulary) - 1, 0}));
        EXPECT_EQ(data.vocabulary_size(), vocabulary);
        EXPECT_NO_THROW(data.verify());
    }
}

TEST(Shard, HoldsTheSameTokensHoweverManyShardsThereAre) {
    const test::Folder folder;
    test::write_counting_shards(folder / "one", 10'000, 100);
    test::write_counting_shards(folder / "many", 10'000, 100, 250);
    const TokenShards one(folder / "one"), many(folder / "many");
    EXPECT_EQ(one.shards().size(), 1u);
    EXPECT_EQ(many.shards().size(), 34u);  // of three documents of 100 tokens, the last of one
    EXPECT_EQ(all_tokens(one), all_tokens(many));
    EXPECT_EQ(one.documents(), many.documents());
    EXPECT_EQ(one.text_bytes(), many.text_bytes());
    Tokens part(1000), expected(1000);
    for (int64_t first = 0; first <= 9000; first += 379) {
        many.copy(first, part);
        one.copy(first, expected);
        EXPECT_EQ(part, expected) << first;
    }
}

TEST(Shard, WritesLargeShardsInParts) {
    const test::Folder folder;
    test::write_counting_shards(folder.path(), 3'000'000, 30);
    const TokenShards data(folder.path());
    EXPECT_EQ(data.tokens(), 3'000'000);
    EXPECT_NO_THROW(data.verify());
    Tokens tail(3);
    data.copy(2'999'997, tail);
    EXPECT_EQ(tail, (Tokens{2'999'970 - 2 - 59 * 50'000 + 1, 2'999'970 - 1 - 59 * 50'000 + 1, 0}));
}

TEST(Shard, RefusesToReadPastTheEnd) {
    const test::Folder folder;
    test::write_counting_shards(folder.path(), 100);
    const TokenShards data(folder.path());
    Tokens tokens(10);
    EXPECT_NO_THROW(data.copy(90, tokens));
    EXPECT_NE(test::refusal([&] { data.copy(91, tokens); }), "accepted");
    EXPECT_NE(test::refusal([&] { data.copy(-1, tokens); }), "accepted");
    EXPECT_NE(test::refusal([&] { data.copy(INT64_MAX, tokens); }), "accepted");
}

TEST(Shard, NamesWhatIsMissing) {
    const test::Folder folder;
    test::expect_contains(opening(folder / "none"), {"none", "does not exist", "nibble tokenize"});
    test::expect_contains(opening(folder.path()), {folder.path().string(), "no *.shard"});
    test::write_counting_shards(folder / "many", 1000, 10, 100);
    const fs::path many = folder / "many";
    ASSERT_EQ(opening(many), "accepted");
    EXPECT_EQ(opening(many / "00004.shard"), "accepted");
    fs::rename(many / "00009.shard", many / "kept");
    test::expect_contains(opening(many), {many.string(), "last shards are missing"});
    fs::rename(many / "kept", many / "00009.shard");
    fs::remove(many / "00004.shard");
    test::expect_contains(opening(many), {many.string(), "shard 4 is missing"});
}

TEST(Shard, RefusesShardsOfSeveralTokenizers) {
    const test::Folder folder;
    write_documents(folder.path(), test::byte_tokenizer(), {{1}, {2}}, 1);
    write_documents(folder / "other", test::byte_tokenizer("</s>"), {{1}, {2}}, 1);
    fs::copy_file(folder / "other/00001.shard", folder / "00001.shard", fs::copy_options::overwrite_existing);
    test::expect_contains(opening(folder.path()), {"00001.shard", "another tokenizer", "00000.shard"});
}

TEST(Shard, TellsWhetherItIsOfATokenizer) {
    const test::Folder folder;
    test::write_counting_shards(folder.path(), 100);
    const TokenShards data(folder.path());
    EXPECT_NO_THROW(data.require_tokenizer(test::byte_tokenizer("<|endoftext|>", 60000), "mine"));
    test::expect_contains(test::refusal([&] { data.require_tokenizer(test::byte_tokenizer(), "other"); }),
                          {folder.path().string(), "other", "another tokenizer"});
}

TEST(Shard, RefusesTruncatedFilesAndOtherFiles) {
    const test::Folder folder;
    test::write_counting_shards(folder / "good", 100);
    const std::string good = read_text(folder / "good/00000.shard");
    const fs::path path = folder / "x.shard";
    for (const size_t size :
         {size_t{0}, size_t{1}, size_t{127}, size_t{128}, size_t{129}, good.size() - 2, good.size() - 1}) {
        test::write_quickly(path, good.substr(0, size));
        test::expect_contains(opening(path), {path.string(), "truncated"});
    }
    test::write_quickly(path, good + "xx");
    EXPECT_NE(opening(path), "accepted");
    test::write_quickly(path, std::string(500, 'x'));
    test::expect_contains(opening(path), {path.string(), "no token shard"});
}

TEST(Shard, NoticesEveryChangedByteOfTheHeader) {
    const test::Folder folder;
    test::write_counting_shards(folder / "good", 100);
    const std::string good = read_text(folder / "good/00000.shard");
    const fs::path path = folder / "x.shard";
    for (size_t at = 0; at < 128; ++at) {
        std::string changed = good;
        changed[at] = static_cast<char>(changed[at] ^ 0x10);
        test::write_quickly(path, changed);
        EXPECT_NE(opening(path), "accepted") << at;
    }
}

TEST(Shard, NoticesEveryChangedTokenWhenItVerifies) {
    const test::Folder folder;
    test::write_counting_shards(folder / "good", 50);
    const std::string good = read_text(folder / "good/00000.shard");
    const fs::path path = folder / "x.shard";
    for (size_t at = 128; at < good.size(); ++at) {
        std::string changed = good;
        changed[at] = static_cast<char>(changed[at] ^ 1);
        test::write_quickly(path, changed);
        test::expect_contains(test::refusal([&] { TokenShards(path).verify(); }),
                              {path.string(), "checksum"});
    }
}

// Somebody who means harm can make a header whose checksum is right.
std::string sealed(std::string file) {
    const uint64_t checksum = xxh64(file.data(), 120);
    std::memcpy(file.data() + 120, &checksum, sizeof checksum);
    return file;
}

template <typename T>
std::string with(std::string file, size_t offset, T value) {
    std::memcpy(file.data() + offset, &value, sizeof value);
    return sealed(std::move(file));
}

TEST(Shard, RefusesHeadersThatLie) {
    const test::Folder folder;
    test::write_counting_shards(folder / "good", 100);
    const std::string good = read_text(folder / "good/00000.shard");
    const fs::path path = folder / "x.shard";
    const auto refused = [&](const std::string& file) {
        test::write_quickly(path, file);
        return opening(path);
    };
    ASSERT_EQ(refused(sealed(good)), "accepted");
    test::expect_contains(refused(with(good, 8, uint32_t{2})), {"format 2"});
    test::expect_contains(refused(with(good, 12, uint32_t{3})), {"3 bytes"});
    test::expect_contains(refused(with(good, 12, uint32_t{0})), {"0 bytes"});
    test::expect_contains(refused(with(good, 12, uint32_t{4})), {"truncated"});
    test::expect_contains(refused(with(good, 24, uint32_t{0})), {"vocabulary"});
    test::expect_contains(refused(with(good, 24, uint32_t{0xffffffff})), {"vocabulary"});
    test::expect_contains(refused(with(good, 28, uint32_t{60000})), {"end-of-text"});
    test::expect_contains(refused(with(good, 32, uint64_t{101})), {"truncated"});
    test::expect_contains(refused(with(good, 32, uint64_t{100} + (uint64_t{1} << 63))), {"truncated"});
    test::expect_contains(refused(with(good, 40, uint64_t{101})), {"counts"});
    test::expect_contains(refused(with(good, 48, ~uint64_t{0})), {"counts"});
    test::expect_contains(refused(with(good, 64, uint32_t{0xffffffff})), {"counts"});
    // A token outside the vocabulary is found when it is read.
    test::expect_contains(refused(with(good, 24, uint32_t{50})), {"token 99", "vocabulary has 50"});
}

TEST(Shard, SurvivesAnyDamage) {
    const test::Folder folder;
    test::write_counting_shards(folder / "good", 100);
    const std::string good = read_text(folder / "good/00000.shard");
    const fs::path path = folder / "x.shard";
    for (uint64_t seed = 0; seed < 1000; ++seed) {
        std::string file = test::damaged(good, seed);
        if (seed % 2 == 0 && file.size() >= 128) file = sealed(file);
        test::write_quickly(path, file);
        test::refusal([&] {
            const TokenShards data(path);
            for (int32_t token : all_tokens(data)) ASSERT_LT(token, data.vocabulary_size());
            data.verify();
        });
    }
}

TEST(ShardWriter, RefusesToWriteNothing) {
    const test::Folder folder;
    ShardWriter writer(folder.path(), test::byte_tokenizer(), 100);
    EXPECT_NE(test::refusal([&] { writer.finish(); }), "accepted");
}

}  // namespace
}  // namespace nibble
