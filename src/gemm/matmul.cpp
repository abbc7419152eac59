#include "gemm/matmul.h"

#include <algorithm>
#include <array>

#include "gemm/convert.h"
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

    Tiling(int64_t rows, int64_t cols, int64_t depth) {
        // A tile of C of at most 128 x 1024 stays in the second-level cache until it is converted or summed.
        m = Cut::even(rows, 128, 16);
        n = Cut::even(cols, 1024, 64);
        k = {depth, depth};
        // A weight gradient: few tiles, each a long sum. The sum is cut instead; the parts are added in
        // order.
        if (m.count() * n.count() < 32 && depth >= 1024) {
            m = Cut::even(rows, 512, 16);
            n = Cut::even(cols, 256, 64);
            const int64_t wanted = divide_up(32, m.count() * n.count());
            k = Cut::even(depth, std::max<int64_t>(512, divide_up(depth, wanted)), 64);
        }
    }
};

// An operand as the tiles read it: element (row, l) at data + row * row_stride + l * k_stride.
struct View {
    const std::byte* data = nullptr;
    int64_t row_stride = 0, k_stride = 0;
    size_t element = 0;
    const void* at(int64_t row, int64_t l) const {
        return data + static_cast<size_t>(row * row_stride + l * k_stride) * element;
    }
};

class Source {
  public:
    Source(const Operand& operand, std::string_view name, DType compute)
        : operand_(operand),
          dtype_(compute == DType::bf16 ? bf16_product_dtype() : DType::f32),
          round_(compute == DType::bf16) {
        if (operand.quantized != nullptr) {
            require(!operand.is_transposed, "matmul: {} is quantised and cannot be read transposed", name);
            rows_ = operand.quantized->rows;
            k_ = stored_k_ = operand.quantized->padded_cols;
            return;
        }
        const Tensor& t = operand.plain;
        require(t.dtype == DType::f32 || t.dtype == DType::bf16, "matmul: {} is {}, neither F32 nor BF16",
                name, name_of(t.dtype));
        rows_ = operand.is_transposed ? t.cols() : t.rows();
        k_ = stored_k_ = operand.is_transposed ? t.rows() : t.cols();
    }

    int64_t rows() const { return rows_; }
    int64_t k() const { return k_; }
    DType dtype() const { return dtype_; }
    bool is_quantized() const { return operand_.quantized != nullptr; }
    bool is_transposed() const { return operand_.is_transposed; }
    // Columns that were padded on with zeros, and not rotated into others, need not be multiplied.
    void drop_padding() {
        if (is_quantized() && operand_.quantized->spec.rotation == Rotation::none)
            k_ = operand_.quantized->cols;
    }

    // True if the tiles cannot read the operand where it is.
    bool needs_copy() const {
        if (is_quantized()) return true;
        return operand_.plain.dtype != dtype_ || (round_ && dtype_ == DType::f32 && dtype_of() == DType::f32);
    }
    // Writes rows [begin, end) in the tiles' dtype, K-contiguous. Not for transposed operands.
    void copy_rows(int64_t begin, int64_t end, void* to) const {
        if (is_quantized()) {
            const QuantizedMatrix& q = *operand_.quantized;
            QuantizedMatrix some = q;
            some.rows = end - begin;
            some.codes = q.codes.slice(begin, end);
            some.scales = q.scales.slice(begin, end);
            some.mask = {};
            Arena none(0);
            Context context{none};
            dequantize_operand(context, some, {to, dtype_, Device::cpu, {end - begin, stored_k_}});
        } else {
            const Tensor rows = operand_.plain.reshaped({rows_, stored_k_}).slice(begin, end);
            convert(rows, {to, dtype_, Device::cpu, rows.shape}, round_);
        }
    }
    // The whole operand, copied into the arena where that is needed.
    View whole(Context& context) const {
        if (!needs_copy()) return view(operand_.plain.data);
        const Tensor copy = context.arena.allocate(dtype_, {rows_, stored_k_});
        if (!context.planning()) {
            if (is_quantized()) {
                dequantize_operand(context, *operand_.quantized, copy);
            } else {
                convert(operand_.plain.reshaped(copy.shape), copy, round_);
            }
        }
        return view(copy.data);
    }
    View view(const void* data) const {
        const auto* bytes = static_cast<const std::byte*>(data);
        if (is_transposed()) return {bytes, 1, rows_, size_of(dtype_)};
        return {bytes, stored_k_, 1, size_of(dtype_)};
    }
    // In double: 4/3 has no exact FP32 form, and products of scales are rounded once. (A matrix that was
    // quantised again has the product of 4/3 and of the first scale.)
    double tensor_scale() const {
        if (!is_quantized()) return 1.0;
        const double scale = *operand_.quantized->tensor_scale_ptr();
        constexpr double kLost = (4.0 / 3.0) / static_cast<double>(4.0f / 3.0f);
        return operand_.quantized->spec.scale == ScaleRule::three_quarters ? scale * kLost : scale;
    }
    size_t row_bytes() const { return static_cast<size_t>(stored_k_) * size_of(dtype_); }

