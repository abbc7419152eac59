#include "data/tokenize.h"

#include <cmath>

#include "core/error.h"
#include "core/parallel.h"

namespace nibble {

namespace {

constexpr size_t kShortDocument = size_t{1} << 14;
constexpr size_t kBatchBytes = size_t{1} << 23;

// A part of a document that goes to one side.
struct Part {
    std::string_view text;
    bool is_validation;
    std::vector<int32_t> tokens;
};

TokenizeTotals totals_of(const ShardWriter& writer) {
    return {writer.documents(), writer.tokens(), writer.text_bytes()};
}

// Encodes every document and hands it to one of the writers (`validation` may be null).
int64_t write_shards(const Tokenizer& tokenizer, const std::vector<fs::path>& files,
                     const TokenizeOptions& options,
                     const std::function<void(const TokenizeProgress&)>& progress, ShardWriter& train,
                     ShardWriter* validation) {
    DocumentReader reader(files, options.documents);
    std::vector<Encoder> encoders;
    for (int i = 0; i < thread_count(); ++i) encoders.emplace_back(tokenizer);
    std::vector<std::string> documents;
    std::vector<Part> parts;
    while (reader.next_batch(kBatchBytes, documents)) {
        parts.clear();
        for (const std::string& document : documents) {
            const size_t cut = validation != nullptr ? training_prefix(document, options.validation_fraction)
                                                     : document.size();
            const std::string_view text = document;
            if (cut > 0) parts.push_back({text.substr(0, cut), false, {}});
            if (cut < text.size()) parts.push_back({text.substr(cut), true, {}});
        }
        // One range for each encoder, whose memory of pieces lasts from batch to batch.
        const auto count = static_cast<int64_t>(parts.size()), ranges = static_cast<int64_t>(encoders.size());
        parallel_for(ranges, 1, [&](int64_t begin, int64_t end) {
            for (int64_t range = begin; range < end; ++range) {
                for (int64_t i = count * range / ranges; i < count * (range + 1) / ranges; ++i) {
                    encoders[range].encode(parts[i].text, options.special, parts[i].tokens);
                }
            }
        });
        for (const Part& part : parts) {
            (part.is_validation ? *validation : train)
                .add_document(part.tokens, static_cast<int64_t>(part.text.size()));
        }
        if (progress) {
            progress({reader.consumed_bytes(), reader.total_bytes(),
                      train.tokens() + (validation != nullptr ? validation->tokens() : 0)});
        }
    }
    return reader.replaced();
}

}  // namespace

size_t training_prefix(std::string_view document, double validation_fraction) {
    if (document.size() < kShortDocument) {
        const double place =
            std::ldexp(static_cast<double>(xxh64(document.data(), document.size()) >> 11), -53);
        return place < validation_fraction ? 0 : document.size();
    }
    const auto wished =
        static_cast<size_t>(std::ceil(static_cast<double>(document.size()) * (1 - validation_fraction)));
    if (wished >= document.size()) return document.size();
    const size_t line_end = document.find('\n', wished);
    if (line_end != document.npos && line_end + 1 < document.size()) return line_end + 1;
    // One long line: at least not inside a character.
    size_t cut = wished;
    while (cut > 0 && (static_cast<unsigned char>(document[cut]) & 0xc0) == 0x80) --cut;
    return cut;
}

TokenizeResult tokenize_files(const Tokenizer& tokenizer, const std::vector<fs::path>& files,
                              const fs::path& out, const TokenizeOptions& options,
                              const std::function<void(const TokenizeProgress&)>& progress) {
    require(options.validation_fraction >= 0 && options.validation_fraction < 1,
            "the validation fraction must be at least 0 and less than 1, not {}",
            options.validation_fraction);
    require(options.tokens_per_shard >= 1, "a shard needs at least 1 token, not {}",
            options.tokens_per_shard);
    TokenizeResult result;
    if (options.validation_fraction == 0) {
        write_directory(out, [&](const fs::path& folder) {
            ShardWriter writer(folder, tokenizer, options.tokens_per_shard);
            result.replaced = write_shards(tokenizer, files, options, progress, writer, nullptr);
            writer.finish();
            tokenizer.save(folder);
            result.train = totals_of(writer);
        });
        return result;
    }
    write_directory(out / "train", [&](const fs::path& train_folder) {
        write_directory(out / "validation", [&](const fs::path& validation_folder) {
            ShardWriter train(train_folder, tokenizer, options.tokens_per_shard);
            ShardWriter validation(validation_folder, tokenizer, options.tokens_per_shard);
            result.replaced = write_shards(tokenizer, files, options, progress, train, &validation);
            require(train.documents() + validation.documents() > 0, "there is no text to tokenise");
            require(train.documents() > 0 && validation.documents() > 0,
                    "a validation fraction of {} leaves no document on one side; the text has {} short "
                    "documents: choose "
                    "another fraction or give validation its own file",
                    options.validation_fraction, train.documents() + validation.documents());
            train.finish();
            validation.finish();
            tokenizer.save(train_folder);
            tokenizer.save(validation_folder);
            result.train = totals_of(train);
            result.validation = totals_of(validation);
        });
    });
    return result;
}

}  // namespace nibble
