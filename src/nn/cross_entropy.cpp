// The logits of a few rows at a time: product, softmax, loss and the gradient of the logits while they are in
// the cache, then the gradient of x. The gradients of a larger chunk of logits are kept for that of the
// weight.
#include "nn/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/cuda.h"
#include "gemm/convert.h"
#include "gemm/matmul.h"
#include "gemm/row_kernels.h"
#include "gemm/tasks.h"
#include "gemm/tile_product.h"
#include "nn/cross_entropy_rows.h"
#include "nn/cuda_forms.h"
#include "nn/element.h"
#include "quant/quant.h"

namespace nibble {

namespace {

// What a product reads of x or of the weight: `scale` times `values`.
struct HeadOperand {
    Tensor values;
    float scale = 1.0f;
};

// The elements of fp8:e4m3, exact in BF16.
HeadOperand in_fp8(Context& context, const Tensor& x, std::string_view name) {
    static const QuantSpec spec = parse_spec(kHeadSpec);
    const Tensor values = context.arena.allocate(bf16_product_dtype(), {x.rows(), x.cols()});
    const ArenaScope scope(context.arena);
    QuantizedMatrix q = allocate_quantized(context.arena, spec, x.rows(), x.cols());
    const bool is_padded = q.padded_cols != x.cols();
    const Tensor decoded = is_padded ? context.arena.allocate(values.dtype, {q.rows, q.padded_cols}) : values;
    quantize(context, spec, x, {}, q, {.name = name});
    dequantize_operand(context, q, decoded);
    if (context.planning()) return {values};
    for (int64_t r = 0; r < x.rows() && is_padded; ++r) {
        std::memcpy(values.slice(r, r + 1).data, decoded.slice(r, r + 1).data, values.bytes() / x.rows());
    }
    return {values, *q.tensor_scale_ptr()};
}

// Sizes and dtypes of one call.
struct Head {
    int64_t rows, cols, vocabulary;
    DType operands;  // of the products
    bool rounds;     // values are rounded to BF16, but kept as F32 (a CPU without BF16 products)
    int64_t tile;    // rows whose logits exist at a time
    int64_t chunk;   // rows whose gradients of logits exist at a time

    Head(const Tensor& x, const Tensor& weight, HeadOperands in)
        : rows(x.rows()), cols(x.cols()), vocabulary(weight.rows()) {
        const bool narrow = x.dtype == DType::bf16 || in == HeadOperands::fp8;
        operands = narrow ? bf16_product_dtype() : DType::f32;
        rounds = narrow && operands == DType::f32;
        // About 512 KiB of logits a thread, and 16 MiB of gradients; at least 128 rows of a weight's
        // gradient.
        tile = std::min(rows, std::clamp<int64_t>((1 << 17) / vocabulary / 16 * 16, 16, 64));
        const int64_t row_bytes = vocabulary * static_cast<int64_t>(size_of(operands));
        chunk = std::min(rows, std::max<int64_t>(128, (16 << 20) / row_bytes / tile * tile));
        if (chunk > tile) chunk = chunk / tile * tile;
    }

    size_t operand_bytes(int64_t count) const { return static_cast<size_t>(count) * size_of(operands); }
};

// A product of `tile` rows with the same packed B for every tile, and of the rows that are left.
struct RowProduct {
    const TileProduct *whole, *last;

