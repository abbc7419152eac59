// Files. Nothing is lost: a file is written beside its name and renamed when it is whole and on disk.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

namespace fs = std::filesystem;

// The whole file. Throws Error naming the path when it cannot be read.
std::string read_text(const fs::path& path);
std::vector<std::byte> read_bytes(const fs::path& path);

// Writes PATH.partial, syncs it, renames it to PATH. A failure (a full disk, no permission) throws one line
// and leaves what stood at PATH untouched.
class AtomicFile {
  public:
    explicit AtomicFile(fs::path path);
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    void write(const void* data, size_t bytes);
    void write(std::string_view text) { write(text.data(), text.size()); }
    // Overwrites earlier bytes: a header that is known at the end.
    void write_at(size_t offset, const void* data, size_t bytes);
    // Syncs and renames. Without it the destructor removes the partial file.
    void commit();

  private:
    [[noreturn]] void fail_with_errno(std::string_view action);
    fs::path path_, partial_;
    int descriptor_ = -1;
};

void write_text(const fs::path& path, std::string_view text);

// Fills PATH.partial/ through `fill`, syncs it and renames it to PATH/, which must not exist yet.
void write_directory(const fs::path& path, const std::function<void(const fs::path& partial)>& fill);

// A file mapped read-only. An empty file has an empty span.
class MappedFile {
  public:
    MappedFile() = default;
    explicit MappedFile(const fs::path& path);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;

    std::span<const std::byte> bytes() const { return {data_, size_}; }

  private:
    const std::byte* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace nibble
