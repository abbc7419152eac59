#include "gemm/matmul.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/cuda.h"
#include "gemm/convert.h"
#include "gemm/cuda_forms.h"
#include "gemm/matmul_shape.h"
#include "gemm/row_kernels.h"
#include "gemm/tasks.h"
#include "gemm/tile_product.h"

namespace nibble {

namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// One dimension cut into tiles of equal length, but for the last.
struct Cut {
    int64_t length = 0, tile = 0;

    // About `wanted` long, as even as multiples of `unit` allow.
    static Cut even(int64_t length, int64_t wanted, int64_t unit) {
        const int64_t count = std::max<int64_t>(1, divide_up(length, wanted));
        return {length, std::min(length, round_up(divide_up(length, count), unit))};
    }
    int64_t count() const { return divide_up(length, tile); }
    int64_t begin(int64_t i) const { return i * tile; }
    int64_t size(int64_t i) const { return std::min(tile, length - i * tile); }
    bool is_tail(int64_t i) const { return size(i) != tile; }
};

// How a product is cut. A function of its shape alone: so are the results, whatever the number of threads.
struct Tiling {
    Cut m, n, k;
    Cut parts;  // of the sum, in tiles of k: each is summed by one task

    // Tiles of k begin at multiples of `unit`.
    Tiling(int64_t rows, int64_t cols, int64_t depth, int64_t unit) {
        constexpr int64_t kPanel = 1 << 19;  // elements of B, or of a sum, that a core's cache holds
        k = {depth, depth};
        parts = {1, 1};
        if (depth >= 2048 && rows * cols <= kPanel) {
            // A weight gradient: few results, each a long sum. The sum is cut; its parts are added in order.
            n = {cols, cols};
            m = Cut::even(rows, std::min<int64_t>(rows <= 1024 ? 1024 : 512, kPanel / 2 / cols), 16);
            k = Cut::even(depth, 512, unit);
            parts = Cut::even(k.count(), std::max<int64_t>(2, divide_up(k.count(), 16)), 1);
            return;
        }
        // All columns, if B fits; rows so many that the tile of C stays in the cache until it is converted.
        n = Cut::even(cols, cols * depth <= kPanel ? cols : std::max<int64_t>(256, kPanel / 2 / depth), 64);
        m = Cut::even(rows, std::clamp<int64_t>((1 << 17) / n.tile, 16, depth < 1024 ? 128 : 256), 16);
        if (m.count() < 8) n = Cut::even(cols, std::min<int64_t>(n.tile, 256), 64);
    }
    bool is_split() const { return parts.count() > 1; }
};

// A tile of an operand in the products' dtype: element (row, l) at data[row * row_stride + l * k_stride].
struct Strides {
    int64_t row = 0, k = 0;
};

void convert_some(const Tensor& from, int64_t at, int64_t count, DType dtype, bool round, std::byte* to) {
    const size_t offset = static_cast<size_t>(at) * size_of(from.dtype);
    convert({static_cast<std::byte*>(from.data) + offset, from.dtype, Device::cpu, {count}},
            {to, dtype, Device::cpu, {count}}, round);
}

class Source {
  public:
    // Multiplied in `dtype`; plain values are first rounded to BF16 if `round`.
    Source(const Operand& operand, DType dtype, bool round)
        : operand_(operand),
          dtype_(dtype),
          round_(round),
          rows_(extent_of(operand).rows),
          stored_k_(extent_of(operand).k) {}

    DType dtype() const { return dtype_; }
    bool is_quantized() const { return operand_.quantized != nullptr; }
    bool has_scale() const { return scale_of(operand_).shape.rank() > 0; }
    double scale() const {
        return has_scale() ? *scale_of(operand_).as<float>() * lost_of_scale(operand_) : 1.0;
    }

