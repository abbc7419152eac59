#include "data/documents.h"

#include <zlib.h>
#include <zstd.h>

#include "data/support.h"

namespace nibble {
namespace {

using Documents = std::vector<std::string>;

std::string gzipped(std::string_view text) {
    z_stream stream{};
    constexpr int kGzipFormat = 16;
    deflateInit2(&stream, 6, Z_DEFLATED, kGzipFormat + MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
    std::string out(deflateBound(&stream, text.size()), '\0');
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
    stream.avail_in = static_cast<uInt>(text.size());
    stream.next_out = reinterpret_cast<Bytef*>(out.data());
    stream.avail_out = static_cast<uInt>(out.size());
    deflate(&stream, Z_FINISH);
    out.resize(stream.total_out);
    deflateEnd(&stream);
    return out;
}

std::string zstded(std::string_view text) {
    std::string out(ZSTD_compressBound(text.size()), '\0');
    ZSTD_CCtx* context = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    out.resize(ZSTD_compress2(context, out.data(), out.size(), text.data(), text.size()));
    ZSTD_freeCCtx(context);
    return out;
}

class Reader : public testing::Test {
  protected:
    fs::path file(const std::string& name, std::string_view content) const {
        test::write_quickly(folder_ / name, content);
        return folder_ / name;
    }
    static Documents read(std::vector<fs::path> files, DocumentOptions options = {}) {
        DocumentReader reader(std::move(files), std::move(options));
        Documents documents;
        for (std::string document; reader.next(document);) documents.push_back(document);
        EXPECT_EQ(reader.consumed_bytes(), reader.total_bytes());
        return documents;
    }
    // Text that spans many buffers and does not compress well.
    static std::string long_text() {
        std::string text;
        for (uint64_t i = 0; text.size() < 3'000'000; ++i)
            text += fmt::format("{} ", test::random_word(1, i));
        return text;
    }
    test::Folder folder_;
};

TEST_F(Reader, TakesAPlainFileAsOneDocument) {
    EXPECT_EQ(read({file("a.txt", "one\ntwo\n"), file("b.txt", ""), file("c", "three")}),
              (Documents{"one\ntwo\n", "three"}));
}

TEST_F(Reader, CutsPlainTextAtTheSeparator) {
    const DocumentOptions options{.field = "text", .separator = "\n%\n"};
    EXPECT_EQ(read({file("a.txt", "one\n%\ntwo\n%\n\n%\nthree\n"), file("b.txt", "four\n%\n")}, options),
              (Documents{"one", "two", "three\n", "four"}));
}

TEST_F(Reader, FindsASeparatorAcrossTheEndsOfBuffers) {
    Documents expected;
    std::string text;
    for (size_t i = 0; i < 40; ++i) {
        expected.push_back(std::string(60'000 + i * 7, static_cast<char>('a' + i % 26)));
        text += expected.back() + "<separator>";
    }
    EXPECT_EQ(read({file("a.txt", text)}, {.field = "text", .separator = "<separator>"}), expected);
}

TEST_F(Reader, ReadsJsonLines) {
    const fs::path path =
        file("a.jsonl",
             "{\"text\": \"one\\n\\u00e9\", \"id\": 1}\n\n  {\"text\":\"\"}\r\n{\"id\":2,\"text\":\"two\"}");
    EXPECT_EQ(read({path}), (Documents{"one\n\xc3\xa9", "two"}));
    EXPECT_EQ(read({file("b.ndjson", "{\"body\": \"x\"}\n")}, {.field = "body", .separator = ""}),
              (Documents{"x"}));
}

TEST_F(Reader, ReadsCompressedFilesInSeveralParts) {
    const std::string text = long_text(), more = "the end";
    EXPECT_EQ(read({file("a.txt.gz", gzipped(text) + gzipped(more))}), (Documents{text + more}));
    EXPECT_EQ(read({file("a.txt.zst", zstded(text) + zstded(more))}), (Documents{text + more}));
    EXPECT_EQ(read({file("a.jsonl.gz", gzipped("{\"text\": \"one\"}\n{\"text\": \"two\"}\n"))}),
              (Documents{"one", "two"}));
    EXPECT_EQ(read({file("a.json.zst", zstded("{\"text\": \"one\"}\n"))}), (Documents{"one"}));
    EXPECT_EQ(read({file("b.txt.zst", zstded(std::string(5'000'000, 'a')))}),
              (Documents{std::string(5'000'000, 'a')}));
    // The compression is told by the content.
    EXPECT_EQ(read({file("c.txt", gzipped("hidden"))}), (Documents{"hidden"}));
}

TEST_F(Reader, RefusesTruncatedAndDamagedCompression) {
    const std::string text = long_text();
    for (const std::string& whole : {gzipped(text), zstded(text)}) {
        const fs::path cut = file("cut", whole.substr(0, whole.size() - 5));
        test::expect_contains(test::refusal([&] { read({cut}); }), {cut.string(), "truncated"});
        const fs::path half = file("half", whole.substr(0, whole.size() / 2));
        test::expect_contains(test::refusal([&] { read({half}); }), {half.string(), "truncated"});
        std::string changed = whole;
        for (size_t at = 1000; at < 1400; ++at) changed[at] = '\x55';
        const fs::path damaged = file("damaged", changed);
        test::expect_contains(test::refusal([&] { read({damaged}); }), {damaged.string(), "damaged"});
    }
}

TEST_F(Reader, ReplacesWhatIsNotUtf8AndCountsIt) {
    DocumentReader reader({file("a.txt", "a\xff\xfe z")}, {});
    std::string document;
    ASSERT_TRUE(reader.next(document));
    EXPECT_EQ(document, "a\xef\xbf\xbd\xef\xbf\xbd z");
    EXPECT_EQ(reader.replaced(), 2);
}

TEST_F(Reader, NamesFileAndLineOfABadLine) {
    const auto message = [&](const std::string& line) {
        const fs::path path = file("bad.jsonl", "{\"text\": \"fine\"}\n" + line + "\n");
        const std::string text = test::refusal([&] { read({path}); });
        test::expect_contains(text, {path.string() + ", line 2"});
        EXPECT_LT(text.size(), 500u);
        return text;
    };
    message("{\"text\": \"cut");
    message("{\"text\": \"\\ud800\"}");
    message("{\"text\": \"\xff\"}");
    message("{} {}");
    message("[\"text\"]");
    test::expect_contains(message("{\"body\": \"x\", \"id\": 3}"), {"\"text\"", "body, id", "--field"});
    test::expect_contains(message("{\"text\": 7}"), {"number"});
    message(std::string(1 << 20, '['));
    message("{\"text\": " + std::string(100'000, 'x'));
}

TEST_F(Reader, RefusesMissingFilesAndFolders) {
    test::expect_contains(test::refusal([&] { read({folder_ / "none.txt"}); }), {"none.txt"});
    test::expect_contains(test::refusal([&] { read({folder_.path()}); }), {folder_.path().string()});
}

TEST_F(Reader, GivesBatchesOfAboutTheSizeAskedFor) {
    std::string lines;
    for (int i = 0; i < 100; ++i) lines += "{\"text\": \"0123456789\"}\n";
    DocumentReader reader({file("a.jsonl", lines)}, {});
    Documents batch;
    size_t total = 0;
    while (reader.next_batch(95, batch)) {
        EXPECT_EQ(batch.size(), 10u);
        total += batch.size();
    }
    EXPECT_EQ(total, 100u);
    EXPECT_TRUE(batch.empty());
}

TEST_F(Reader, SurvivesAnyDamage) {
    const std::string lines =
        "{\"text\": \"one \\u00e9 \\ud83d\\ude42\", \"n\": [1, {\"a\": null}]}\n{\"text\": \"two\"}\n";
    const std::string forms[] = {lines, gzipped(lines), zstded(lines)};
    for (uint64_t seed = 0; seed < 600; ++seed) {
        const fs::path path = file("fuzz.jsonl", test::damaged(forms[seed % 3], seed));
        test::refusal([&] { read({path}); });
    }
}

}  // namespace
}  // namespace nibble
