// The bytes of every quantiser over thousands of inputs are the recorded ones: what must not change without a
// new format version, and what other implementations of the same contract (SIMD, devices) must produce.
#include "quant/digest.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

void expect_recorded(Quantizer quantizer) {
    const std::vector<uint64_t> digests = quantizer_digests(quantizer);
    for (size_t i = 0; i < digests.size(); ++i) {
        const auto& [spec, recorded] = recorded_digests()[i];
        EXPECT_EQ(digests[i], recorded) << fmt::format("{{\"{}\", {:#018x}}},", spec, digests[i]);
    }
}

TEST(Digest, OfTheReferenceIsTheRecordedOne) { expect_recorded(quantize_reference); }
TEST(Digest, OfTheFastPathIsTheRecordedOne) { expect_recorded(quantize); }

// A wrong bit is seen: digests are of all bytes.
TEST(Digest, DiffersWhereOneCodeDoes) {
    const std::vector<uint64_t> digests =
        quantizer_digests([](Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                             QuantizedMatrix& out, const QuantizeOptions& options) {
            quantize(context, spec, x, key, out, options);
            if (!context.planning() && key.seed == 1234) out.codes.as<uint8_t>()[0] ^= 1;
        });
    for (size_t i = 0; i < digests.size(); ++i) EXPECT_NE(digests[i], recorded_digests()[i].digest);
}

}  // namespace
}  // namespace nibble