    // Tiles in the right dtype are read in place, but for pieces of rows, on which the library is slow. Of
    // the others each task makes a copy.
    void cut(const Cut& rows, const Cut& k) {
        in_place_ = (operand_.is_transposed || k.count() == 1) && !needs_conversion();
        tile_bytes_ = in_place_ ? 0 : static_cast<size_t>(rows.tile * padded(k.tile)) * size_of(dtype_);
        // A cut row of a quantised matrix is gathered before it is decoded.
        gather_bytes_ = 0;
        if (is_quantized() && k.count() > 1) {
            for_each_part(*operand_.quantized, [&](const Tensor& part) {
                gather_bytes_ += static_cast<size_t>(rows.tile * padded(k.tile) * part.cols() / stored_k_) *
                                 size_of(part.dtype);
            });
        }
    }
    size_t tile_bytes() const { return tile_bytes_ + gather_bytes_; }
    Strides strides(int64_t tile_rows, int64_t tile_k) const {
        if (operand_.is_transposed) return {1, in_place_ ? rows_ : tile_rows};
        return {in_place_ ? stored_k_ : padded(tile_k), 1};
    }
    const void* tile(int64_t row, int64_t rows, int64_t begin, int64_t k, std::byte* scratch) const {
        if (in_place_) {
            const int64_t at = operand_.is_transposed ? begin * rows_ + row : row * stored_k_ + begin;
            return static_cast<const std::byte*>(operand_.plain.data) +
                   static_cast<size_t>(at) * size_of(dtype_);
        }
        if (is_quantized()) {
            decode(row, rows, begin, k, scratch);
        } else if (operand_.is_transposed) {
            for (int64_t l = 0; l < k; ++l) {
                convert_some(operand_.plain, (begin + l) * rows_ + row, rows, dtype_, round_,
                             scratch + static_cast<size_t>(l * rows) * size_of(dtype_));
            }
        } else {
            for (int64_t i = 0; i < rows; ++i) {
                convert_some(operand_.plain, (row + i) * stored_k_ + begin, k, dtype_, round_,
                             scratch + static_cast<size_t>(i * k) * size_of(dtype_));
            }
        }
        return scratch;
    }

    // The whole operand in the products' dtype, copied into the arena where that is needed.
    const std::byte* whole(Context& context) const {
        const std::byte* data = static_cast<const std::byte*>(operand_.plain.data);
        if (!needs_conversion()) return data;
        const Tensor copy = context.arena.allocate(dtype_, {rows_, stored_k_});
        if (context.planning()) return nullptr;
        if (is_quantized()) {
            dequantize_operand(context, *operand_.quantized, copy);
        } else {
            convert(operand_.plain, copy.reshaped(operand_.plain.shape), round_);
        }
        return static_cast<const std::byte*>(copy.data);
    }
    Strides whole_strides() const {
        return operand_.is_transposed ? Strides{1, rows_} : Strides{stored_k_, 1};
    }

  private:
    bool needs_conversion() const {
        if (is_quantized() || operand_.plain.dtype != dtype_) return true;
        return round_ && dtype_ == DType::f32;
    }
    int64_t padded(int64_t k) const {
        if (!is_quantized()) return k;
        const QuantSpec& spec = operand_.quantized->spec;
        return round_up(k, spec.has_fp32_groups() ? spec.fp32_block_size() : spec.block_size());
    }
    // The tensors that hold the columns of a quantised matrix; those that need alignment first.
    template <typename Matrix, typename Body>
    static void for_each_part(Matrix& q, Body&& body) {
        if (q.spec.has_fp32_groups()) body(q.fp32_scales);
        body(q.codes);
        if (q.spec.has_scale_bytes()) body(q.scales);
    }
    void decode(int64_t row, int64_t rows, int64_t begin, int64_t k, std::byte* to) const {
        const QuantizedMatrix& q = *operand_.quantized;
        const int64_t width = padded(k);
        QuantizedMatrix part = q;
        part.rows = rows;
        part.cols = part.padded_cols = width;
        part.mask = {};
        std::byte* gathered = to + tile_bytes_;
        for_each_part(part, [&](Tensor& of_part) {
            const Tensor all = of_part.slice(row, row + rows);
            of_part = all;
            if (width == stored_k_) return;
            const int64_t count = width * all.cols() / stored_k_;
            const size_t bytes = static_cast<size_t>(count) * size_of(all.dtype);
            const auto* first = static_cast<const std::byte*>(all.data) +
                                static_cast<size_t>(begin * all.cols() / stored_k_) * size_of(all.dtype);
            for (int64_t i = 0; i < rows; ++i) {
                std::memcpy(gathered + static_cast<size_t>(i) * bytes,
                            first + static_cast<size_t>(i * all.cols()) * size_of(all.dtype), bytes);
            }
            of_part = {gathered, all.dtype, Device::cpu, {rows, count}};
            gathered += static_cast<size_t>(rows) * bytes;
        });
        Arena none(0);
        Context context{none};
        dequantize_operand(context, part, {to, dtype_, Device::cpu, {rows, width}});
    }

