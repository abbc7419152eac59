#include "train/checkpoint.h"

#include <algorithm>
#include <charconv>

#include "core/cuda.h"
#include "data/hash.h"

namespace nibble {

using Json = nlohmann::ordered_json;

namespace {

constexpr const char* kStateFile = "state.json";

std::string checksum_of(const void* data, size_t bytes) { return fmt::format("{:016x}", xxh64(data, bytes)); }

// The same text before and after it was on disk, also where a path holds bytes that are not UTF-8.
std::string text_of(const Json& state) { return state.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json describe_file(const fs::path& path) {
    const MappedFile file(path);
    return {{"bytes", file.bytes().size()}, {"xxh64", checksum_of(file.bytes().data(), file.bytes().size())}};
}

fs::path path_of(const fs::path& folder, int64_t step) { return folder / fmt::format("step-{}", step); }

// state.json is {"xxh64": checksum of the text of "state", "state": {...}}.
Json read_state(const fs::path& path) {
    const Json file = Json::parse(read_text(path), nullptr, false);
    require(file.is_object() && file.contains("xxh64") && file.contains("state"),
            "{} is not a whole state.json", path.string());
    const std::string text = text_of(file.at("state"));
    require(file.at("xxh64") == checksum_of(text.data(), text.size()), "{}: the checksum differs",
            path.string());
    return file.at("state");
}

void verify_file(const fs::path& path, const Json& expected) {
    const Json found = describe_file(path);
    require(found.at("bytes") == expected.at("bytes"), "{} has {} bytes instead of {}", path.string(),
            found.at("bytes").dump(), expected.at("bytes").dump());
    require(found.at("xxh64") == expected.at("xxh64"), "{}: the checksum differs", path.string());
}

}  // namespace

std::vector<int64_t> checkpoint_steps(const fs::path& folder) {
    std::vector<int64_t> steps;
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
        const std::string name = entry.path().filename().string();
        int64_t step = 0;
        const char *begin = name.data() + 5, *end = name.data() + name.size();
        if (!name.starts_with("step-") || begin == end) continue;
        if (const auto [at, code] = std::from_chars(begin, end, step);
            code == std::errc() && at == end && step >= 0)
            steps.push_back(step);
    }
    std::sort(steps.begin(), steps.end());
    return steps;
}

fs::path write_checkpoint(const fs::path& folder, int64_t step, Json state,
                          const std::vector<NamedTensor>& model, const std::vector<NamedTensor>& optimizer,
                          int64_t keep) {
    const fs::path path = path_of(folder, step);
    // Only a run that was resumed before this step, or found it damaged, comes by again.
    fs::remove_all(path);
    write_directory(path, [&](const fs::path& partial) {
        write_safetensors(partial / kCheckpointModel, model);
        write_safetensors(partial / kCheckpointOptimizer, optimizer);
        state["format"] = kCheckpointFormat;
        state["step"] = step;
        for (const char* file : {kCheckpointModel, kCheckpointOptimizer})
            state["files"][file] = describe_file(partial / file);
        const std::string text = text_of(state);
        write_text(partial / kStateFile, fmt::format("{{\"xxh64\":\"{}\",\"state\":{}}}\n",
                                                     checksum_of(text.data(), text.size()), text));
    });
    std::vector<int64_t> steps = checkpoint_steps(folder);
    std::erase_if(steps, [step](int64_t other) {
        return other > step;
    });  // damaged, or the run would have gone on there
    for (size_t i = 0; keep > 0 && i + static_cast<size_t>(keep) < steps.size(); ++i)
        fs::remove_all(path_of(folder, steps[i]));
    return path;
}

Checkpoint open_checkpoint(const fs::path& path) {
    Checkpoint checkpoint{path, 0, read_state(path / kStateFile)};
    const Json& state = checkpoint.state;
    try {
        const int format = state.at("format").get<int>();
        require(format == kCheckpointFormat, "{} has format {}, this program reads {}", path.string(), format,
                kCheckpointFormat);
        checkpoint.step = state.at("step").get<int64_t>();
        for (const char* file : {kCheckpointModel, kCheckpointOptimizer})
            verify_file(path / file, state.at("files").at(file));
    } catch (const Json::exception& error) {
        fail("{}: {}", (path / kStateFile).string(), error.what());
    }
    return checkpoint;
}

std::optional<Checkpoint> newest_checkpoint(const fs::path& folder) {
    const std::vector<int64_t> steps = checkpoint_steps(folder);
    std::string damage;
    for (size_t i = steps.size(); i-- > 0;) {
        try {
            Checkpoint checkpoint = open_checkpoint(path_of(folder, steps[i]));
            if (!damage.empty()) log()->warn("{}; step-{} is taken instead", damage, steps[i]);
            return checkpoint;
        } catch (const Error& error) {
            damage += fmt::format("{}checkpoint step-{} is damaged: {}", damage.empty() ? "" : "; ", steps[i],
                                  error.what());
        }
    }
    require(damage.empty(), "{}; no whole one is left: start again without --resume", damage);
    return {};
}

void read_checkpoint_tensors(const Checkpoint& checkpoint, const char* file,
                             const std::vector<NamedTensor>& into) {
    const SafetensorsFile source(checkpoint.path / file);
    require(source.tensors().size() == into.size(), "{} holds {} tensors instead of {}", source.where(),
            source.tensors().size(), into.size());
    for (const NamedTensor& target : into) {
        const Tensor& tensor = source.tensor(target.name);
        require(tensor.dtype == target.tensor.dtype && tensor.shape == target.tensor.shape,
                "{}: {} is {} {} instead of {} {}", source.where(), target.name, name_of(tensor.dtype),
                tensor.shape.str(), name_of(target.tensor.dtype), target.tensor.shape.str());
        copy(tensor, target.tensor);
    }
}

}  // namespace nibble
