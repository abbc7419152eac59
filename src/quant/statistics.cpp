#include "quant/statistics.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "quant/internal.h"

namespace nibble {
namespace {

// Work goes in bands of rows whose F32 values stay in the cache.
constexpr int64_t kBandElements = 1 << 17;
constexpr int64_t kTile = 16;  // rows and columns that are transposed at once

// band <- rows first .. first + band.rows() - 1 of the matrix that q was made from, zeros beyond its rows and
// columns.
void load_band(const QuantizedMatrix& q, const Tensor& x, const StatisticsOptions& options, int64_t first,
               const Tensor& band) {
    const int64_t rows = band.rows(), cols = band.cols();
    const int64_t given = options.transposed ? std::min(x.rows(), cols) : q.cols;
    const int64_t given_rows =
        std::clamp<int64_t>((options.transposed ? x.cols() : x.rows()) - first, 0, rows);
    float* const to = band.as<float>();
    with_elements(x, [&](const auto* from) {
        if (!options.transposed) {
            parallel_for(rows, rows_per_task(cols), [&](int64_t begin, int64_t end) {
                for (int64_t r = begin; r < end; ++r) {
                    const auto* row = from + (first + r) * given;
                    const int64_t count = r < given_rows ? given : 0;
                    for (int64_t k = 0; k < count; ++k) to[r * cols + k] = options.scale * to_float(row[k]);
                    std::fill(to + r * cols + count, to + (r + 1) * cols, 0.0f);
                }
            });
            return;
        }
        const int64_t stride = x.cols();
        parallel_for(cols, std::max(kTile, rows_per_task(rows)), [&](int64_t begin, int64_t end) {
            for (int64_t k0 = begin; k0 < end; k0 += kTile) {
                const int64_t k1 = std::min(k0 + kTile, end);
                for (int64_t r0 = 0; r0 < rows; r0 += kTile) {
                    const int64_t r1 = std::min(r0 + kTile, rows);
                    float tile[kTile][kTile] = {};
                    for (int64_t k = k0; k < std::min(k1, given); ++k) {
                        const auto* row = from + k * stride + first;
                        for (int64_t r = r0; r < std::min(r1, given_rows); ++r)
                            tile[k - k0][r - r0] = options.scale * to_float(row[r]);
                    }
                    for (int64_t r = r0; r < r1; ++r)
                        for (int64_t k = k0; k < k1; ++k) to[r * cols + k] = tile[k - k0][r - r0];
                }
            }
        });
    });
}

// Sums of one column of blocks: in float over a band, in double over the bands.
struct BlockColumn {
    QuantStatistics sum;
    float tensor_scale;
    float unit;  // a power of two near the largest values: squares of x / unit do not vanish in float
    bool four_six;