    RowProduct(TileShape shape, int64_t rows, int64_t tile) {
        shape.m = tile;
        whole = &TileProduct::get_packed(shape);
        shape.m = rows % tile == 0 ? tile : rows % tile;
        last = shape.m == tile ? whole : &TileProduct::get_packed(shape, whole);
    }
    const TileProduct& of(int64_t rows, int64_t tile) const { return rows == tile ? *whole : *last; }
    size_t scratch_bytes() const { return std::max(whole->scratch_bytes(), last->scratch_bytes()); }
};

TileShape shape_of(const Head& head, int64_t n, int64_t k) {
    TileShape shape;
    shape.n = n;
    shape.k = k;
    shape.a_m = k;
    shape.a_k = 1;
    shape.c_m = n;
    shape.operands = head.operands;
    return shape;
}

Tensor pack(Context& context, const RowProduct& product, const Tensor& weight) {
    const Tensor packed =
        context.arena.allocate(DType::u8, {static_cast<int64_t>(product.whole->packed_bytes())});
    if (!context.planning()) product.whole->pack(weight.data, packed.data);
    return packed;
}

void check_targets(const Tensor& targets, int64_t vocabulary) {
    for (int64_t t = 0; t < targets.count(); ++t) {
        const int32_t target = targets.as<int32_t>()[t];
        require(target == kIgnoredTarget || (0 <= target && target < vocabulary),
                "target {} at position {} is not in the vocabulary of {}", target, t, vocabulary);
    }
}

void check_arguments(const Tensor& x, const Tensor& weight, const Tensor& targets,
                     const HeadOptions& options) {
    require_activations({&x}, "head_loss");
    require(options.logits == DType::f32 || (options.logits == DType::bf16 && x.dtype == DType::bf16),
            "head_loss: logits are F32, or BF16 where x is, not {} of {}", name_of(options.logits),
            name_of(x.dtype));
    require(weight.cols() == x.cols() && x.rows() > 0 && weight.rows() > 0,
            "head_loss: x {} and weight {} do not fit", x.shape.str(), weight.shape.str());
    require(targets.count() == x.rows(), "{} targets do not fit {} rows", targets.count(), x.rows());
}

// The loss, and its gradients where dx has data (in a planning pass: where `backward`).
HeadLoss run(Context& context, const Tensor& x, const Tensor& weight, const Tensor& targets,
             const Tensor& loss_rows, const HeadOptions& options, bool backward, float scale,
             const Tensor& dx, const Tensor& dweight) {
    const HeadOperands in = options.operands;
    const Head head(x, weight, in);
    const ArenaScope scope(context.arena);
    const Tensor losses = context.arena.allocate(DType::f32, {head.rows});
    HeadOperand a = {x}, b = {weight};
    if (in == HeadOperands::fp8) {
        a = in_fp8(context, x, "input of lm_head");
        b = in_fp8(context, weight, "weight of lm_head");
    } else if (x.dtype == DType::bf16) {
        b.values = context.arena.allocate(head.operands, weight.shape);
        if (!context.planning()) convert(weight, b.values, true);
    }
    TileShape logits_shape = shape_of(head, head.vocabulary, head.cols);
    logits_shape.b_k = 1;
    logits_shape.b_n = head.cols;
    TileShape dx_shape = shape_of(head, head.cols, head.vocabulary);
    dx_shape.b_k = head.cols;
    dx_shape.b_n = 1;
    const RowProduct logits_product(logits_shape, head.rows, head.tile);
    const Tensor packed = pack(context, logits_product, b.values);
    const RowProduct dx_product(backward ? dx_shape : logits_shape, head.rows, head.tile);
    const Tensor dx_packed = backward ? pack(context, dx_product, b.values) : Tensor{};
    const Tensor gradients =
        context.arena.allocate(head.operands, {backward ? head.chunk : 0, head.vocabulary});
    if (!context.planning()) check_targets(targets, head.vocabulary);

    ScratchLayout layout;
    const size_t product_at =
        layout.add(std::max(logits_product.scratch_bytes(), dx_product.scratch_bytes()));
    const size_t logits_at = layout.add<float>(head.tile * head.vocabulary);
    const bool widens = a.values.dtype != head.operands;
    const size_t x_at = layout.add(widens ? head.operand_bytes(head.tile * head.cols) : 0);
    const size_t dx_at = layout.add<float>(head.tile * head.cols);
    // What the gradients of the logits that are kept lack.
    const float lacks = in == HeadOperands::fp8 ? scale / kLargestGradient : 1.0f;
    const bool rounds_logits = options.logits == DType::bf16;
    const float factor = a.scale * b.scale;
    const LossRow how{.factor = rounds_logits ? 1.0f : factor,
                      .scale = in == HeadOperands::fp8 ? kLargestGradient : scale,
                      .is_bf16 = head.operands == DType::bf16,
                      .rounding = in == HeadOperands::fp8 ? LossRow::Rounding::e5m2
                                  : head.rounds           ? LossRow::Rounding::bf16
                                                          : LossRow::Rounding::none};
    const auto task = [&](int64_t begin, int64_t count, std::byte* gradient, std::byte* scratch) {
        auto* logits = reinterpret_cast<float*>(scratch + logits_at);
        const Tensor tile = a.values.reshaped({head.rows, head.cols}).slice(begin, begin + count);
        const void* tile_x = tile.data;
        if (widens) {
            to_f32(tile.as<Bf16>(), reinterpret_cast<float*>(scratch + x_at), tile.count());
            tile_x = scratch + x_at;
        }
        logits_product.of(count, head.tile).run(tile_x, packed.data, logits, scratch + product_at);
        if (rounds_logits) {
            finish_row({.sums = logits, .factor = factor}, logits, count * head.vocabulary);
            round_to_bf16(logits, logits, count * head.vocabulary);
        }
        for (int64_t i = 0; i < count; ++i) {
            const int32_t target = targets.as<int32_t>()[begin + i];
            std::byte* row = backward ? gradient + head.operand_bytes(i * head.vocabulary) : nullptr;
            float& loss = losses.as<float>()[begin + i];
            if (target != kIgnoredTarget) {
                loss = loss_row(how, logits + i * head.vocabulary, head.vocabulary, target, row);
            } else {
                loss = 0.0f;
                if (backward) std::memset(row, 0, head.operand_bytes(head.vocabulary));
            }
        }
        if (!backward) return;
        auto* sums = reinterpret_cast<float*>(scratch + dx_at);
        dx_product.of(count, head.tile).run(gradient, dx_packed.data, sums, scratch + product_at);
        const FinishRow all = {.sums = sums, .factor = lacks * b.scale};
        with_elements(dx, [&](auto* to) { finish_row(all, to + begin * head.cols, count * head.cols); });
    };
    for (int64_t begin = 0; begin < head.rows; begin += head.chunk) {
        const int64_t count = std::min(head.chunk, head.rows - begin);
        parallel_tasks(
            context, (count + head.tile - 1) / head.tile, layout.bytes(), [&](int64_t i, std::byte* scratch) {
                const int64_t at = i * head.tile;
                task(begin + at, std::min(head.tile, count - at),
                     static_cast<std::byte*>(gradients.data) + head.operand_bytes(at * head.vocabulary),
                     scratch);
            });
        if (!backward) continue;
        MatmulOptions add;
        add.accumulate = true;
        add.compute = in == HeadOperands::fp8 ? DType::bf16 : x.dtype;
        if (in == HeadOperands::fp8) add.alpha = lacks * a.scale;
        const Tensor chunk_x = a.values.reshaped({head.rows, head.cols}).slice(begin, begin + count);
        matmul(context, Operand::transposed(gradients.slice(0, count)), Operand::transposed(chunk_x), dweight,
               add);
    }

    HeadLoss result;
    if (context.planning()) return result;
    for (int64_t t = 0; t < head.rows; ++t) {
        if (targets.as<int32_t>()[t] == kIgnoredTarget) continue;
        result.loss_sum += double{losses.as<float>()[t]};
        ++result.count;
    }
    if (loss_rows.data != nullptr) std::copy_n(losses.as<float>(), head.rows, loss_rows.as<float>());
    return result;
}

}  // namespace

HeadLoss head_loss(Context& context, const Tensor& x, const Tensor& weight, const Tensor& targets,
                   const Tensor& loss_rows, const HeadOptions& options) {
    check_arguments(x, weight, targets, options);
    NIBBLE_ON_CUDA(context, head_loss(context, x, weight, targets, loss_rows, options));
    return run(context, x, weight, targets, loss_rows, options, false, 1.0f, {}, {});
}

HeadLoss read_loss(const Context& context, const Tensor& totals) {
    if (context.planning()) return {};
    std::vector<double> here(2);
    copy(context, totals, view_of(here, totals.shape));
    return {here[0], static_cast<int64_t>(here[1])};
}

HeadLoss head_loss_backward(Context& context, const Tensor& x, const Tensor& weight, const Tensor& targets,
                            float scale, const Tensor& dx, const Tensor& dweight,
                            const HeadOptions& options) {
    const ArenaScope scope(context.arena);
    const Tensor totals = context.arena.allocate(DType::f64, {2});
    if (!context.planning()) fill_zero(context, totals);
    head_loss_backward(context, x, weight, targets, scale, dx, dweight, totals, options);
    return read_loss(context, totals);
}

void head_loss_backward(Context& context, const Tensor& x, const Tensor& weight, const Tensor& targets,
                        float scale, const Tensor& dx, const Tensor& dweight, const Tensor& totals,
                        const HeadOptions& options) {
    require_activations({&x, &dx}, "head_loss_backward");
    require(dx.count() == x.count() && dweight.count() == weight.count(),
            "head_loss_backward: dx {} and dweight {} do not fit x {} and weight {}", dx.shape.str(),
            dweight.shape.str(), x.shape.str(), weight.shape.str());
    check_arguments(x, weight, targets, options);
    NIBBLE_ON_CUDA(context,
                   head_loss_backward(context, x, weight, targets, scale, dx, dweight, totals, options));
    const HeadLoss loss = run(context, x, weight, targets, {}, options, true, scale, dx, dweight);
    if (context.planning()) return;
    totals.as<double>()[0] += loss.loss_sum;
    totals.as<double>()[1] += static_cast<double>(loss.count);
}

void head_logits(Context& context, const Tensor& x, const Tensor& weight, const Tensor& logits,
                 const HeadOptions& options) {
    NIBBLE_ON_CUDA(context, head_logits(context, x, weight, logits, options));
    MatmulOptions product;
    product.compute = x.dtype;
    if (options.operands == HeadOperands::plain) return matmul(context, x, weight, logits, product);
    const ArenaScope scope(context.arena);
    const HeadOperand a = in_fp8(context, x, "input of lm_head");
    const HeadOperand b = in_fp8(context, weight, "weight of lm_head");
    product.compute = DType::bf16;
    product.alpha = a.scale * b.scale;
    matmul(context, a.values, b.values, logits, product);
}

}  // namespace nibble
