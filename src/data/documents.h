// Documents out of files: plain text or JSON lines, either of them compressed or not.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/file.h"
#include "data/input_stream.h"

namespace nibble {

struct DocumentOptions {
    std::string field = "text";  // of JSON lines
    std::string separator;       // between the documents of a plain text; empty: a file is one document
};

// Reads documents one after the other. A file whose name, without .gz or .zst, ends in .jsonl, .ndjson or
// .json holds one JSON object a line; any other is plain text. Empty documents are left out; bytes of plain
// text that are not UTF-8 become U+FFFD. A bad line is an Error that names file and line.
class DocumentReader {
  public:
    // Throws Error if a file is not there.
    DocumentReader(std::vector<fs::path> files, DocumentOptions options);

    // False at the end.
    bool next(std::string& document);
    // Fills `documents` with up to about `bytes` of text, at least one document. False at the end.
    bool next_batch(size_t bytes, std::vector<std::string>& documents);

    int64_t total_bytes() const { return total_bytes_; }  // of all files, as they lie on disk
    int64_t consumed_bytes() const;                       // of them
    int64_t replaced() const { return replaced_; }        // ill-formed parts of UTF-8 that became U+FFFD

  private:
    bool next_raw(std::string& document);
    bool next_json(std::string& document);
    bool next_plain(std::string& document);

    std::vector<fs::path> files_;
    DocumentOptions options_;
    size_t file_ = 0;  // the next to open
    std::unique_ptr<InputStream> stream_;
    bool is_json_ = false;
    int64_t line_ = 0;
    std::string buffer_;  // plain text; what lies before begin_ has been given out
    size_t begin_ = 0;
    int64_t total_bytes_ = 0, finished_bytes_ = 0, replaced_ = 0;
};

}  // namespace nibble