    // x, operand (values without the tensor scale): the first of kBlock columns, `stride` elements between
    // rows; limits: the largest value of each row's block. column_power: of these columns, or null.
    template <int kBlock>
    void add(const float* x, const float* operand, const float* limits, int64_t rows, int64_t stride,
             int64_t limit_stride, double* column_power) {
        const float inverse = 1.0f / unit;
        float power[kBlock] = {}, error[kBlock] = {}, along[kBlock] = {}, amax[kBlock] = {};
        int32_t clipped[kBlock] = {}, flushed[kBlock] = {};
        for (int64_t r = 0; r < rows; ++r, x += stride, operand += stride) {
            const float limit = limits[r * limit_stride];
            float largest = 0;
            for (int j = 0; j < kBlock; ++j) {
                const float value = operand[j] * tensor_scale, magnitude = std::fabs(x[j]);
                const float a = x[j] * inverse, d = value * inverse - a;
                power[j] += a * a;
                error[j] += d * d;
                along[j] += d * a;
                amax[j] = magnitude > amax[j] ? magnitude : amax[j];
                clipped[j] += magnitude > limit ? 1 : 0;
                flushed[j] += (value == 0 ? 1 : 0) & (x[j] != 0 ? 1 : 0);
            }
            if (!four_six) continue;
            for (int j = 0; j < kBlock; ++j)
                largest = std::max(largest, std::fabs(operand[j] * tensor_scale));
            sum.blocks += largest > 0;
            sum.blocks_to_four += largest > 0 && largest < limit;
        }
        const double square = double{unit} * unit;
        for (int j = 0; j < kBlock; ++j) {
            sum.power += square * power[j];
            sum.error += square * error[j];
            sum.along += square * along[j];
            sum.amax = std::max(sum.amax, double{amax[j]});
            sum.clipped += clipped[j];
            sum.flushed += flushed[j];
            if (column_power != nullptr) column_power[j] += square * power[j];
        }
    }
};

// The largest value of an element of block b (of block_size() columns) in row r.
float largest_value(const QuantizedMatrix& q, int64_t r, int64_t b) {
    const int64_t col = b * q.spec.block_size();
    float largest = largest_of(q.spec.element) * byte_scale(q, r, col);
    if (q.spec.has_fp32_scales()) largest *= fp32_scale_at(q, r, col);
    return largest * *q.tensor_scale_ptr();
}

// A power of two near the largest values of q.
float unit_of(const QuantizedMatrix& q) {
    float top = *q.tensor_scale_ptr();
    if (q.spec.has_scale_bytes()) {
        const auto bytes = q.scales.span<const uint8_t>();
        top *= decode_scale(q.spec, *std::max_element(bytes.begin(), bytes.end()));
    }
    if (q.spec.has_fp32_scales()) {
        const auto scales = q.fp32_scales.span<const float>();
        top *= *std::max_element(scales.begin(), scales.end());
    }
    return top > 0 ? std::ldexp(1.0f, std::clamp(std::ilogb(top), -120, 120)) : 1.0f;
}

// Rows first .. first + rows - 1 of q.
QuantizedMatrix band_of(const QuantizedMatrix& q, int64_t first, int64_t rows) {
    QuantizedMatrix band = q;
    band.rows = rows;
    band.codes = q.codes.slice(first, first + rows);
    if (q.spec.has_scale_bytes()) band.scales = q.scales.slice(first, first + rows);
    if (q.spec.has_fp32_scales()) band.fp32_scales = q.fp32_scales.slice(first, first + rows);
    return band;
}

// out <- the values of q, rows first .. first + out.rows() - 1, without the tensor scale.
void load_values(Context& context, const QuantizedMatrix& q, int64_t first, const Tensor& out) {
    const QuantizedMatrix band = band_of(q, first, out.rows());
    dequantize_operand(context, band, out);
    if (!q.spec.has_row_scales()) return;
    for (int64_t r = 0; r < out.rows(); ++r) {
        const float scale = band.fp32_scales.as<const float>()[r];
        float* const row = out.as<float>() + r * out.cols();
        for (int64_t k = 0; k < out.cols(); ++k) row[k] *= scale;
    }
}

}  // namespace

QuantStatistics& QuantStatistics::operator+=(const QuantStatistics& other) {
    power += other.power, error += other.error, along += other.along;
    amax = std::max(amax, other.amax);
    elements += other.elements, clipped += other.clipped, flushed += other.flushed;
    blocks += other.blocks, blocks_to_four += other.blocks_to_four;
    return *this;
}

QuantStatistics measure_quantized(Context& context, const QuantizedMatrix& q, const Tensor& x,
                                  const StatisticsOptions& options) {
    const QuantSpec& spec = q.spec;
    const int64_t cols = q.padded_cols, block = spec.block_size(), blocks = cols / block;
    if (q.rows == 0 || cols == 0) return {};
    const ArenaScope scope(context.arena);
    // Rotations along the rows need all rows that they mix.
    const int64_t mixed = spec.rotates_rows() ? spec.rotation_size : 1;
    const int64_t most_rows = std::min(q.rows, std::max<int64_t>(1, kBandElements / cols / mixed) * mixed);
    const Tensor expected = context.arena.allocate(DType::f32, {most_rows, cols});
    const Tensor values = context.arena.allocate(DType::f32, {most_rows, cols});
    const Tensor limits = context.arena.allocate(DType::f32, {most_rows, blocks});
    const Tensor memory =
        context.arena.allocate(DType::u8, {blocks * static_cast<int64_t>(sizeof(BlockColumn))});
    if (context.planning()) return {};

    const SignBits none;
    const float tensor_scale = *q.tensor_scale_ptr();
    auto* const columns = reinterpret_cast<BlockColumn*>(memory.data);
    std::uninitialized_fill_n(columns, blocks,
                              BlockColumn{{}, tensor_scale, unit_of(q), is_four_six(spec.scale)});
    if (options.column_power != nullptr) std::fill_n(options.column_power, cols, 0.0);

    for (int64_t first = 0; first < q.rows; first += most_rows) {
        const int64_t rows = std::min(most_rows, q.rows - first);
        const Tensor x_band = expected.slice(0, rows), q_band = values.slice(0, rows);
        load_band(q, x, options, first, x_band);
        if (spec.rotation != Rotation::none)
            (spec.rotates_rows() ? rotate_rows : rotate)(context, spec.rotation_size,
                                                         options.signs != nullptr ? *options.signs : none,
                                                         x_band, spec.rotation_rounds());
        load_values(context, q, first, q_band);
        auto* const limit = limits.as<float>();
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t b = 0; b < blocks; ++b) limit[r * blocks + b] = largest_value(q, first + r, b);
        const int64_t grain = std::max<int64_t>(1, 16384 / (rows * block));
        parallel_for(blocks, grain, [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b) {
                const float *a = x_band.as<float>() + b * block, *v = q_band.as<float>() + b * block;
                double* power = options.column_power == nullptr ? nullptr : options.column_power + b * block;
                if (block == 16)
                    columns[b].add<16>(a, v, limit + b, rows, cols, blocks, power);
                else if (block == 32)
                    columns[b].add<32>(a, v, limit + b, rows, cols, blocks, power);
                else
                    columns[b].add<128>(a, v, limit + b, rows, cols, blocks, power);
            }
        });
    }

    QuantStatistics all;
    for (int64_t b = 0; b < blocks; ++b) all += columns[b].sum;
    all.elements = static_cast<double>(q.rows * (spec.rotates_columns() ? cols : q.cols));
    return all;
}

void row_powers(const Tensor& x, float scale, double* out) {
    const int64_t cols = x.cols();
    with_elements(x, [&](const auto* from) {
        parallel_for(x.rows(), rows_per_task(cols), [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
                double sum = 0;
                for (int64_t k = 0; k < cols; ++k) {
                    const double value = to_float(from[r * cols + k]);
                    sum += value * value;
                }
                out[r] = double{scale} * scale * sum;
            }
        });
    });
}

void column_powers(const Tensor& x, float scale, double* out) {
    const int64_t rows = x.rows(), cols = x.cols();
    with_elements(x, [&](const auto* from) {
        parallel_for(cols, kTile, [&](int64_t begin, int64_t end) {
            std::fill(out + begin, out + end, 0.0);
            for (int64_t r = 0; r < rows; ++r) {
                for (int64_t k = begin; k < end; ++k) {
                    const double value = to_float(from[r * cols + k]);
                    out[k] += double{scale} * scale * value * value;
                }
            }
        });
    });
}

}  // namespace nibble
