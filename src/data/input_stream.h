// Bytes of a file that may be compressed with gzip or zstd (told by its first bytes, not by its name).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/file.h"

namespace nibble {

// What stands in a file, as it is, before decompression.
class RawFile {
  public:
    explicit RawFile(const fs::path& path);
    ~RawFile();
    RawFile(const RawFile&) = delete;
    RawFile& operator=(const RawFile&) = delete;

    // The next bytes, valid until the next call; empty at the end.
    std::span<const char> next();
    const fs::path& path() const { return path_; }
    int64_t consumed() const { return consumed_; }

  private:
    fs::path path_;
    std::string buffer_;
    int descriptor_ = -1;
    int64_t consumed_ = 0;
};

// What a file says. Damaged or truncated compressed data is an Error that names the file.
class InputStream {
  public:
    explicit InputStream(const fs::path& path);
    ~InputStream();

    // The next bytes, valid until the next call; empty at the end.
    std::span<const char> next();
    // Appends up to the next line end (which is dropped) or the end. False if nothing was left.
    bool read_line(std::string& line);
    void read_all(std::string& text);
    // Bytes of the file that were used, for progress.
    int64_t consumed() const { return file_.consumed(); }

    struct Decoder;  // the kinds of compression are behind this

  private:
    RawFile file_;
    std::unique_ptr<Decoder> decoder_;
    std::span<const char> rest_;  // of the last next(), for read_line
};

}  // namespace nibble
