// Uses the installed library through its headers: quantises a row, builds a small model of a built-in recipe,
// and writes it as a model directory. Prints the version; exit code 1 if a value is not what it must be.
#include <cstdio>
#include <vector>

#include "nn/nn.h"
#include "quant/quant.h"
#include "recipe/recipe.h"
#include "train/model_directory.h"

int main(int argc, char** argv) {
    using namespace nibble;
    if (argc != 2) return 2;

    Arena arena(size_t{1} << 20);
    Context context{.arena = arena};
    const QuantSpec spec = parse_spec("nvfp4 1x16");
    // Codes 6, -3, 1.5 and 0.5 under the block scale 448 and the tensor scale 1: nothing is rounded.
    std::vector<float> row = {2688, -1344, 672, 224, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, back(row.size());
    QuantizedMatrix q = allocate_quantized(arena, spec, 1, 16);
    quantize(context, spec, view_of(row, {1, 16}), RandomKey{}, q);
    dequantize(context, q, view_of(back, {1, 16}));
    if (back != row) {
        std::fprintf(stderr, "a row on the grid did not come back as it was\n");
        return 1;
    }

    ModelConfig config;
    config.hidden_size = 32;
    config.intermediate_size = 32;
    config.vocab_size = 16;
    config.num_hidden_layers = 1;
    config.num_attention_heads = config.num_key_value_heads = 2;
    config.head_dim = 16;
    Transformer model(config, find_recipe("quartet2"), {});
    model.initialize(1);
    write_model_directory(argv[1], config, model.parameters());
    if (read_model_config(argv[1]) != config) {
        std::fprintf(stderr, "the model directory has another config.json than was written\n");
        return 1;
    }

    std::printf("nibble %.*s\n", static_cast<int>(version().size()), version().data());
    return 0;
}