    Operand operand_;
    DType dtype_;
    bool round_;
    int64_t rows_, stored_k_;
    bool in_place_ = false;
    size_t tile_bytes_ = 0, gather_bytes_ = 0;
};

// The products of all tile shapes of one matmul: whole or tail, in each dimension.
class TileProducts {
  public:
    template <typename ShapeOf>
    TileProducts(const Tiling& tiling, bool pack, ShapeOf&& shape_of) {
        for (int tail = 0; tail < 8; ++tail) {
            const auto size = [&](const Cut& cut, bool is_tail) {
                return is_tail ? cut.size(cut.count() - 1) : cut.tile;
            };
            const TileShape shape =
                shape_of(size(tiling.m, tail & 4), size(tiling.n, tail & 2), size(tiling.k, tail & 1));
            if (!pack) {
                products_[tail] = &TileProduct::get(shape);
            } else {  // tails of rows read the layout of whole tiles
                products_[tail] = &TileProduct::get_packed(shape, tail & 4 ? products_[tail & 3] : nullptr);
                packed_ =
                    std::max(packed_, round_up(static_cast<int64_t>(products_[tail]->packed_bytes()), 64));
            }
            scratch_ = std::max(scratch_, products_[tail]->scratch_bytes());
        }
    }
    const TileProduct& at(bool m_tail, bool n_tail, bool k_tail) const {
        return *products_[(m_tail ? 4 : 0) + (n_tail ? 2 : 0) + (k_tail ? 1 : 0)];
    }
    size_t scratch_bytes() const { return scratch_; }
    int64_t packed_bytes() const { return packed_; }  // of one tile of B

  private:
    std::array<const TileProduct*, 8> products_{};
    size_t scratch_ = 0;
    int64_t packed_ = 0;
};

void finish_row_of(const Tensor& c, int64_t row, int64_t col, int64_t count, const FinishRow& how) {
    const int64_t at = row * c.cols() + col;
    if (c.dtype == DType::f32) {
        finish_row(how, static_cast<float*>(c.data) + at, count);
    } else {
        finish_row(how, static_cast<Bf16*>(c.data) + at, count);
    }
}

}  // namespace

