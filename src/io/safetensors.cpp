#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "core/cuda.h"

namespace nibble {

namespace {

constexpr size_t kMaxHeader = 100'000'000;
constexpr size_t kLengthBytes = 8;
constexpr std::string_view kMetadataKey = "__metadata__";

static_assert(std::endian::native == std::endian::little,
              "safetensors data is little-endian, and so is Tensor");

// The dtypes that Tensor has, in the order in which the reference writer sorts them (ascending).
constexpr std::array kDTypes = {DType::boolean, DType::u8,  DType::i8,  DType::e5m2, DType::e4m3,
                                DType::e8m0,    DType::u16, DType::f16, DType::bf16, DType::i32,
                                DType::u32,     DType::f32, DType::f64, DType::i64};

size_t sort_rank(DType dtype) {
    return static_cast<size_t>(std::find(kDTypes.begin(), kDTypes.end(), dtype) - kDTypes.begin());
}

std::optional<DType> dtype_named(std::string_view name) {
    for (const DType dtype : kDTypes) {
        if (name_of(dtype) == name) return dtype;
    }
    return std::nullopt;
}

// A name from the file as it can stand in a one-line message.
std::string shown(std::string_view name) {
    constexpr size_t kLongest = 120;
    std::string text = "'";
    for (const char c : name.substr(0, kLongest)) {
        const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
        text += control ? '?' : c;
    }
    return text + (name.size() > kLongest ? "...'" : "'");
}

// Receives the header as a stream of JSON events, so that nothing nested or repeated is ever stored. Its
// grammar is the format's: an object of objects of (text | list of whole numbers).
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
  public:
    struct Raw {
        std::string name;
        std::string dtype;
        std::vector<uint64_t> shape, offsets;
        bool has_dtype = false, has_shape = false, has_offsets = false;
    };

    explicit HeaderReader(std::string_view where) : where_(where) {}

    std::vector<Raw> tensors;
    SafetensorsMetadata metadata;

    bool null() override { unexpected("null"); }
    bool boolean(bool) override { unexpected("a truth value"); }
    bool number_integer(number_integer_t value) override { unexpected(fmt::format("the number {}", value)); }
    bool number_float(number_float_t, const string_t& text) override {
        unexpected("the number " + shown(text));
    }
    bool binary(binary_t&) override { unexpected("binary data"); }

    bool number_unsigned(number_unsigned_t value) override {
        if (state_ != State::numbers) unexpected(fmt::format("the number {}", value));
        require(numbers_->size() < 64, "{}: tensor {} has too many numbers in '{}'", where_, shown(name_),
                key_);
        numbers_->push_back(value);
        return true;
    }
    bool string(string_t& value) override {
        if (state_ == State::metadata) {
            require(metadata.emplace(key_, value).second, "{}: metadata key {} is there twice", where_,
                    shown(key_));
        } else if (state_ == State::tensor && key_ == "dtype") {
            tensors.back().dtype = std::move(value);
        } else {
            unexpected("the text " + shown(value));
        }
        return true;
    }
    bool start_object(std::size_t) override {
        switch (state_) {
            case State::start:
                state_ = State::top;
                break;
            case State::top:
                if (name_ == kMetadataKey) {
                    require(!std::exchange(has_metadata_, true), "{}: '{}' is there twice", where_,
                            kMetadataKey);
                    state_ = State::metadata;
                } else {
                    state_ = State::tensor;
                    tensors.push_back({});
                    tensors.back().name = name_;
                }
                break;
            default:
                unexpected("an object");
        }
        return true;
    }
    bool key(string_t& value) override {
        if (state_ == State::top) {
            name_ = value;
        } else {
            key_ = value;
            if (state_ == State::tensor) expect_once(tensors.back());
        }
        return true;
    }
    bool end_object() override {
        if (state_ == State::tensor) {
            const Raw& raw = tensors.back();
            require(raw.has_dtype && raw.has_shape && raw.has_offsets,
                    "{}: tensor {} lacks one of dtype, shape, data_offsets; the file is damaged", where_,
                    shown(raw.name));
        }
        state_ = state_ == State::top ? State::start : State::top;
        return true;
    }
    bool start_array(std::size_t) override {
        if (state_ != State::tensor || key_ == "dtype") unexpected("a list");
        numbers_ = key_ == "shape" ? &tensors.back().shape : &tensors.back().offsets;
        state_ = State::numbers;
        return true;
    }
    bool end_array() override {
        state_ = State::tensor;
        return true;
    }
    bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) override {
        fail("{}: the header is not JSON (at byte {}); this is not a safetensors file, or it is damaged",
             where_, kLengthBytes + position);
    }

  private:
    enum class State { start, top, metadata, tensor, numbers };

