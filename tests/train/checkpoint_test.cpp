#include "train/checkpoint.h"

#include <gtest/gtest.h>
#include <stdlib.h>

namespace nibble {
namespace {

class CheckpointFolder : public testing::Test {
  protected:
    CheckpointFolder() {
        std::string name = (fs::temp_directory_path() / "nibble-checkpoint-XXXXXX").string();
        require(::mkdtemp(name.data()) != nullptr, "cannot create {}", name);
        folder_ = name;
    }
    ~CheckpointFolder() override { fs::remove_all(folder_); }

    fs::path write(int64_t step, int64_t keep = 0) {
        std::vector<float> weights = {1, 2, static_cast<float>(step)}, moments = {4, 5, 6};
        return write_checkpoint(folder_, step, {{"note", "\xff not UTF-8"}, {"third", 1.0 / 3}},
                                {{"w", view_of(weights, {3})}}, {{"w.m", view_of(moments, {3})}}, keep);
    }
    fs::path folder_;
};

TEST_F(CheckpointFolder, GivesBackWhatWasWritten) {
    const Checkpoint checkpoint = open_checkpoint(write(7));
    EXPECT_EQ(checkpoint.step, 7);
    EXPECT_EQ(checkpoint.state.at("third").get<double>(), 1.0 / 3);
    std::vector<float> weights(3), moments(3);
    read_checkpoint_tensors(checkpoint, kCheckpointModel, {{"w", view_of(weights, {3})}});
    read_checkpoint_tensors(checkpoint, kCheckpointOptimizer, {{"w.m", view_of(moments, {3})}});
    EXPECT_EQ(weights, (std::vector<float>{1, 2, 7}));
    EXPECT_EQ(moments, (std::vector<float>{4, 5, 6}));
}

TEST_F(CheckpointFolder, KeepsTheNewest) {
    for (const int64_t step : {5, 10, 100, 20}) write(step, 2);
    // 100 lies beyond 20: it is no part of what led here, and no reason to forget 10.
    EXPECT_EQ(checkpoint_steps(folder_), (std::vector<int64_t>{10, 20, 100}));
}

TEST_F(CheckpointFolder, NoticesAnyDamage) {
    const fs::path path = write(3);
    for (const char* file : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
        const std::string whole = read_text(path / file);
        for (size_t at = 0; at + 1 < whole.size(); at += 3) {
            std::string damaged = whole;
            damaged[at] = static_cast<char>(damaged[at] ^ 1);
            write_text(path / file, damaged);
            EXPECT_THROW(open_checkpoint(path), Error) << file << " byte " << at;
        }
        for (const size_t size : {size_t{0}, size_t{1}, whole.size() / 2, whole.size() - 2}) {
            write_text(path / file, whole.substr(0, size));
            EXPECT_THROW(open_checkpoint(path), Error) << file << " cut to " << size;
        }
        fs::remove(path / file);
        EXPECT_THROW(open_checkpoint(path), Error) << file << " removed";
        write_text(path / file, whole);
        EXPECT_NO_THROW(open_checkpoint(path));
    }
}

TEST_F(CheckpointFolder, TakesTheNewestThatIsWhole) {
    EXPECT_FALSE(newest_checkpoint(folder_ / "nothing").has_value());
    EXPECT_FALSE(newest_checkpoint(folder_).has_value());
    write(1), write(2), write(3);
    fs::create_directory(folder_ / "step-9.partial");  // a process was killed while it wrote
    EXPECT_EQ(newest_checkpoint(folder_)->step, 3);
    fs::resize_file(folder_ / "step-3/model.safetensors", 20);
    EXPECT_EQ(newest_checkpoint(folder_)->step, 2);
    fs::remove(folder_ / "step-2/state.json");
    EXPECT_EQ(newest_checkpoint(folder_)->step, 1);
    fs::remove(folder_ / "step-1/state.json");
    EXPECT_THROW(newest_checkpoint(folder_), Error);
}

TEST_F(CheckpointFolder, RefusesTensorsThatDoNotFit) {
    const Checkpoint checkpoint = open_checkpoint(write(1));
    std::vector<float> three(3), four(4);
    EXPECT_THROW(read_checkpoint_tensors(checkpoint, kCheckpointModel, {{"v", view_of(three, {3})}}), Error);
    EXPECT_THROW(read_checkpoint_tensors(checkpoint, kCheckpointModel, {{"w", view_of(four, {4})}}), Error);
    EXPECT_THROW(read_checkpoint_tensors(checkpoint, kCheckpointModel, {{"w", view_of(three, {3, 1})}}),
                 Error);
    EXPECT_THROW(read_checkpoint_tensors(checkpoint, kCheckpointModel, {}), Error);
}

}  // namespace
}  // namespace nibble
