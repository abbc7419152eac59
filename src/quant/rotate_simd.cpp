// Rotations of a whole matrix, in place: kLanes blocks at a time through a tile.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/rotate_simd.cpp"
#include "quant/simd_targets.h"
// clang-format off
#include <hwy/foreach_target.h>
// clang-format on
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "quant/cuda_forms.h"
#include "quant/kernels.h"
#include "quant/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {
#if NIBBLE_HAS_LANES
namespace {

// kLanes blocks from x.
void rotate_blocks(const Rotator& r, float* x) {
    alignas(64) float tile[kMaxUnit * kLanes];
    for (int k = 0; k < r.size; k += 16) {
        VF v[16];
        load_transposed(x + k, r.size, v);
        for (int j = 0; j < 16; ++j) v[j] = float_of(hn::Xor(bits_of(v[j]), u32(r.before[k + j])));
        butterfly<16>(v);
        for (int j = 0; j < 16; ++j) hn::Store(v[j], F32(), tile + (k + j) * kLanes);
    }
    const VF factor = f32(hadamard_factor(r.size));
    if (r.size == 16) finish_rotation<1>(tile, factor);
    if (r.size == 32) finish_rotation<2>(tile, factor);
    if (r.size == 64) finish_rotation<4>(tile, factor);
    if (r.size == 128) finish_rotation<8>(tile, factor);
    for (int k = 0; k < r.size; k += 16) {
        VF v[16];
        for (int j = 0; j < 16; ++j) {
            v[j] = float_of(hn::Xor(bits_of(hn::Load(F32(), tile + (k + j) * kLanes)), u32(r.after[k + j])));
        }
        store_transposed(v, x + k, r.size);
    }
}

void rotate_range(const Rotator& r, float* x, int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block += kLanes) {
        float* const first = x + block * r.size;
        const int64_t count = std::min<int64_t>(kLanes, end - block);
        if (count == kLanes) {
            rotate_blocks(r, first);
            continue;
        }
        alignas(64) float buffer[kMaxUnit * kLanes] = {};
        const size_t bytes = static_cast<size_t>(count * r.size) * sizeof(float);
        std::memcpy(buffer, first, bytes);
        rotate_blocks(r, buffer);
        std::memcpy(first, buffer, bytes);
    }
}

}  // namespace

RotateKernel choose_rotate() { return rotate_range; }

#else

RotateKernel choose_rotate() { return nullptr; }

#endif  // NIBBLE_HAS_LANES
}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {
namespace {

HWY_EXPORT(choose_rotate);

void flip(float* v, const uint32_t* bits, int count) {
    for (int j = 0; j < count; ++j) v[j] = std::bit_cast<float>(std::bit_cast<uint32_t>(v[j]) ^ bits[j]);
}

void rotate_scalar(const Rotator& r, float* x, int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
        float* const v = x + block * r.size;
        flip(v, r.before, r.size);
        hadamard_transform(v, r.size);
        flip(v, r.after, r.size);
    }
}

void check_rotation(int size, const Tensor& x) {
    require(size == 16 || size == 32 || size == 64 || size == 128,
            "a rotation has size 16, 32, 64 or 128, not {}", size);
    require(x.dtype == DType::f32, "rotation works on F32, not on {}", name_of(x.dtype));
    require(x.count() == 0 || x.cols() % size == 0, "{} columns are not a multiple of the rotation's {}",
            x.cols(), size);
}

void rotate(const Rotator& rotator, const Tensor& x) {
    const int size = rotator.size;
    RotateKernel kernel = HWY_DYNAMIC_DISPATCH(choose_rotate)();
    if (kernel == nullptr) kernel = rotate_scalar;
    constexpr int64_t kGrain = 1 << 13;  // elements
    parallel_for(x.count() / size, kGrain / size,
                 [&](int64_t begin, int64_t end) { kernel(rotator, x.as<float>(), begin, end); });
}

void set_signs(uint32_t* bits, const SignBits& signs, int round) {
    for (int j = 0; j < kMaxRotation; ++j) bits[j] = signs[round * kMaxRotation + j] ? 0x80000000u : 0u;
}

}  // namespace

void rotate(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds) {
    check_rotation(size, x);
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, rotate(context, size, signs, x, rounds));
    for (int round = 0; round < rounds; ++round) {
        Rotator rotator{.size = size};
        set_signs(rotator.before, signs, round);
        rotate(rotator, x);
    }
}

void unrotate(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds) {
    check_rotation(size, x);
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, unrotate(context, size, signs, x, rounds));
    for (int round = rounds - 1; round >= 0; --round) {
        Rotator rotator{.size = size};
        set_signs(rotator.after, signs, round);
        rotate(rotator, x);
    }
}

}  // namespace nibble
#endif