    void expect_once(Raw& raw) {
        bool* seen = key_ == "dtype"          ? &raw.has_dtype
                     : key_ == "shape"        ? &raw.has_shape
                     : key_ == "data_offsets" ? &raw.has_offsets
                                              : nullptr;
        require(seen != nullptr, "{}: tensor {} has the unknown field {}", where_, shown(name_), shown(key_));
        require(!std::exchange(*seen, true), "{}: tensor {} has the field '{}' twice", where_, shown(name_),
                key_);
    }
    [[noreturn]] void unexpected(const std::string& what) {
        if (state_ == State::start) fail("{}: the header is {}, not an object of tensors", where_, what);
        if (state_ == State::top) fail("{}: tensor {} is {}, not an object", where_, shown(name_), what);
        if (state_ == State::metadata) fail("{}: metadata key {} is {}, not text", where_, shown(key_), what);
        fail("{}: tensor {} has {} in the field {}, where it does not belong", where_, shown(name_), what,
             shown(key_));
    }

    std::string_view where_;
    State state_ = State::start;
    bool has_metadata_ = false;
    std::string name_, key_;
    std::vector<uint64_t>* numbers_ = nullptr;
};

// The bytes that shape and dtype need, or nothing if they do not fit in 63 bits.
std::optional<int64_t> byte_count(const std::vector<uint64_t>& dims, DType dtype) {
    int64_t count = 1;
    for (const uint64_t dim : dims) {
        if (dim > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
        if (__builtin_mul_overflow(count, static_cast<int64_t>(dim), &count)) return std::nullopt;
    }
    if (__builtin_mul_overflow(count, static_cast<int64_t>(size_of(dtype)), &count)) return std::nullopt;
    return count;
}

SafetensorsHeader::Entry checked(const HeaderReader::Raw& raw, size_t data_bytes, std::string_view where) {
    const std::string name = shown(raw.name);
    const std::optional<DType> dtype = dtype_named(raw.dtype);
    require(dtype.has_value(), "{}: tensor {} has the dtype {}, which nibble does not read", where, name,
            shown(raw.dtype));
    require(raw.shape.size() <= Shape::kMaxRank, "{}: tensor {} has {} dimensions; nibble reads up to {}",
            where, name, raw.shape.size(), int{Shape::kMaxRank});
    require(raw.offsets.size() == 2, "{}: tensor {} has {} data_offsets instead of 2", where, name,
            raw.offsets.size());
    const uint64_t begin = raw.offsets[0], end = raw.offsets[1];
    require(begin <= end, "{}: tensor {} ends (at {}) before it begins (at {})", where, name, end, begin);
    require(end <= data_bytes,
            "{}: tensor {} ends at byte {}, but there are only {} bytes of data; the file is cut short",
            where, name, end, data_bytes);
    const std::optional<int64_t> needed = byte_count(raw.shape, *dtype);
    require(needed.has_value() && static_cast<uint64_t>(*needed) == end - begin,
            "{}: tensor {}: its shape and dtype {} do not need the {} bytes that data_offsets give it", where,
            name, raw.dtype, end - begin);
    std::vector<int64_t> dims(raw.shape.begin(), raw.shape.end());
    return {raw.name, *dtype, Shape(std::span<const int64_t>(dims)), static_cast<size_t>(begin),
            static_cast<size_t>(end)};
}

// Sorted by position, the tensors must follow each other without overlap or hole, from the first byte to the
// last.
void check_layout(std::vector<SafetensorsHeader::Entry>& entries, size_t data_bytes, std::string_view where) {
    std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
        return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    size_t at = 0;
    for (const auto& entry : entries) {
        require(entry.begin >= at,
                "{}: tensor {} overlaps the one before it (it begins at {}, that ends at {})", where,
                shown(entry.name), entry.begin, at);
        require(entry.begin <= at, "{}: there is a hole of {} bytes before tensor {}", where,
                entry.begin - at, shown(entry.name));
        at = entry.end;
    }
    require(at == data_bytes, "{}: {} bytes after the last tensor belong to none", where, data_bytes - at);
}

void check_names(const std::vector<SafetensorsHeader::Entry>& entries, std::string_view where) {
    std::vector<std::string_view> names;
    names.reserve(entries.size());
    for (const auto& entry : entries) names.push_back(entry.name);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    require(twice == names.end(), "{}: tensor {} is there twice", where,
            twice == names.end() ? std::string() : shown(*twice));
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> file, std::string_view where) {
    require(file.size() >= kLengthBytes, "{}: {} bytes are too few for a safetensors file", where,
            file.size());
    uint64_t length = 0;
    std::memcpy(&length, file.data(), kLengthBytes);
    require(length <= kMaxHeader,
            "{}: a header of {} bytes is above the format's limit; this is not a safetensors file", where,
            length);
    require(length <= file.size() - kLengthBytes,
            "{}: the header should have {} bytes, but only {} follow; the file is cut short", where, length,
            file.size() - kLengthBytes);
    const char* text = reinterpret_cast<const char*>(file.data()) + kLengthBytes;
    // The JSON parser takes a NUL for the end of its input.
    require(length > 0 && text[0] == '{' && std::find(text, text + length, '\0') == text + length,
            "{}: the header is not a JSON object; this is not a safetensors file, or it is damaged", where);

    HeaderReader reader(where);
    nlohmann::json::sax_parse(text, text + length, &reader);

    const size_t data_begin = kLengthBytes + static_cast<size_t>(length);
    SafetensorsHeader header;
    header.metadata = std::move(reader.metadata);
    header.entries.reserve(reader.tensors.size());
    for (const auto& raw : reader.tensors)
        header.entries.push_back(checked(raw, file.size() - data_begin, where));
    check_names(header.entries, where);
    check_layout(header.entries, file.size() - data_begin, where);
    for (auto& entry : header.entries) {
        entry.begin += data_begin;
        entry.end += data_begin;
    }
    return header;
}

SafetensorsFile::SafetensorsFile(const fs::path& path) : where_(path.string()), file_(path) {
    SafetensorsHeader header = parse_safetensors_header(file_.bytes(), where_);
    metadata_ = std::move(header.metadata);
    tensors_.reserve(header.entries.size());
    for (auto& entry : header.entries) {
        const std::byte* data = file_.bytes().data() + entry.begin;
        if (reinterpret_cast<uintptr_t>(data) % size_of(entry.dtype) != 0) {
            const Buffer& copy = aligned_copies_.emplace_back(entry.dtype, entry.shape);
            std::memcpy(copy.data(), data, entry.end - entry.begin);
            data = copy.data();
        }
        index_.emplace(entry.name, tensors_.size());
        tensors_.push_back(
            {std::move(entry.name), {const_cast<std::byte*>(data), entry.dtype, Device::cpu, entry.shape}});
    }
}

const Tensor* SafetensorsFile::find(std::string_view name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &tensors_[found->second].tensor;
}

const Tensor& SafetensorsFile::tensor(std::string_view name) const {
    const Tensor* found = find(name);
    if (found != nullptr) return *found;
    std::vector<std::string> names;
    for (const auto& named : tensors_) names.push_back(named.name);
    const std::string nearest = nearest_name(name, names);
    fail("{}: there is no tensor {}{}", where_, shown(name),
         nearest.empty() ? std::string() : "; the nearest name is " + shown(nearest));
}

std::string SafetensorsFile::metadata_value(const std::string& key) const {
    const auto found = metadata_.find(key);
    return found == metadata_.end() ? std::string() : found->second;
}

void write_safetensors(const fs::path& path, std::vector<NamedTensor> tensors, SafetensorsMetadata metadata) {
    std::sort(tensors.begin(), tensors.end(), [](const NamedTensor& a, const NamedTensor& b) {
        const size_t rank_a = sort_rank(a.tensor.dtype), rank_b = sort_rank(b.tensor.dtype);
        return rank_a != rank_b ? rank_a > rank_b : a.name < b.name;
    });
    metadata.emplace("format", "pt");

    nlohmann::ordered_json::object_t header;  // a plain list: names are checked here, once, by a set
    header.emplace_back(kMetadataKey, metadata);
    std::map<std::string_view, bool> seen{{kMetadataKey, true}};
    size_t at = 0;
    for (const NamedTensor& named : tensors) {
        const Tensor& tensor = named.tensor;
        require(seen.emplace(named.name, true).second, "{}: the tensor name {} cannot be written twice",
                path.string(), shown(named.name));
        nlohmann::ordered_json entry;
        entry["dtype"] = name_of(tensor.dtype);
        entry["shape"] = std::vector<int64_t>(tensor.shape.dims().begin(), tensor.shape.dims().end());
        entry["data_offsets"] = {at, at + tensor.bytes()};
        at += tensor.bytes();
        header.emplace_back(named.name, std::move(entry));
    }
    std::string text;
    try {
        text = nlohmann::ordered_json(std::move(header)).dump();
    } catch (const nlohmann::json::type_error&) {
        fail("{}: a tensor name or a metadata text is not UTF-8 and cannot be written", path.string());
    }
    text.resize((text.size() + 7) / 8 * 8, ' ');
    require(text.size() <= kMaxHeader, "{}: the names and shapes of {} tensors do not fit in one header",
            path.string(), tensors.size());

    AtomicFile file(path);
    const uint64_t length = text.size();
    file.write(&length, kLengthBytes);
    file.write(text);
    for (const NamedTensor& named : tensors) {
        const OnCpu values(named.tensor);
        file.write(values.tensor().data, values.tensor().bytes());
    }
    file.commit();
}

}  // namespace nibble
