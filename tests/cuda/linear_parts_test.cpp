#include "nn/quant_linear_parts.h"
#include "support/both_devices.h"

namespace nibble {
namespace {

class LinearPartsOnGpu : public BothDevices {};

TEST_P(LinearPartsOnGpu, ConvertRounds) {
    const DType from = GetParam(), to = from == DType::bf16 ? DType::f32 : DType::bf16;
    for (const Shape& shape : {Shape{64, 512}, Shape{7, 33}, Shape{1, 3}}) {
        const Twin x = Twin::random(from, shape, 1), out = Twin::output(to, shape),
                   same = Twin::output(from, shape);
        run([&](Context& context) {
            detail::convert(context, x.on(context.device), out.on(context.device));
            detail::convert(context, x.on(context.device), same.on(context.device));
        });
        out.expect_equal("converted");
        same.expect_equal("copied");
    }
}

TEST_P(LinearPartsOnGpu, PaddingIsZero) {
    const Twin x = Twin::random(GetParam(), {5, 21}, 1);
    const Twin wide = Twin::output(GetParam(), {5, 32}), high = Twin::output(GetParam(), {16, 21});
    run([&](Context& context) {
        const ArenaScope scope(context.arena);
        const Tensor in = x.on(context.device);
        const Tensor columns = detail::padded_columns(context, in, 32);
        const Tensor rows = detail::padded_rows(context, in, 16);
        EXPECT_EQ(detail::padded_rows(context, in, 5).data, in.data);
        if (context.planning()) return;
        copy(context, columns, wide.on(context.device));
        copy(context, rows, high.on(context.device));
    });
    wide.expect_equal("columns");
    high.expect_equal("rows");
}

TEST_P(LinearPartsOnGpu, AGradientIsMaskedTurnedBackAndStoredToTheBit) {
    const QuantSpec one_round = parse_spec("mxfp4 rotate=rht:32"),
                    two_rounds = parse_spec("nvfp4 rotate=rht2:128");
    const QuantSpec small = parse_spec("nvfp4 rotate=rht:16"), plain = parse_spec("nvfp4 rotate=hadamard:64");
    const SignBits signs(std::string("1011001110001111") + std::string(100, '1') + "0100101110101" +
                         std::string(90, '0') + "110101");
    for (const QuantSpec* rotation :
         {static_cast<const QuantSpec*>(nullptr), &one_round, &two_rounds, &small, &plain}) {
        for (const int64_t cols : {384, 264, 128, 160, 36, 33}) {
            if (rotation != nullptr && cols % rotation->rotation_size != 0) continue;
            for (const int64_t wanted : {cols, cols - 5, cols - 8}) {
                for (const bool masks : {true, false}) {
                    for (const bool accumulates : {true, false}) {
                        const Twin gradient = Twin::random(DType::f32, {19, cols}, 1);
                        const Twin out = Twin::random(GetParam(), {19, wanted}, 2);
                        std::vector<uint8_t> bits;
                        for (const float v : random_values(3, 19 * (cols / 8 + 2)))
                            bits.push_back(static_cast<uint8_t>(static_cast<int>(v * 1000)));
                        const Twin mask = Twin::of<uint8_t>({19, cols / 8 + 2}, bits);
                        run([&](Context& context) {
                            const Device on = context.device;
                            detail::finish_gradient(context, gradient.on(on), masks ? mask.on(on) : Tensor{},
                                                    rotation, signs, out.on(on), accumulates);
                        });
                        out.expect_equal("gradient");
                    }
                }
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Activations, LinearPartsOnGpu, kActivations, name_of_dtype);

}  // namespace
}  // namespace nibble
