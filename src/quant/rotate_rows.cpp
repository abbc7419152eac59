// Rotations along the other dimension (rotate=...@rows): every block of `size` rows is rotated, column by
// column. Each stage is a loop over rows, which the compiler makes a vector loop; the order of operations is
// that of hadamard_transform().
#include <algorithm>
#include <atomic>
#include <cmath>

#include "quant/cuda_forms.h"
#include "quant/internal.h"

namespace nibble {

namespace {

constexpr int64_t kColumns = 64;  // a task's: with 128 rows 32 KiB, what a core keeps close

void flip_rows(float* x, int64_t stride, int64_t cols, int size, const SignBits& signs, int round) {
    for (int r = 0; r < size; ++r) {
        if (!signs[static_cast<size_t>(round * kMaxRotation + r)]) continue;
        for (int64_t c = 0; c < cols; ++c) x[r * stride + c] = -x[r * stride + c];
    }
}

void transform_rows(float* x, int64_t stride, int64_t cols, int size) {
    for (int h = 1; h < size; h *= 2) {
        for (int block = 0; block < size; block += 2 * h) {
            for (int r = block; r < block + h; ++r) {
                float* const first = x + r * stride;
                float* const second = first + h * stride;
                for (int64_t c = 0; c < cols; ++c) {
                    const float a = first[c], b = second[c];
                    first[c] = a + b;
                    second[c] = a - b;
                }
            }
        }
    }
    const float factor = hadamard_factor(size);
    for (int r = 0; r < size; ++r) {
        for (int64_t c = 0; c < cols; ++c) x[r * stride + c] *= factor;
    }
}

void check_rotation_of_rows(int size, const Tensor& x) {
    require(size == 16 || size == 32 || size == 64 || size == 128,
            "a rotation has size 16, 32, 64 or 128, not {}", size);
    require(x.dtype == DType::f32, "rotation works on F32, not on {}", name_of(x.dtype));
    require(x.rows() % size == 0, "{} rows are not a multiple of the rotation's {}", x.rows(), size);
}

// Calls body(first, cols) for pieces of blocks: `size` rows, at most kColumns columns.
template <typename Body>
void for_each_piece(int size, const Tensor& x, Body&& body) {
    const int64_t cols = x.cols(), pieces = (cols + kColumns - 1) / kColumns;
    parallel_for(x.rows() / size * pieces, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t col = i % pieces * kColumns;
            body(x.as<float>() + i / pieces * size * cols + col, std::min(kColumns, cols - col));
        }
    });
}

// Rounds the rotated values where the spec says so; false if one of them is not finite (on a GPU: the
// quantiser that reads them says so).
bool finish(Context& context, const QuantSpec& spec, const Tensor& rotated) {
    if (context.device == Device::cuda) {
        if constexpr (kHasCuda) {
            if (spec.out_bf16) cuda::round_to_bf16(context, rotated);
        }
        return true;
    }
    const auto values = rotated.span<float>();
    std::atomic<bool> all_finite{true};
    parallel_for(static_cast<int64_t>(values.size()), 1 << 14, [&](int64_t begin, int64_t end) {
        for (float& v : values.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin))) {
            if (spec.out_bf16) v = round_to_bf16(v);
            if (!std::isfinite(v)) all_finite.store(false, std::memory_order_relaxed);
        }
    });
    return all_finite.load();
}

}  // namespace

void widen(Context& context, const Tensor& x, const Tensor& values) {
    NIBBLE_ON_CUDA(context, widen(context, x, values));
    const int64_t rows = values.rows(), cols = values.cols(), width = std::min(x.cols(), cols);
    float* const out = values.as<float>();
    with_elements(x, [&](const auto* from) {
        parallel_for(rows, rows_per_task(cols), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
                float* const to = out + r * cols;
                const int64_t given = r < x.rows() ? width : 0;
                for (int64_t c = 0; c < given; ++c) to[c] = to_float(from[r * x.cols() + c]);
                std::fill(to + given, to + cols, 0.0f);
            }
        });
    });
}

void rotate_rows(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds) {
    check_rotation_of_rows(size, x);
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, rotate_rows(context, size, signs, x, rounds));
    for_each_piece(size, x, [&, stride = x.cols()](float* first, int64_t cols) {
        for (int round = 0; round < rounds; ++round) {
            flip_rows(first, stride, cols, size, signs, round);
            transform_rows(first, stride, cols, size);
        }
    });
}

void unrotate_rows(Context& context, int size, const SignBits& signs, const Tensor& x, int rounds) {
    check_rotation_of_rows(size, x);
    if (context.planning()) return;
    NIBBLE_ON_CUDA(context, unrotate_rows(context, size, signs, x, rounds));
    for_each_piece(size, x, [&, stride = x.cols()](float* first, int64_t cols) {
        for (int round = rounds - 1; round >= 0; --round) {
            transform_rows(first, stride, cols, size);
            flip_rows(first, stride, cols, size, signs, round);
        }
    });
}

void quantize_rotated_rows(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                           QuantizedMatrix& out, const QuantizeOptions& options, bool by_reference) {
    const ArenaScope scope(context.arena);
    // The rows of `out` are the columns of a transposed input.
    const Shape shape = options.transposed ? Shape{x.rows(), out.rows} : Shape{out.rows, out.cols};
    const Tensor rotated = context.arena.allocate(DType::f32, shape);
    if (!context.planning()) widen(context, x, rotated);
    const SignBits signs = signs_of(spec, key, options);
    (options.transposed ? rotate : rotate_rows)(context, spec.rotation_size, signs, rotated,
                                                spec.rotation_rounds());
    if (!context.planning() && !finish(context, spec, rotated)) fail_not_finite(x, options.name);

    QuantSpec rest = spec;
    rest.rotation = Rotation::none;
    rest.rotation_size = 0;
    rest.rotation_of_rows = rest.out_bf16 = false;
    rest.signs = Signs::by_gemm;
    QuantizedMatrix bytes = out;
    bytes.spec = rest;
    QuantizeOptions rest_options = options;
    rest_options.signs = nullptr;
    rest_options.known_amax = nullptr;  // that of x before its rotation
    (by_reference ? quantize_reference : quantize)(context, rest, rotated, key, bytes, rest_options);
}

}  // namespace nibble