void matmul(Context& context, const Operand& operand_a, const Operand& operand_b, const Tensor& c,
            const MatmulOptions& options) {
    const MatmulShape sizes = shape_of_matmul(operand_a, operand_b, c, options);
    const int64_t rows = sizes.m, cols = sizes.n, depth = sizes.k;
    if (rows == 0 || cols == 0) return;
    if (depth == 0) {
        if (!options.accumulate && !context.planning()) fill_zero(context, c);
        return;
    }
    NIBBLE_ON_CUDA(context, matmul(context, operand_a, operand_b, c, options));

    const DType dtype = sizes.operands == DType::bf16 ? bf16_product_dtype() : DType::f32;
    Source a(operand_a, dtype, sizes.rounds), b(operand_b, dtype, sizes.rounds);
    const bool has_fp32_groups = has_fp32_values(operand_a) || has_fp32_values(operand_b);
    const ArenaScope scope(context.arena);
    const Tiling tiling(rows, cols, depth, has_fp32_groups ? 128 : 64);
    a.cut(tiling.m, tiling.k);
    b.cut(tiling.n, tiling.k);
    // Where the sums go: into C as they are; or first into scratch of the tile, or of each part of a cut sum.
    // By what is given, not by its value: a dry run does not know that.
    const bool has_factor = a.has_scale() || b.has_scale() || options.alpha.has_value() ||
                            options.alpha_row != nullptr || options.alpha_col != nullptr;
    const bool in_place = !tiling.is_split() && tiling.n.count() == 1 && !has_factor &&
                          (c.dtype == DType::f32 || a.dtype() == DType::bf16);
    const Tensor parts =
        context.arena.allocate(DType::f32, {tiling.is_split() ? tiling.parts.count() : 0, rows, cols});

    const bool pack = tiling.m.count() >= 4 && !tiling.is_split();  // B, once for all tiles of rows
    const auto products_that = [&](bool accumulate) {
        return TileProducts(tiling, pack, [&](int64_t m, int64_t n, int64_t k) {
            const Strides stride_a = a.strides(m, k), stride_b = pack ? b.whole_strides() : b.strides(n, k);
            TileShape shape{m, n, k, stride_a.row, stride_a.k, stride_b.k, stride_b.row, in_place ? cols : n};
            if (tiling.is_split()) shape.c_m = cols;
            shape.operands = a.dtype();
            shape.result = in_place ? c.dtype : DType::f32;
            shape.accumulate = accumulate;
            return shape;
        });
    };
    const TileProducts products = products_that(in_place && options.accumulate);
    const TileProducts adding = tiling.is_split() ? products_that(true) : products;
    const Tensor packed =
        context.arena.allocate(DType::u8, {pack ? tiling.n.count() : 0, products.packed_bytes()});
    const auto packed_tile = [&](int64_t n) {
        return static_cast<std::byte*>(packed.data) + n * products.packed_bytes();
    };
    if (pack) {
        const ArenaScope copy(context.arena);
        const std::byte* whole = b.whole(context);
        const size_t row_bytes = static_cast<size_t>(b.whole_strides().row) * size_of(b.dtype());
        parallel_for(context.planning() ? 0 : tiling.n.count(), 1, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                const std::byte* tile = whole + static_cast<size_t>(tiling.n.begin(n)) * row_bytes;
                products.at(false, tiling.n.is_tail(n), false).pack(tile, packed_tile(n));
            }
        });
    }

    const float alpha =
        context.planning() ? 1.0f
                           : static_cast<float>(double{options.alpha.value_or(1.0f)} * a.scale() * b.scale());
    const auto* const row_scales = static_cast<const float*>(row_scales_of(operand_a).data);
    const Tensor col_scales = row_scales_of(operand_b);
    const auto factor_of = [&](int64_t row) {
        const float of_row = options.alpha_row == nullptr ? alpha : alpha * options.alpha_row[row];
        return row_scales == nullptr ? of_row : of_row * row_scales[row];
    };
    const bool has_col_scales = col_scales.shape.rank() > 0;
    const float* col_factors = has_col_scales ? col_scales.as<float>() : options.alpha_col;
    if (has_col_scales && options.alpha_col != nullptr) {
        const Tensor both = context.arena.allocate(DType::f32, {cols});
        for (int64_t i = 0; i < cols && !context.planning(); ++i) {
            both.as<float>()[i] = col_scales.as<float>()[i] * options.alpha_col[i];
        }
        col_factors = both.as<float>();
    }

    // A task is a tile of rows and a part of the sum, with all columns, or with one tile of columns where
    // rows are few.
    const int64_t groups = tiling.m.count() * tiling.parts.count() >= 32 ? 1 : tiling.n.count();
    ScratchLayout layout;
    const size_t product_at = layout.add(std::max(products.scratch_bytes(), adding.scratch_bytes()));
    const size_t sums_at =
        layout.add<float>(in_place || tiling.is_split() ? 0 : tiling.m.tile * tiling.n.tile);
    const size_t a_at = layout.add(a.tile_bytes()), b_at = layout.add(pack ? 0 : b.tile_bytes());
    const int64_t tasks = tiling.m.count() * tiling.parts.count() * groups;
    parallel_tasks(context, tasks, layout.bytes(), [&](int64_t task, std::byte* scratch) {
        const int64_t group = task % groups, part = task / groups % tiling.parts.count();
        const int64_t m = task / groups / tiling.parts.count();
        const int64_t row = tiling.m.begin(m), row_count = tiling.m.size(m);
        const int64_t n_begin = groups == 1 ? 0 : group, n_end = groups == 1 ? tiling.n.count() : group + 1;
        const int64_t k_begin = tiling.parts.begin(part), k_end = k_begin + tiling.parts.size(part);
        for (int64_t k = k_begin; k < k_end; ++k) {
            const int64_t depth_begin = tiling.k.begin(k), depth_count = tiling.k.size(k);
            const void* tile_a = a.tile(row, row_count, depth_begin, depth_count, scratch + a_at);
            for (int64_t n = n_begin; n < n_end; ++n) {
                const int64_t col = tiling.n.begin(n), col_count = tiling.n.size(n);
                const TileProduct& product =
                    (k == k_begin ? products : adding)
                        .at(tiling.m.is_tail(m), tiling.n.is_tail(n), tiling.k.is_tail(k));
                const void* tile_b =
                    pack ? packed_tile(n) : b.tile(col, col_count, depth_begin, depth_count, scratch + b_at);
                std::byte* result = scratch + sums_at;
                if (tiling.is_split()) {
                    result =
                        reinterpret_cast<std::byte*>(parts.as<float>() + (part * rows + row) * cols + col);
                } else if (in_place) {
                    const auto offset = static_cast<size_t>(row * cols) * size_of(c.dtype);
                    result = static_cast<std::byte*>(c.data) + offset;
                }
                product.run(tile_a, tile_b, result, scratch + product_at);
                if (in_place || tiling.is_split()) continue;
                for (int64_t i = 0; i < row_count; ++i) {
                    FinishRow how;
                    how.sums = reinterpret_cast<const float*>(result) + i * col_count;
                    how.factor = factor_of(row + i);
                    how.cols = col_factors == nullptr ? nullptr : col_factors + col;
                    how.accumulate = options.accumulate;
                    finish_row_of(c, row + i, col, col_count, how);
                }
            }
        }
    });
    if (!tiling.is_split() || context.planning()) return;
    parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            FinishRow how;
            how.sums = parts.as<float>() + i * cols;
            how.parts = tiling.parts.count();
            how.stride = rows * cols;
            how.factor = factor_of(i);
            how.cols = col_factors;
            how.accumulate = options.accumulate;
            finish_row_of(c, i, 0, cols, how);
        }
    });
}

bool has_fp8_products(Device device) {
    if constexpr (kHasCuda) {
        if (device == Device::cuda) return cuda::has_fp8_products();
    }
    return false;
}

std::string matmul_description(Device device) {
    if constexpr (kHasCuda) {
        if (device == Device::cuda) return cuda::matmul_description();
    }
    return tile_product_description();
}

}  // namespace nibble
