// nibble tokenize: text to token shards.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "data/data.h"

namespace nibble {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// One line on stderr: rewritten in place on a terminal, a new one now and then in a file.
class ProgressLine {
  public:
    void operator()(const TokenizeProgress& progress) {
        if (seconds_since(last_) < (terminal_ ? 0.2 : 30.0)) return;
        last_ = Clock::now();
        const double rate = static_cast<double>(progress.consumed_bytes) / seconds_since(start_);
        const double left = static_cast<double>(progress.total_bytes - progress.consumed_bytes) / rate;
        fmt::print(
            stderr, "{}{:3.0f} %  {:.1f} M tokens  {:.1f} MB/s  {:.0f} s left{}", terminal_ ? "\r" : "",
            100.0 * static_cast<double>(progress.consumed_bytes) / static_cast<double>(progress.total_bytes),
            static_cast<double>(progress.tokens) * 1e-6, rate * 1e-6, left, terminal_ ? "\x1b[K" : "\n");
        shown_ = true;
    }
    ~ProgressLine() {
        if (terminal_ && shown_) fmt::print(stderr, "\r\x1b[K");
    }

  private:
    bool terminal_ = ::isatty(STDERR_FILENO) != 0, shown_ = false;
    Clock::time_point start_ = Clock::now(), last_ = start_;
};

struct Options {
    TokenizeOptions tokenize;
    fs::path tokenizer, out;
    std::vector<fs::path> files;
    bool parse_special = false;
};

void print_totals(const fs::path& folder, const TokenizeTotals& totals) {
    fmt::print("{}: {} tokens, {} documents, {} bytes of text, {:.3f} bytes a token\n", folder.string(),
               totals.tokens, totals.documents, totals.text_bytes,
               static_cast<double>(totals.text_bytes) / static_cast<double>(totals.tokens));
}

void tokenize(Options options) {
    if (options.parse_special) options.tokenize.special = SpecialTokens::parse;
    const Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
    const Clock::time_point start = Clock::now();
    TokenizeResult result;
    {
        ProgressLine line;
        result = tokenize_files(tokenizer, options.files, options.out, options.tokenize, std::ref(line));
    }
    const bool split = options.tokenize.validation_fraction > 0;
    print_totals(split ? options.out / "train" : options.out, result.train);
    if (split) print_totals(options.out / "validation", result.validation);
    const double seconds = seconds_since(start);
    log()->info("{:.1f} MB of text in {:.1f} s, {:.1f} MB/s",
                static_cast<double>(result.train.text_bytes + result.validation.text_bytes) * 1e-6, seconds,
                static_cast<double>(result.train.text_bytes + result.validation.text_bytes) * 1e-6 / seconds);
    if (result.replaced > 0)
        log()->warn("{} places that were not UTF-8 were read as U+FFFD", result.replaced);
}

}  // namespace

void add_tokenize_command(CLI::App& app) {
    CLI::App* command = app.add_subcommand("tokenize", "Turn text into token shards");
    auto options = std::make_shared<Options>();
    command->add_option("files", options->files, "Plain text, or JSON lines (.jsonl); also .gz and .zst")
        ->required()
        ->type_name("FILE");
    command
        ->add_option("--tokenizer", options->tokenizer, "Folder (or file) of a byte-level BPE tokenizer.json")
        ->required()
        ->type_name("DIR");
    command->add_option("--out", options->out, "Folder for the shards; must not hold any yet")
        ->required()
        ->type_name("DIR");
    command
        ->add_option("--validation-fraction", options->tokenize.validation_fraction,
                     "Hold out this part: writes DIR/train and DIR/validation")
        ->check(CLI::Range(0.0, 0.99))
        ->type_name("F");
    command
        ->add_option("--field", options->tokenize.documents.field,
                     "The field of JSON lines that holds the text")
        ->type_name("NAME")
        ->capture_default_str();
    command
        ->add_option("--separator", options->tokenize.documents.separator,
                     "What stands between the documents of a plain text (default: a file is one document)")
        ->type_name("TEXT");
    command
        ->add_option("--shard-tokens", options->tokenize.tokens_per_shard,
                     "Begin a new shard after so many tokens")
        ->check(CLI::PositiveNumber)
        ->type_name("N")
        ->capture_default_str();
    command->add_flag("--parse-special", options->parse_special,
                      "Let the text of a special token be that token (default: it is plain text)");
    command->footer(
        "Documents end with the end-of-text token. With --validation-fraction a document of less than\n"
        "16 KiB goes whole to one side, by a hash of its text; a longer one gives its end to validation.");
    command->callback([options] { tokenize(*options); });
}

}  // namespace nibble
