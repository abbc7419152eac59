#include "data/documents.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"
#include "data/json_line.h"
#include "data/quoted.h"
#include "data/utf8.h"

namespace nibble {

namespace {

bool holds_json_lines(fs::path path) {
    if (path.extension() == ".gz" || path.extension() == ".zst") path.replace_extension();
    const fs::path extension = path.extension();
    return extension == ".jsonl" || extension == ".ndjson" || extension == ".json";
}

}  // namespace

DocumentReader::DocumentReader(std::vector<fs::path> files, DocumentOptions options)
    : files_(std::move(files)), options_(std::move(options)) {
    for (const fs::path& path : files_) {
        std::error_code error;
        const auto size = fs::file_size(path, error);
        if (error) fail("cannot read {}: {}", path.string(), error.message());
        total_bytes_ += static_cast<int64_t>(size);
    }
}

int64_t DocumentReader::consumed_bytes() const {
    return finished_bytes_ + (stream_ ? stream_->consumed() : 0);
}

bool DocumentReader::next(std::string& document) {
    do {
        document.clear();
        if (!next_raw(document)) return false;
    } while (document.empty());
    return true;
}

bool DocumentReader::next_batch(size_t bytes, std::vector<std::string>& documents) {
    documents.clear();
    size_t total = 0;
    std::string document;
    while (total < bytes && next(document)) {
        total += document.size();
        documents.push_back(std::move(document));
    }
    return !documents.empty();
}

bool DocumentReader::next_raw(std::string& document) {
    while (true) {
        if (stream_) {
            if (is_json_ ? next_json(document) : next_plain(document)) return true;
            finished_bytes_ += stream_->consumed();
            stream_.reset();
        }
        if (file_ == files_.size()) return false;
        const fs::path& path = files_[file_++];
        stream_ = std::make_unique<InputStream>(path);
        is_json_ = holds_json_lines(path);
        line_ = 0;
    }
}

bool DocumentReader::next_json(std::string& document) {
    std::string line;
    do {
        line.clear();
        if (!stream_->read_line(line)) return false;
        ++line_;
    } while (line.find_first_not_of(" \t\r") == std::string::npos);
    const std::string where = fmt::format("{}, line {}", files_[file_ - 1].string(), line_);
    nlohmann::json object;
    try {
        object = nlohmann::json::parse(line);
    } catch (const nlohmann::json::exception& error) {
        fail("{} is not JSON: {}", where, json_error_line(error));
    }
    if (!object.is_object() || !object.contains(options_.field)) {
        std::string names;
        if (object.is_object()) {
            for (const auto& item : object.items()) {
                if (names.size() < 80) names += (names.empty() ? "" : ", ") + item.key();
            }
        }
        fail("{} has no field {}{}; name the field that holds the text with --field", where,
             Quoted{options_.field}, names.empty() ? "" : " but " + names);
    }
    auto& text = object[options_.field];
    require(text.is_string(), "{}: the field {} is no text but {}", where, Quoted{options_.field},
            text.type_name());
    document = std::move(text.get_ref<std::string&>());
    return true;
}

bool DocumentReader::next_plain(std::string& document) {
    const std::string& separator = options_.separator;
    size_t end = std::string::npos;
    if (separator.empty()) {
        stream_->read_all(buffer_);
    } else {
        size_t searched = begin_;
        while ((end = buffer_.find(separator, searched)) == std::string::npos) {
            buffer_.erase(0, std::exchange(begin_, 0));
            // The separator may begin in what has been searched and end in what comes.
            searched = buffer_.size() - std::min(buffer_.size(), separator.size() - 1);
            const auto part = stream_->next();
            if (part.empty()) break;
            buffer_.append(part.data(), part.size());
        }
    }
    if (end == std::string::npos) {
        if (buffer_.empty()) return false;
        document = std::exchange(buffer_, {});
    } else {
        document = buffer_.substr(begin_, end - begin_);
        begin_ = end + separator.size();
    }
    if (!is_utf8(document)) document = repair_utf8(document, &replaced_);
    return true;
}

}  // namespace nibble
