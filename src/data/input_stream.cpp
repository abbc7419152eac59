#include "data/input_stream.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <system_error>

#include "core/error.h"

namespace nibble {

namespace {

constexpr size_t kChunk = size_t{1} << 18;

}  // namespace

RawFile::RawFile(const fs::path& path) : path_(path), buffer_(kChunk, '\0') {
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) fail("cannot read {}: {}", path.string(), std::generic_category().message(errno));
    struct stat status {};
    if (::fstat(descriptor_, &status) == 0 && S_ISDIR(status.st_mode)) {
        ::close(descriptor_);
        fail("cannot read {}: it is a folder; name the files in it", path.string());
    }
}

RawFile::~RawFile() { ::close(descriptor_); }

std::span<const char> RawFile::next() {
    ssize_t size;
    do {
        size = ::read(descriptor_, buffer_.data(), buffer_.size());
    } while (size < 0 && errno == EINTR);
    if (size < 0) fail("cannot read {}: {}", path_.string(), std::generic_category().message(errno));
    consumed_ += size;
    return {buffer_.data(), static_cast<size_t>(size)};
}

struct InputStream::Decoder {
    virtual ~Decoder() = default;
    virtual std::span<const char> next(RawFile& file) = 0;
};

namespace {

// Gives the bytes that were read to find out the compression, then the rest.
struct Plain : InputStream::Decoder {
    std::span<const char> first;
    explicit Plain(std::span<const char> first_chunk) : first(first_chunk) {}
    std::span<const char> next(RawFile& file) override {
        return first.empty() ? file.next() : std::exchange(first, {});
    }
};

struct Gzip : InputStream::Decoder {
    z_stream stream{};
    std::string out = std::string(kChunk, '\0');
    bool between_members = false;

    explicit Gzip(std::span<const char> first) {
        set_input(first);
        constexpr int kGzipFormat = 16;
        if (inflateInit2(&stream, kGzipFormat + MAX_WBITS) != Z_OK) throw std::bad_alloc();
    }
    ~Gzip() override { inflateEnd(&stream); }
    Gzip(const Gzip&) = delete;
    Gzip& operator=(const Gzip&) = delete;

    void set_input(std::span<const char> input) {
        stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(input.data()));
        stream.avail_in = static_cast<uInt>(input.size());
    }
    std::span<const char> next(RawFile& file) override {
        stream.next_out = reinterpret_cast<Bytef*>(out.data());
        stream.avail_out = static_cast<uInt>(out.size());
        while (stream.avail_out == out.size()) {
            if (stream.avail_in == 0) {
                set_input(file.next());
                if (stream.avail_in == 0) {
                    require(between_members, "{} is truncated: its gzip data has no end",
                            file.path().string());
                    return {};
                }
            }
            if (between_members) inflateReset(&stream);
            const int status = inflate(&stream, Z_NO_FLUSH);
            if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR) {
                fail("{} is damaged: its gzip data cannot be read ({})", file.path().string(),
                     stream.msg != nullptr ? stream.msg : zError(status));
            }
            between_members = status == Z_STREAM_END;
        }
        return {out.data(), out.size() - stream.avail_out};
    }
};

struct Zstd : InputStream::Decoder {
    ZSTD_DStream* stream = ZSTD_createDStream();
    ZSTD_inBuffer in{};
    std::string out = std::string(kChunk, '\0');
    bool between_frames = false;
    bool output_was_full = false;

    explicit Zstd(std::span<const char> first) : in{first.data(), first.size(), 0} {
        if (stream == nullptr) throw std::bad_alloc();
    }
    ~Zstd() override { ZSTD_freeDStream(stream); }
    Zstd(const Zstd&) = delete;
    Zstd& operator=(const Zstd&) = delete;

    std::span<const char> next(RawFile& file) override {
        ZSTD_outBuffer produced{out.data(), out.size(), 0};
        while (produced.pos == 0) {
            if (in.pos == in.size && !output_was_full) {
                const auto input = file.next();
                in = {input.data(), input.size(), 0};
                if (input.empty()) {
                    require(between_frames, "{} is truncated: its zstd data has no end",
                            file.path().string());
                    return {};
                }
            }
            const size_t status = ZSTD_decompressStream(stream, &produced, &in);
            if (ZSTD_isError(status)) {
                fail("{} is damaged: its zstd data cannot be read ({})", file.path().string(),
                     ZSTD_getErrorName(status));
            }
            between_frames = status == 0;
            output_was_full = produced.pos == produced.size && !between_frames;
        }
        return {out.data(), produced.pos};
    }
};

bool starts_with(std::span<const char> data, std::string_view magic) {
    return data.size() >= magic.size() && std::memcmp(data.data(), magic.data(), magic.size()) == 0;
}

}  // namespace

InputStream::InputStream(const fs::path& path) : file_(path) {
    const auto first = file_.next();
    if (starts_with(first, "\x1f\x8b")) {
        decoder_ = std::make_unique<Gzip>(first);
    } else if (starts_with(first, "\x28\xb5\x2f\xfd")) {
        decoder_ = std::make_unique<Zstd>(first);
    } else {
        decoder_ = std::make_unique<Plain>(first);
    }
}
InputStream::~InputStream() = default;

std::span<const char> InputStream::next() {
    if (!rest_.empty()) return std::exchange(rest_, {});
    return decoder_->next(file_);
}

bool InputStream::read_line(std::string& line) {
    bool any = false;
    while (true) {
        if (rest_.empty()) rest_ = decoder_->next(file_);
        if (rest_.empty()) return any;
        any = true;
        const void* end = std::memchr(rest_.data(), '\n', rest_.size());
        const size_t size =
            end == nullptr ? rest_.size() : static_cast<size_t>(static_cast<const char*>(end) - rest_.data());
        line.append(rest_.data(), size);
        rest_ = rest_.subspan(size + (end != nullptr));
        if (end != nullptr) return true;
    }
}

void InputStream::read_all(std::string& text) {
    for (auto part = next(); !part.empty(); part = next()) text.append(part.data(), part.size());
}

}  // namespace nibble
