#include "core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>

#include "core/error.h"

namespace nibble {

namespace {

std::string reason(int error) { return std::generic_category().message(error); }

fs::path partial_of(const fs::path& path) {
    fs::path partial = path;
    partial += ".partial";
    return partial;
}

void sync_directory(const fs::path& directory) {
    const int descriptor =
        ::open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return;
    ::fsync(descriptor);
    ::close(descriptor);
}

void make_parent(const fs::path& path) {
    if (path.parent_path().empty()) return;
    std::error_code error;
    fs::create_directories(path.parent_path(), error);
    if (error) fail("cannot create the folder {}: {}", path.parent_path().string(), error.message());
}

}  // namespace

std::vector<std::byte> read_bytes(const fs::path& path) {
    const MappedFile file(path);
    return {file.bytes().begin(), file.bytes().end()};
}

std::string read_text(const fs::path& path) {
    const MappedFile file(path);
    return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)), partial_(partial_of(path_)) {
    make_parent(path_);
    descriptor_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor_ < 0) fail_with_errno("create");
}

AtomicFile::~AtomicFile() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    ::unlink(partial_.c_str());
}

void AtomicFile::fail_with_errno(std::string_view action) {
    const int error = errno;
    fail("cannot {} {}: {}{}", action, partial_.string(), reason(error),
         error == ENOSPC ? "; free some space and run again, nothing earlier was lost" : "");
}

void AtomicFile::write(const void* data, size_t bytes) {
    const auto* at = static_cast<const std::byte*>(data);
    while (bytes > 0) {
        const ssize_t written = ::write(descriptor_, at, bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) fail_with_errno("write");
        at += written;
        bytes -= static_cast<size_t>(written);
    }
}

void AtomicFile::write_at(size_t offset, const void* data, size_t bytes) {
    const auto* at = static_cast<const std::byte*>(data);
    while (bytes > 0) {
        const ssize_t written = ::pwrite(descriptor_, at, bytes, static_cast<off_t>(offset));
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) fail_with_errno("write");
        at += written;
        offset += static_cast<size_t>(written);
        bytes -= static_cast<size_t>(written);
    }
}

void AtomicFile::commit() {
    if (::fsync(descriptor_) != 0) fail_with_errno("write");
    if (::close(std::exchange(descriptor_, -1)) != 0) fail_with_errno("write");
    if (::rename(partial_.c_str(), path_.c_str()) != 0) fail_with_errno("rename");
    sync_directory(path_.parent_path());
}

void write_text(const fs::path& path, std::string_view text) {
    AtomicFile file(path);
    file.write(text);
    file.commit();
}

void write_directory(const fs::path& path, const std::function<void(const fs::path&)>& fill) {
    require(!fs::exists(path), "{} exists already; remove it or choose another name", path.string());
    make_parent(path);
    const fs::path partial = partial_of(path);
    fs::remove_all(partial);
    try {
        fs::create_directory(partial);
        fill(partial);
        fs::rename(partial, path);
    } catch (const fs::filesystem_error& error) {
        fs::remove_all(partial);
        fail("cannot write {}: {}", path.string(), error.code().message());
    } catch (...) {
        fs::remove_all(partial);
        throw;
    }
    sync_directory(path.parent_path());
}

MappedFile::MappedFile(const fs::path& path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) fail("cannot read {}: {}", path.string(), reason(errno));
    struct stat status {};
    if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
        ::close(descriptor);
        fail("cannot read {}: it is not a file", path.string());
    }
    size_ = static_cast<size_t>(status.st_size);
    if (size_ > 0) {
        void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
        const int error = errno;
        ::close(descriptor);
        if (mapped == MAP_FAILED) fail("cannot map {}: {}", path.string(), reason(error));
        data_ = static_cast<const std::byte*>(mapped);
    } else {
        ::close(descriptor);
    }
}

MappedFile::~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

}  // namespace nibble
