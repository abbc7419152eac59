// nibble data: what is in token shards.
#include "data/data.h"

#include <algorithm>
#include <memory>

#include "cli/commands.h"

namespace nibble {

namespace {

struct InfoOptions {
    fs::path path;
    bool verify = false;
};

void print_info(const InfoOptions& options) {
    const TokenShards data(options.path);
    const fs::path tokenizer =
        (fs::is_directory(options.path) ? options.path : options.path.parent_path()) / "tokenizer.json";
    if (fs::exists(tokenizer)) data.require_tokenizer(Tokenizer::load(tokenizer), tokenizer.string());
    if (options.verify) data.verify();

    const auto row = [](const std::string& name, int64_t tokens, int64_t documents, int64_t bytes,
                        const std::string& checksum) {
        fmt::print("{:<16} {:>14} {:>10} {:>15} {:>8.3f}  {}\n", name, tokens, documents, bytes,
                   static_cast<double>(bytes) / static_cast<double>(std::max<int64_t>(tokens, 1)), checksum);
    };
    fmt::print("{}: tokens of {} bytes, vocabulary {:016x} of {}, end-of-text {}\n", options.path.string(),
               data.shards()[0].info().token_width, data.vocabulary_hash(), data.vocabulary_size(),
               data.end_of_text());
    fmt::print("{:<16} {:>14} {:>10} {:>15} {:>8}  {}\n", "shard", "tokens", "documents", "bytes of text",
               "b/token", "checksum");
    for (const Shard& shard : data.shards()) {
        const ShardInfo& info = shard.info();
        row(shard.path().filename().string(), info.tokens, info.documents, info.text_bytes,
            fmt::format("{:016x}", info.checksum));
    }
    if (data.shards().size() > 1) {
        row("together", data.tokens(), data.documents(), data.text_bytes(),
            fmt::format("{:016x}", data.hash()));
    }
    if (options.verify) fmt::print("verified: checksums are right\n");
}

}  // namespace

void add_data_command(CLI::App& app) {
    CLI::App* data = app.add_subcommand("data", "Look at token shards");
    data->require_subcommand(1);
    CLI::App* info = data->add_subcommand("info", "What a shard, or a folder of shards, holds");
    auto options = std::make_shared<InfoOptions>();
    info->add_option("path", options->path, "A .shard file, or a folder of them")
        ->required()
        ->type_name("SHARD");
    info->add_flag("--verify", options->verify, "Read everything and compare the checksums");
    info->callback([options] { print_info(*options); });
}

}  // namespace nibble
