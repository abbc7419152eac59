// safetensors: named tensors in one file, as Hugging Face tools read and write them.
//
// Layout: u64 little-endian header length N; N bytes of JSON, an object of
//   "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}
// with offsets relative to the byte after the header, and optionally "__metadata__": {"key": "text"}; then
// the data, row-major, little-endian, without holes. Source: the format's own README and reference
// implementation.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/core.h"

namespace nibble {

struct NamedTensor {
    std::string name;
    Tensor tensor;
};

using SafetensorsMetadata = std::map<std::string, std::string>;

// What the header of a file says, checked: every tensor lies inside the file, its span is what its shape and
// dtype need, and the tensors fill the data without overlap or hole.
struct SafetensorsHeader {
    struct Entry {
        std::string name;
        DType dtype = DType::f32;
        Shape shape;
        size_t begin = 0, end = 0;  // bytes from the start of the file
    };
    std::vector<Entry> entries;  // in the order of their data
    SafetensorsMetadata metadata;
};

// Reads and checks the header of a whole file held in memory. Throws Error naming `where` and the tensor.
// Never reads outside `file`. Refuses headers above 100 MB, tensors above four dimensions and dtypes that
// Tensor does not have.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> file, std::string_view where);

// A file opened for reading: mapped, and checked as a whole before the first tensor is lent. The tensors are
// read-only views that live as long as this object. (A tensor whose data is not aligned for its dtype is
// copied.)
class SafetensorsFile {
  public:
    explicit SafetensorsFile(const fs::path& path);

    const std::string& where() const { return where_; }                   // the path, for messages
    const std::vector<NamedTensor>& tensors() const { return tensors_; }  // in the order of the file
    const SafetensorsMetadata& metadata() const { return metadata_; }

    const Tensor* find(std::string_view name) const;  // null if there is none
    const Tensor& tensor(
        std::string_view name) const;  // throws Error naming the file, the tensor and the nearest
    // The metadata value, or an empty string.
    std::string metadata_value(const std::string& key) const;

  private:
    std::string where_;
    MappedFile file_;
    std::vector<Buffer> aligned_copies_;
    std::vector<NamedTensor> tensors_;
    std::map<std::string, size_t, std::less<>> index_;
    SafetensorsMetadata metadata_;
};

// Writes tensors of any device to `path`, whole or not at all. The bytes are those of the reference writer:
// header padded with spaces to a multiple of 8, tensors by descending alignment and then by name, metadata
// {"format": "pt"} (added if missing: loaders look for it). Throws Error on a repeated name.
void write_safetensors(const fs::path& path, std::vector<NamedTensor> tensors,
                       SafetensorsMetadata metadata = {});

}  // namespace nibble
