// nibble tokenizer: make a vocabulary.
#include <memory>

#include "cli/commands.h"
#include "data/data.h"

namespace nibble {

namespace {

struct TrainOptions {
    TokenizerTrainOptions train;
    DocumentOptions documents;
    std::string pattern = "llama3";
    fs::path out;
    std::vector<fs::path> files;
};

void train_tokenizer(TrainOptions options) {
    options.train.pattern = options.pattern == "gpt2" ? kGpt2Pattern : kLlama3Pattern;
    const fs::path file = options.out / "tokenizer.json";
    // Shards refer to it: an old vocabulary is not replaced by the way.
    require(!fs::exists(file), "{} exists already; remove it or choose another folder", file.string());
    TokenizerTrainer trainer(options.train);
    DocumentReader reader(options.files, options.documents);
    std::vector<std::string> documents;
    int64_t bytes = 0;
    constexpr size_t kBatchBytes = size_t{1} << 25;
    while (reader.next_batch(kBatchBytes, documents)) {
        trainer.add(documents);
        for (const std::string& document : documents) bytes += static_cast<int64_t>(document.size());
    }
    const Tokenizer tokenizer = trainer.train();
    tokenizer.save(options.out);
    fmt::print("{}: {} tokens from {:.2f} MB of text, vocabulary {:016x}\n", file.string(),
               tokenizer.vocabulary_size(), static_cast<double>(bytes) * 1e-6, tokenizer.vocabulary_hash());
    if (reader.replaced() > 0) {
        log()->warn("{} places that were not UTF-8 were read as U+FFFD", reader.replaced());
    }
}

}  // namespace

void add_tokenizer_command(CLI::App& app) {
    CLI::App* tokenizer = app.add_subcommand("tokenizer", "Make a tokenizer");
    tokenizer->require_subcommand(1);
    CLI::App* train = tokenizer->add_subcommand(
        "train", "Train a byte-level BPE vocabulary; write a Hugging Face tokenizer.json");
    auto options = std::make_shared<TrainOptions>();
    train->add_option("files", options->files, "Plain text, or JSON lines (.jsonl); also .gz and .zst")
        ->required()
        ->type_name("FILE");
    train
        ->add_option("--vocab-size", options->train.vocabulary_size,
                     "Tokens, with end-of-text and the 256 bytes")
        ->required()
        ->type_name("N");
    train->add_option("--out", options->out, "Folder for tokenizer.json and tokenizer_config.json")
        ->required()
        ->type_name("DIR");
    train->add_option("--pattern", options->pattern, "How text is cut before merging: llama3 or gpt2")
        ->check(CLI::IsMember({"llama3", "gpt2"}))
        ->capture_default_str();
    train->add_option("--end-of-text", options->train.end_of_text, "The token that ends documents")
        ->type_name("TEXT")
        ->capture_default_str();
    train->add_option("--min-frequency", options->train.min_frequency, "Merge no pair that occurs less often")
        ->type_name("N")
        ->capture_default_str();
    train->add_option("--field", options->documents.field, "The field of JSON lines that holds the text")
        ->type_name("NAME")
        ->capture_default_str();
    train->callback([options] { train_tokenizer(*options); });
}

}  // namespace nibble