  private:
    DType dtype_of() const { return operand_.plain.dtype; }

    Operand operand_;
    DType dtype_;
    bool round_;
    int64_t rows_ = 0, k_ = 0, stored_k_ = 0;
};

// The products of all tile shapes of one matmul: whole or tail, in each dimension.
class TileProducts {
  public:
    TileProducts(const Tiling& tiling, TileShape shape, bool pack) {
        for (int tail = 0; tail < 8; ++tail) {
            const auto size = [&](const Cut& cut, bool is_tail) {
                return is_tail ? cut.size(cut.count() - 1) : cut.tile;
            };
            shape.m = size(tiling.m, tail & 4);
            shape.n = size(tiling.n, tail & 2);
            shape.k = size(tiling.k, tail & 1);
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

void fill_zero(const Tensor& c) { std::fill_n(static_cast<std::byte*>(c.data), c.bytes(), std::byte{0}); }

}  // namespace

void matmul(Context& context, const Operand& operand_a, const Operand& operand_b, const Tensor& c,
            const MatmulOptions& options) {
    require(options.compute == DType::bf16 || options.compute == DType::f32,
            "matmul: compute is {}, neither BF16 nor F32", name_of(options.compute));
    Source a(operand_a, "A", options.compute), b(operand_b, "B", options.compute);
    if (a.k() != b.k()) {
        a.drop_padding();
        b.drop_padding();
    }
    require(a.k() == b.k(), "matmul: A has {} columns and B has {}", a.k(), b.k());
    require(c.dtype == DType::f32 || (c.dtype == DType::bf16 && !options.accumulate),
            "matmul: C is {}; it must be F32, or BF16 without accumulation", name_of(c.dtype));
    require(c.cols() == b.rows() && c.count() == a.rows() * b.rows(),
            "matmul: C is {}, but the product is [{}, {}]", c.shape.str(), a.rows(), b.rows());
    const int64_t rows = a.rows(), cols = b.rows(), depth = a.k();
    if (rows == 0 || cols == 0) return;
    if (depth == 0) {
        if (!options.accumulate && !context.planning()) fill_zero(c);
        return;
    }

    const ArenaScope scope(context.arena);
    const Tiling tiling(rows, cols, depth);
    const bool is_split = tiling.k.count() > 1;
    // A tile of rows is converted where it is used, unless several tasks would do so again.
    const bool copy_in_task = a.needs_copy() && !a.is_transposed() && !is_split;
    const View whole_a = copy_in_task ? View{} : a.whole(context);
    const View whole_b = b.whole(context);

    // Where the sums go: into C as they are, or first into scratch (of the tile, or for each part of a split
    // sum).
    const bool has_factor = a.is_quantized() || b.is_quantized() || options.alpha != 1.0f ||
                            options.alpha_row != nullptr || options.alpha_col != nullptr;
    const bool in_place = !is_split && !has_factor && (c.dtype == DType::f32 || a.dtype() == DType::bf16);
    const Tensor parts = context.arena.allocate(DType::f32, {is_split ? tiling.k.count() : 0, rows, cols});

    const View shape_a = copy_in_task ? a.view(nullptr) : whole_a;
    TileShape shape;
    shape.a_m = shape_a.row_stride;
    shape.a_k = shape_a.k_stride;
    shape.b_k = whole_b.k_stride;
    shape.b_n = whole_b.row_stride;
    shape.c_m = in_place || is_split ? cols : tiling.n.tile;
    shape.operands = a.dtype();
    shape.result = in_place ? c.dtype : DType::f32;
    shape.accumulate = in_place && options.accumulate;
    const bool pack = tiling.m.count() >= 4;
    const TileProducts products(tiling, shape, pack);

    const int64_t b_tiles = tiling.n.count() * tiling.k.count();
    const Tensor packed = context.arena.allocate(DType::u8, {pack ? b_tiles : 0, products.packed_bytes()});
    const auto packed_tile = [&](int64_t n, int64_t k) {
        return static_cast<std::byte*>(packed.data) + (n * tiling.k.count() + k) * products.packed_bytes();
    };
    if (pack && !context.planning()) {
        parallel_for(b_tiles, 1, [&](int64_t begin, int64_t end) {
            for (int64_t tile = begin; tile < end; ++tile) {
                const int64_t n = tile / tiling.k.count(), k = tile % tiling.k.count();
                products.at(false, tiling.n.is_tail(n), tiling.k.is_tail(k))
                    .pack(whole_b.at(tiling.n.begin(n), tiling.k.begin(k)), packed_tile(n, k));
            }
        });
    }

    const float alpha = context.planning()
                            ? 1.0f
                            : static_cast<float>(double{options.alpha} * a.tensor_scale() * b.tensor_scale());
    const auto factor_of = [&](int64_t row) {
        return options.alpha_row == nullptr ? alpha : alpha * options.alpha_row[row];
    };

    // A task is a tile of rows and of the sum, with all columns, or with one tile of columns where rows are
    // few.
    const int64_t groups = tiling.m.count() * tiling.k.count() >= 32 ? 1 : tiling.n.count();
    ScratchLayout layout;
    const size_t product_at = layout.add(products.scratch_bytes());
    const size_t sums_at = layout.add<float>(in_place || is_split ? 0 : tiling.m.tile * tiling.n.tile);
    const size_t rows_at = layout.add(copy_in_task ? static_cast<size_t>(tiling.m.tile) * a.row_bytes() : 0);
    const int64_t tasks = tiling.m.count() * tiling.k.count() * groups;
    parallel_tasks(context, tasks, layout.bytes(), [&](int64_t task, std::byte* scratch) {
        const int64_t group = task % groups, k = task / groups % tiling.k.count();
        const int64_t m = task / groups / tiling.k.count();
        const int64_t row = tiling.m.begin(m), row_count = tiling.m.size(m), depth_begin = tiling.k.begin(k);
        const void* tile_a = nullptr;
        if (copy_in_task) {
            a.copy_rows(row, row + row_count, scratch + rows_at);
            tile_a = scratch + rows_at;
        } else {
            tile_a = whole_a.at(row, depth_begin);
        }
        const int64_t n_begin = groups == 1 ? 0 : group, n_end = groups == 1 ? tiling.n.count() : group + 1;
        for (int64_t n = n_begin; n < n_end; ++n) {
            const int64_t col = tiling.n.begin(n), col_count = tiling.n.size(n);
            const TileProduct& product =
                products.at(tiling.m.is_tail(m), tiling.n.is_tail(n), tiling.k.is_tail(k));
            const void* tile_b = pack ? packed_tile(n, k) : whole_b.at(col, depth_begin);
            std::byte* result = scratch + sums_at;
            if (is_split) {
                result = reinterpret_cast<std::byte*>(parts.as<float>() + (k * rows + row) * cols + col);
            } else if (in_place) {
                result = static_cast<std::byte*>(c.data) +
                         static_cast<size_t>(row * cols + col) * size_of(c.dtype);
            }
            product.run(tile_a, tile_b, result, scratch + product_at);
            if (in_place || is_split) continue;
            for (int64_t i = 0; i < row_count; ++i) {
                FinishRow how;
                how.sums = reinterpret_cast<const float*>(result) + i * shape.c_m;
                how.factor = factor_of(row + i);
                how.cols = options.alpha_col == nullptr ? nullptr : options.alpha_col + col;
                how.accumulate = options.accumulate;
                finish_row_of(c, row + i, col, col_count, how);
            }
        }
    });
    if (!is_split || context.planning()) return;
    parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            FinishRow how;
            how.sums = parts.as<float>() + i * cols;
            how.parts = tiling.k.count();
            how.stride = rows * cols;
            how.factor = factor_of(i);
            how.cols = options.alpha_col;
            how.accumulate = options.accumulate;
            finish_row_of(c, i, 0, cols, how);
        }
    });
}

std::string matmul_description() { return tile_product_description(); }

}  // namespace nibble
