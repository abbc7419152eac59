#include "nn/quant_linear.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "core/choice.h"
#include "core/cuda.h"
#include "nn/dge.h"
#include "nn/outliers.h"
#include "nn/quant_linear_parts.h"
#include "quant/fp8_codes.h"
#include "quant/quantize_both.h"
#include "quant/round_towards.h"

namespace nibble {

namespace {

// Places in kOperandNames; the two operands of a product are neighbours.
enum Place : size_t { kFpropX, kFpropW, kDgradDy, kDgradW, kWgradDy, kWgradX };

Gemm gemm_of(Place place) { return static_cast<Gemm>(place / 2); }
Place other_side(Place place) { return static_cast<Place>(place ^ 1); }
// What dgrad.w and wgrad.x can be made from.
Place forward_of(Place place) { return place == kDgradW ? kFpropW : kFpropX; }

// Quantised here, as bytes of its own. A same-bits operand is the forward's, read along the other dimension.
bool has_bytes(const OperandSpec& operand) {
    return operand.spec.is_quantized() && operand.source != Source::same_bits;
}

bool has_delayed_scales(const Recipe& recipe) {
    return std::ranges::any_of(kOperandNames, [&](std::string_view name) {
        const OperandSpec& o = operand(recipe, name);
        return has_bytes(o) && o.spec.tensor == TensorScale::delayed;
    });
}

// How often what is random about an operand is drawn: once for a step, or in each micro-step.
enum class Draw : uint8_t { once, each_call };

// The weight's dgrad copy serves a whole step unless its rotation is drawn afresh in each micro-step.
bool is_fresh_each_call(const QuantSpec& spec) { return spec.has_signs() && spec.signs == Signs::call; }

// One side of a product as it is multiplied: quantised, or plain with the tensor scale that its values lack.
// Of both, plain is what an observer is shown.
struct Factor {
    std::optional<QuantizedMatrix> quantized = {};
    std::optional<FoldedMatrix> folded = {};  // of it, for a product in FP8
    Tensor plain = {};
    bool is_transposed = false;  // plain is stored [contraction, rows]
    Tensor scale = {};           // F32 [1]; no shape: 1

    int64_t rows() const { return quantized ? quantized->rows : is_transposed ? plain.cols() : plain.rows(); }
    int64_t contraction() const {
        return quantized ? quantized->padded_cols : is_transposed ? plain.rows() : plain.cols();
    }
    Operand operand() const {
        if (quantized) return *quantized;
        Operand result = is_transposed ? Operand::transposed(plain) : Operand(plain);
        result.scale = scale;
        return result;
    }
};

}  // namespace

bool is_replayable(const Recipe& recipe) {
    for (size_t place = 0; place < kOperandNames.size(); ++place) {
        const QuantSpec& spec = operand(recipe, kOperandNames[place]).spec;
        const Gemm gemm = gemm_of(static_cast<Place>(place));
        const bool is_undone = gemm == Gemm::fprop || spec.rotates_rows();
        if (is_undone && signs_depend(spec, gemm).on_step) return false;
    }
    return true;
}

// One call of a layer: what its steps share.
class QuantLinear::Execution {
  public:
    Execution(const QuantLinear& layer, Context& context, AmaxHistory* history, Use use = Use::train)
        : layer_(layer), recipe_(*layer.recipe_), context_(context), history_(history), use_(use) {}

    // The amax of what an operand is made of, if it is not null and no rotation changes it: the quantiser
    // need not find it.
    void know_amax(Place place, const float* amax) {
        if (at(place).spec.rotation == Rotation::none) known_amax_[place] = amax;
    }
    // Whether two operands are made of one read of x, along its rows and along its columns; with nobody
    // looking.
    bool quantizes_both(Place rows, Place columns, const Tensor& x) const {
        return quantizes(rows) && quantizes(columns) && !is_of_forward(columns) && !layer_.observer_ &&
               can_quantize_both(context_, x.dtype, at(rows).spec, at(columns).spec);
    }
    void quantize_both_into(Place place_of_rows, QuantizedMatrix& rows, Place place_of_columns,
                            QuantizedMatrix& columns, const Tensor& x) const {
        const ArenaScope scope(context_.arena);
        const auto operand_of_both = [&](Place place, QuantizedMatrix& out) {
            return OperandOfBoth{&out, key(place, Draw::each_call), quantize_options(place, nullptr)};
        };
        const OperandOfBoth of_rows = operand_of_both(place_of_rows, rows),
                            of_columns = operand_of_both(place_of_columns, columns);
        quantize_both(context_, x, of_rows, of_columns);
        if (of_rows.options.amax != nullptr) record(place_of_rows, of_rows.options.amax);
        if (of_columns.options.amax != nullptr) record(place_of_columns, of_columns.options.amax);
    }
    // Of dy, the first that of dgrad. They exist at once.
    std::pair<QuantizedMatrix, QuantizedMatrix> quantize_both_of_gradient(const Tensor& dy) const {
        QuantizedMatrix of_dgrad = allocate(kDgradDy, dy.rows(), dy.cols()),
                        of_wgrad = allocate(kWgradDy, dy.cols(), dy.rows());
        quantize_both_into(kDgradDy, of_dgrad, kWgradDy, of_wgrad, dy);
        return {of_dgrad, of_wgrad};
    }

    const OperandSpec& at(Place place) const { return operand(recipe_, kOperandNames[place]); }
    bool quantizes(Place place) const { return has_bytes(at(place)); }
    bool is_of_forward(Place place) const { return at(place).source != Source::original; }
    // Made from the forward's bytes, or from the BF16 that it multiplied.
    bool reads_bytes(Place place) const { return is_of_forward(place) && quantizes(forward_of(place)); }
    bool reads_bf16(Place place) const {
        return is_of_forward(place) && at(forward_of(place)).spec.format == Format::bf16;
    }

    ProductWay way(Place place) const {
        return product_way(at(place), at(other_side(place)), layer_.allowed_, context_.device);
    }
    // dgrad.w and wgrad.x that are the forward's codes, transposed for a product in FP8.
    bool transposes_codes(Place place) const {
        return reads_bytes(place) && !quantizes(place) && way(place) == ProductWay::fp8;
    }
    // An operand that was quantised for a product, its scales folded into FP8 where that reads them so: the
    // wider range is that of the gradient, or of x.
    std::optional<FoldedMatrix> folded(Place place, const QuantizedMatrix& q) const {
        if (way(place) != ProductWay::folded) return {};
        return folded_to_fp8(context_, q, place % 2 == 0 ? Element::e5m2 : Element::e4m3);
    }
    Factor quantized_factor(Place place, const QuantizedMatrix& q) const {
        return {.quantized = q, .folded = folded(place, q)};
    }

    // What a product reads of an operand on a GPU.
    Keep kept(Place place) const { return way(place) == ProductWay::emulated ? Keep::operand : Keep::bytes; }
    // On a GPU an operand is written as the values that emulation multiplies; its bytes, where products are
    // made of codes, or they are kept for the backward, or somebody looks at them, or the scales of rows are
    // to be read.
    QuantizedMatrix allocate(Place place, int64_t rows, int64_t contraction) const {
        return allocate(place, rows, contraction, kept(place));
    }
    QuantizedMatrix allocate(Place place, int64_t rows, int64_t contraction, Keep on_gpu) const {
        const QuantSpec& spec = at(place).spec;
        const int64_t padded = padded_contraction(place, contraction);
        const int64_t cols = spec.padded(contraction) == padded ? contraction : padded;
        if (context_.device != Device::cuda || spec.has_fp32_scales())
            on_gpu = Keep::bytes;
        else if (layer_.observer_ && on_gpu == Keep::operand)
            on_gpu = Keep::both;  // what is multiplied is what it is without an observer
        return allocate_quantized(context_.arena, spec, rows, cols, on_gpu);
    }
    // For a matrix whose bytes are kept: the values for one product, where it reads them.
    void add_operand(Place place, QuantizedMatrix& q) const {
        if (context_.device == Device::cuda && kept(place) == Keep::operand && has_exact_operand(q.spec))
            q.operand = context_.arena.allocate(DType::bf16, {q.rows, q.padded_cols});
    }

    // x: [out.rows, out.cols or fewer], or the transpose of that; `scale` (F32 [1]; no shape: 1) times x is
    // meant. round_target: what the codes are rounded towards; no shape: as the spec says. With
    // tensor=delayed the history receives the amax, or `amax` does, if it is not null. transpose: receives
    // the codes, too, if it is not null.
    void quantize_into(Place place, Draw draw, const Tensor& x, QuantizedMatrix& out,
                       bool is_transposed = false, const Tensor& scale = {}, float* amax = nullptr,
                       const Tensor& round_target = {}, const QuantizedMatrix* transpose = nullptr) const {
        const ArenaScope scope(context_.arena);
        QuantizeOptions options = quantize_options(place, amax);
        options.transposed = is_transposed;
        options.scale = static_cast<const float*>(scale.data);
        const Tensor padded = is_transposed ? x : detail::padded_columns(context_, x, out.cols);
        if (transpose != nullptr) {
            quantize_with_transpose(context_, at(place).spec, padded, key(place, draw), out, *transpose,
                                    options);
        } else {
            quantize(context_, at(place).spec, padded, key(place, draw), out, options);
        }
        if (round_target.shape.rank() > 0) round_towards(context_, x, round_target, signs(place, draw), out);
        if (options.amax != nullptr && amax == nullptr) record(place, options.amax);
        if (!layer_.observer_) return;
        const SignBits sign_bits = signs(place, draw);
        show({layer_.layer_, kOperandNames[place], &out, padded, is_transposed, shown(scale), &sign_bits});
    }

    // The transpose of what the forward used: its exact code * scale, quantised again; the tensor scales
    // multiply.
    void requantize_into(Place place, Draw draw, const QuantizedMatrix& forward, QuantizedMatrix& out,
                         float* amax = nullptr) const {
        const ArenaScope scope(context_.arena);
        if (forward.operand.shape.rank() > 0)
            return quantize_into(place, draw, forward.operand, out, true, forward.tensor_scale, amax);
        if (!layer_.observer_ && !forward.spec.has_fp32_scales() && out.cols == forward.rows) {
            const QuantizeOptions options = quantize_options(place, amax);
            requantize_transposed(context_, forward, key(place, draw), out, options);
            if (options.amax != nullptr && amax == nullptr) record(place, options.amax);
            return;
        }
        const Tensor values =
            context_.arena.allocate(forward_dtype(forward), {forward.padded_cols, forward.rows});
        dequantize_operand_transposed(context_, forward, values);
        quantize_into(place, draw, values.slice(0, out.rows), out, false, forward.tensor_scale, amax);
    }

    void make_dgrad_w(const Weight& weight, Draw draw, QuantizedMatrix& out, float* amax = nullptr) const {
        if (reads_bytes(kDgradW)) return requantize_into(kDgradW, draw, weight.fprop, out, amax);
        const Tensor& w = reads_bf16(kDgradW) ? weight.bf16 : weight.master;
        quantize_into(kDgradW, draw, w, out, true, {}, amax);
    }

    void make_wgrad_x(const Saved& saved, QuantizedMatrix& out) const {
        const ArenaScope scope(context_.arena);
        if (reads_bytes(kWgradX))
            requantize_into(kWgradX, Draw::each_call, saved.fprop_x, out);
        else
            quantize_into(kWgradX, Draw::each_call, plain_wgrad_x(saved), out, true);
    }
    Tensor plain_wgrad_x(const Saved& saved) const {
        return reads_bf16(kWgradX) ? detail::as_bf16(context_, saved.x) : saved.x;
    }

    // Rows of dgrad.w and wgrad.x: the padded ones too where the forward's space is rotated.
    int64_t rows_of_dgrad_w(const Weight& weight) const {
        return finish_dx(recipe_).unrotate ? weight.fprop.padded_cols : layer_.in_;
    }
    int64_t rows_of_wgrad_x(const Saved& saved) const {
        return finish_dw(recipe_).unrotate ? saved.fprop_x.padded_cols : layer_.in_;
    }

    // One scale for the tensor, no coins, no rotation and no padding: wgrad.dy has the codes of dgrad.dy.
    bool shares_codes_of_dy() const {
        const QuantSpec& spec = at(kWgradDy).spec;
        return way(kDgradDy) == ProductWay::fp8 && way(kWgradDy) == ProductWay::fp8 &&
               spec == at(kDgradDy).spec && !spec.is_stochastic() && spec.rotation == Rotation::none &&
               padded_contraction(kDgradDy, layer_.out_) == layer_.out_ && !layer_.observer_;
    }
    // The first that of dgrad.
    std::pair<QuantizedMatrix, QuantizedMatrix> codes_of(const Tensor& dy) const {
        QuantizedMatrix of_dgrad = allocate(kDgradDy, dy.rows(), dy.cols());
        const QuantizedMatrix of_wgrad = allocate_transpose(context_, of_dgrad);
        quantize_into(kDgradDy, Draw::each_call, dy, of_dgrad, false, {}, nullptr, {}, &of_wgrad);
        return {of_dgrad, of_wgrad};
    }
    // x as a product in FP8 reads it in the backward, where that is the forward's codes, transposed.
    QuantizedMatrix allocate_transposed_x(int64_t rows) const {
        QuantizedMatrix shape;
        {
            const ArenaScope scope(context_.arena);
            shape = allocate(kFpropX, rows, layer_.in_);
        }
        return allocate_transpose(context_, shape);
    }

    // made: dgrad.dy and wgrad.dy, where they are made already.
    void dgrad(const Weight& weight, const Saved& saved, const Tensor& dy,
               const std::optional<QuantizedMatrix>& made, const Tensor& dx) const {
        const ArenaScope scope(context_.arena);
        const Factor a = made ? quantized_factor(kDgradDy, *made) : gradient_factor(kDgradDy, dy, false);
        const Factor b = dgrad_w_factor(weight);
        const Tensor mask = finish_dx(recipe_).mask ? saved.fprop_x.mask : Tensor{};
        with_result(recipe_.dgrad_dx, "dgrad.dx", dx, [&](const Tensor& out) {
            multiply_and_finish(kDgradDy, a, b, finish_dx(recipe_), mask, kFpropX, out, false);
        });
    }

    void wgrad(const Weight& weight, const Saved& saved, const Tensor& dy,
               const std::optional<QuantizedMatrix>& made, const Tensor& dw) const {
        const ArenaScope scope(context_.arena);
        const Factor a = made ? quantized_factor(kWgradDy, *made) : gradient_factor(kWgradDy, dy, true);
        const Factor b = wgrad_x_factor(saved);
        const Tensor mask = finish_dw(recipe_).mask ? weight.fprop.mask : Tensor{};
        multiply_and_finish(kWgradDy, a, b, finish_dw(recipe_), mask, kFpropW, dw, true, weight.master);
    }

    // Calls multiply(where the result goes), and gives `out` what the recipe's spec for it makes of that.
    template <typename Multiply>
    void with_result(const QuantSpec& spec, std::string_view name, const Tensor& out,
                     Multiply&& multiply) const {
        if (!spec.is_quantized()) return multiply(out);
        const ArenaScope scope(context_.arena);
        const Tensor result = context_.arena.allocate(DType::f32, {out.rows(), out.cols()});
        multiply(result);
        QuantizedMatrix q = allocate_quantized(context_.arena, spec, out.rows(), out.cols());
        quantize(context_, spec, result, {}, q, {.name = name});
        show({layer_.layer_, name, &q, result, false, 1, nullptr});
        const Tensor values = context_.arena.allocate(DType::f32, {q.rows, q.padded_cols});
        dequantize(context_, q, values);
        detail::finish_gradient(context_, values, {}, nullptr, {}, out, false);
    }

    // A plain original, stored [rows, contraction] or transposed.
    Factor plain_factor(Place place, const Tensor& x, bool is_transposed) const {
        Factor factor;
        const bool narrower = at(place).spec.format == Format::bf16 && compute(place) == DType::f32;
        factor.plain = narrower ? detail::as_bf16(context_, x) : x;
        factor.is_transposed = is_transposed;
        return factor;
    }

    void multiply(Place place, Factor a, Factor b, const Tensor& out, bool accumulate) const {
        const ArenaScope scope(context_.arena);
        const int64_t contraction = std::max(a.contraction(), b.contraction());
        for (Factor* factor : {&a, &b}) {
            if (factor->plain.shape.rank() > 0)
                show({layer_.layer_, kOperandNames[factor == &a ? place : other_side(place)], nullptr,
                      factor->plain, factor->is_transposed, shown(factor->scale), nullptr});
            if (factor->quantized) continue;
            factor->plain = factor->is_transposed
                                ? detail::padded_rows(context_, factor->plain, contraction)
                                : detail::padded_columns(context_, factor->plain, contraction);
        }
        MatmulOptions options;
        options.accumulate = accumulate;
        options.compute = compute(place);
        if (way(place) != ProductWay::emulated) options.fp8 = layer_.allowed_.sums();
        if (!a.folded) return matmul(context_, a.operand(), b.operand(), out, options);
        // Training's products are counted, each once.
        const bool is_counted = use_ != Use::evaluate && use_ != Use::second;
        choose(
            context_, a.folded->rounded_blocks(), b.folded->rounded_blocks(),
            is_counted ? layer_.allowed_.unfolded_products : nullptr,
            [&] { matmul(context_, *a.quantized, *b.quantized, out, options); },
            [&] { matmul(context_, a.folded->codes, b.folded->codes, out, options); });
    }

    // The amax of an operand, for the next step; a second forward finds the same again.
    void record(Place place, const float* amax) const {
        if (history_ != nullptr && use_ != Use::evaluate)
            record_amax(context_, amax, &history_->current[place]);
    }
    void show(const Observation& observation) const {
        const bool was_shown = use_ == Use::second && observation.operand.starts_with("fprop");
        if (layer_.observer_ && !was_shown) layer_.observer_(context_, observation);
    }
    // A scale as an observer is told it: the one number of a GPU that the host waits for, and only then.
    float shown(const Tensor& scale) const {
        float value = 1.0f;
        if (layer_.observer_ && scale.shape.rank() > 0 && !context_.planning())
            copy(context_, scale, {&value, DType::f32, Device::cpu, scale.shape});
        return value;
    }

  private:
    // With tensor=delayed `amax` receives that of the operand, or memory of the arena's does, for record().
    QuantizeOptions quantize_options(Place place, float* amax) const {
        QuantizeOptions options;
        options.signs = fixed_signs(place);
        options.name = kOperandNames[place];
        options.known_amax = known_amax_[place];
        if (at(place).spec.tensor != TensorScale::delayed) return options;
        require(history_ != nullptr, "{} has tensor=delayed, but the layer was prepared without a history",
                kOperandNames[place]);
        options.previous_amax = &history_->previous[place];
        if (amax != nullptr)
            options.amax = amax;
        else if (use_ != Use::evaluate)
            options.amax = static_cast<float*>(context_.arena.allocate(DType::f32, {1}).data);
        return options;
    }

    RandomKey key(Place place, Draw draw) const {
        const bool each_call = draw == Draw::each_call;
        require(context_.micro_step < 256,
                "a step has at most 256 micro-steps; make micro_batch_size larger");
        RandomKey key = {.seed = context_.seed,
                         .step = context_.step,
                         .micro_step = static_cast<uint8_t>(each_call ? context_.micro_step : 0),
                         .layer = layer_.layer_,
                         .gemm = gemm_of(place),
                         .side = place % 2 == 0 ? Side::a : Side::b};
        if (context_.counters != nullptr) {
            key.step_there = &context_.counters->step;
            key.micro_step_there = each_call ? &context_.counters->micro_step : nullptr;
        }
        return key;
    }

    const SignBits* fixed_signs(Place place) const {
        const auto& fixed = layer_.fixed_signs_[static_cast<size_t>(gemm_of(place))];
        return fixed ? &*fixed : nullptr;
    }
    SignBits signs(Place place, Draw draw) const {
        const SignBits* const fixed = fixed_signs(place);
        return fixed != nullptr ? *fixed : rotation_signs(at(place).spec, key(place, draw));
    }

    // Both operands of a product are padded to what either needs.
    int64_t padded_contraction(Place place, int64_t contraction) const {
        int64_t multiple = 1;
        for (const Place side : {place, other_side(place)}) {
            if (quantizes(side)) multiple = std::lcm(multiple, at(side).spec.padding());
        }
        return (contraction + multiple - 1) / multiple * multiple;
    }

    DType compute(Place place) const {
        const bool exact = is_wide(place) || is_wide(other_side(place));
        return exact ? DType::f32 : DType::bf16;
    }
    // F32, or the forward's values with FP32 scales in them.
    bool is_wide(Place place) const {
        if (at(place).spec.format == Format::fp32) return true;
        return is_of_forward(place) && !quantizes(place) && at(forward_of(place)).spec.has_fp32_scales();
    }
    // code * scale is exact in BF16, but not with FP32 scales in it.
    static DType forward_dtype(const QuantizedMatrix& forward) {
        return forward.spec.has_fp32_scales() ? DType::f32 : DType::bf16;
    }

    Factor gradient_factor(Place place, const Tensor& dy, bool transpose) const {
        if (!quantizes(place)) return plain_factor(place, dy, transpose);
        QuantizedMatrix q =
            transpose ? allocate(place, dy.cols(), dy.rows()) : allocate(place, dy.rows(), dy.cols());
        quantize_into(place, Draw::each_call, dy, q, transpose);
        return quantized_factor(place, q);
    }

    Factor dgrad_w_factor(const Weight& weight) const {
        if (quantizes(kDgradW)) {
            if (!is_fresh_each_call(at(kDgradW).spec))
                return {.quantized = weight.dgrad, .folded = weight.folded_dgrad};
            QuantizedMatrix q = allocate(kDgradW, rows_of_dgrad_w(weight), layer_.out_);
            make_dgrad_w(weight, Draw::each_call, q);
            return quantized_factor(kDgradW, q);
        }
        if (transposes_codes(kDgradW)) return {.quantized = weight.dgrad};
        if (reads_bytes(kDgradW)) return forward_factor(kDgradW, weight.fprop);
        const bool of_fp32 = at(is_of_forward(kDgradW) ? kFpropW : kDgradW).spec.format == Format::fp32;
        return plain_factor(kDgradW, of_fp32 ? weight.master : weight.bf16, true);
    }

    Factor wgrad_x_factor(const Saved& saved) const {
        if (quantizes(kWgradX)) {
            if (!is_of_forward(kWgradX)) return quantized_factor(kWgradX, saved.wgrad_x);
            QuantizedMatrix q = allocate(kWgradX, rows_of_wgrad_x(saved), saved_rows(saved));
            make_wgrad_x(saved, q);
            return quantized_factor(kWgradX, q);
        }
        if (transposes_codes(kWgradX)) return {.quantized = saved.wgrad_x};
        if (reads_bytes(kWgradX)) return forward_factor(kWgradX, saved.fprop_x);
        return plain_factor(kWgradX, plain_wgrad_x(saved), true);
    }

    int64_t saved_rows(const Saved& saved) const {
        return quantizes(kFpropX) ? saved.fprop_x.rows : saved.x.rows();
    }

    // What the forward multiplied, read along its other dimension.
    Factor forward_factor(Place place, const QuantizedMatrix& q) const {
        if (q.spec.has_fp32_scales()) {
            Factor factor;
            if (context_.device == Device::cuda &&
                multiplies_by_groups(at(other_side(place)), at(place), q.spec))
                factor.quantized = transposed_groups(context_, q);
            if (factor.quantized && !layer_.observer_) return factor;
            factor.plain = context_.arena.allocate(DType::f32, {q.padded_cols, q.rows});
            factor.scale = q.tensor_scale;
            dequantize_operand_transposed(context_, q, factor.plain);
            return factor;
        }
        if (q.operand.shape.rank() > 0)
            return {.plain = q.operand, .is_transposed = true, .scale = q.tensor_scale};
        const Tensor values = context_.arena.allocate(DType::bf16, {q.rows, q.padded_cols});
        dequantize_operand(context_, q, values);
        return {.plain = values, .is_transposed = true, .scale = q.tensor_scale};
    }

    // `of`: dW is multiplied by the slope of this weight's quantiser, where the recipe says so.
    void multiply_and_finish(Place place, const Factor& a, const Factor& b, const Finish& finish,
                             const Tensor& mask, Place forward, const Tensor& out, bool accumulate,
                             const Tensor& of = {}) const {
        const bool has_slope = place == kWgradDy && recipe_.wgrad_factor.has_value();
        if (finish == Finish{} && !has_slope && b.rows() == out.cols()) {
            multiply(place, a, b, out, accumulate);
            return;
        }
        const Tensor gradient = context_.arena.allocate(DType::f32, {a.rows(), b.rows()});
        multiply(place, a, b, gradient, false);
        if (finish.unrotate_rows) {
            const QuantSpec& spec = at(place).spec;
            unrotate_rows(context_, spec.rotation_size, signs(place, Draw::each_call), gradient,
                          spec.rotation_rounds());
        }
        const Tensor kept = gradient.slice(0, out.rows());
        if (has_slope) multiply_by_dge_slope(context_, *recipe_.wgrad_factor, of, kept);
        const QuantSpec* rotation = finish.unrotate ? &at(forward).spec : nullptr;
        detail::finish_gradient(context_, kept, mask, rotation, signs(forward, Draw::once), out, accumulate);
    }

    const QuantLinear& layer_;
    const Recipe& recipe_;
    Context& context_;
    AmaxHistory* history_;
    Use use_;
    std::array<const float*, 6> known_amax_{};
};

QuantLinear::QuantLinear(const Recipe& recipe, int64_t in, int64_t out, uint16_t layer,
                         const AllowedProducts& allowed)
    : recipe_(&recipe), in_(in), out_(out), layer_(layer) {
    require(in > 0 && out > 0, "a linear layer from {} to {} features has no weights", in, out);
    validate(recipe);
    if (in % kFp8Multiple == 0 && out % kFp8Multiple == 0) allowed_ = allowed;
}

bool QuantLinear::needs_history() const { return has_delayed_scales(*recipe_); }

QuantLinear::Weight QuantLinear::prepare(Context& context, const Tensor& master, AmaxHistory* history,
                                         const Tensor& round_target, Keep on_gpu) const {
    require(master.dtype == DType::f32 && master.shape == Shape({out_, in_}),
            "a layer of F32 [{}, {}] was given a weight of {} {}", out_, in_, name_of(master.dtype),
            master.shape.str());
    const bool has_target = round_target.shape.rank() > 0;
    const Execution run(*this, context, history);
    Weight weight;
    weight.master = master;
    weight.history = history;
    if (history != nullptr) {
        begin_step(context, history);  // the first preparation after a step that was trained
        weight.amax = context.arena.allocate(DType::f32, {6});
        if (!context.planning()) fill_zero(context, weight.amax);
    }
    const auto amax_of = [&](Place place) {
        return history != nullptr ? static_cast<float*>(weight.amax.data) + place : nullptr;
    };
    const OperandSpec &fprop_w = recipe_->fprop_w, &dgrad_w = recipe_->dgrad_w;
    const bool dgrad_is_plain = dgrad_w.spec.format == Format::bf16 && dgrad_w.source == Source::original;
    if (fprop_w.spec.format == Format::bf16 || dgrad_is_plain) {
        weight.bf16 = context.arena.allocate(DType::bf16, master.shape);
        detail::convert(context, master, weight.bf16);
    }
    const auto keep_of = [&](Place place) { return run.kept(place) == Keep::operand ? on_gpu : Keep::bytes; };
    if (run.quantizes(kFpropW)) {
        const Keep keep = keep_of(kFpropW);
        const bool keeps_both = keep == Keep::operand && (has_target || run.transposes_codes(kDgradW));
        weight.fprop = run.allocate(kFpropW, out_, in_, keeps_both ? Keep::both : keep);
        run.quantize_into(kFpropW, Draw::once, master, weight.fprop, false, {}, amax_of(kFpropW),
                          round_target);
        weight.folded_fprop = run.folded(kFpropW, weight.fprop);
    }
    if (run.transposes_codes(kDgradW)) weight.dgrad = transposed_codes(context, weight.fprop);
    if (run.quantizes(kDgradW) && !is_fresh_each_call(dgrad_w.spec)) {
        weight.dgrad = run.allocate(kDgradW, run.rows_of_dgrad_w(weight), out_, keep_of(kDgradW));
        run.make_dgrad_w(weight, Draw::once, weight.dgrad, amax_of(kDgradW));
        weight.folded_dgrad = run.folded(kDgradW, weight.dgrad);
    }
    if (recipe_->outliers) {
        const DType dtype = recipe_->outliers->product.format == Format::fp32 ? DType::f32 : DType::bf16;
        weight.outlier_product = context.arena.allocate(dtype, {in_, out_});
        const ArenaScope scope(context.arena);
        const Tensor w = dtype == DType::f32 ? master : detail::as_bf16(context, master);
        transpose(context, w, weight.outlier_product);
    }
    return weight;
}

QuantLinear::Saved QuantLinear::forward(Context& context, const Weight& weight, const Tensor& x,
                                        const Tensor& y, Use use, const float* x_amax) const {
    const bool wants_y = y.shape.rank() > 0, for_backward = use == Use::train || use == Use::second;
    require(x.cols() == in_ && (!wants_y || (y.cols() == out_ && x.rows() == y.rows())),
            "a layer from {} to {} features was given {} and {}", in_, out_, x.shape.str(), y.shape.str());
    Execution run(*this, context, weight.history, use);
    if (!recipe_->outliers) run.know_amax(kFpropX, x_amax);
    if (!run.is_of_forward(kWgradX)) run.know_amax(kWgradX, x_amax);
    Saved saved;
    const bool reads_forward = run.reads_bytes(kWgradX), keeps_transpose = run.transposes_codes(kWgradX);
    const bool keeps_bytes =
        for_backward && ((reads_forward && !keeps_transpose) || finish_dx(*recipe_).mask);
    const QuantizedMatrix* transpose = nullptr;
    if (for_backward && !reads_forward) saved.x = x;
    QuantizedMatrix quantized;
    if (keeps_bytes) quantized = saved.fprop_x = run.allocate(kFpropX, x.rows(), in_, Keep::bytes);
    bool quantizes_both = false;
    if (for_backward && run.quantizes(kWgradX) && !run.is_of_forward(kWgradX)) {
        saved.wgrad_x = run.allocate(kWgradX, in_, x.rows(), Keep::bytes);
        quantizes_both = wants_y && !recipe_->outliers && run.quantizes_both(kFpropX, kWgradX, x);
        if (!quantizes_both) run.make_wgrad_x(saved, saved.wgrad_x);
        saved.x = {};
    }
    if (for_backward && keeps_transpose) {
        saved.wgrad_x = run.allocate_transposed_x(x.rows());
        transpose = &saved.wgrad_x;
    }
    if (!wants_y && !keeps_bytes && transpose == nullptr) return saved;
    const ArenaScope scope(context.arena);
    Factor a, b;
    Tensor range;
    if (run.quantizes(kFpropX)) {
        if (keeps_bytes) {
            if (wants_y) run.add_operand(kFpropX, quantized);
        } else {
            quantized = run.allocate(kFpropX, x.rows(), in_);
        }
        if (recipe_->outliers) range = context.arena.allocate(DType::f32, {2});
        const ArenaScope clamped_scope(context.arena);
        Tensor narrow = x;
        if (recipe_->outliers) {
            quantile_range(context, x, recipe_->outliers->quantile, range);
            narrow = context.arena.allocate(x.dtype, x.shape);
            clamp(context, x, range, narrow);
        }
        if (quantizes_both) {
            run.quantize_both_into(kFpropX, quantized, kWgradX, saved.wgrad_x, x);
        } else {
            run.quantize_into(kFpropX, Draw::each_call, narrow, quantized, false, {}, nullptr, {}, transpose);
        }
    } else {
        a = run.plain_factor(kFpropX, x, false);
    }
    if (!wants_y) return saved;
    if (run.quantizes(kFpropX)) a = run.quantized_factor(kFpropX, quantized);
    if (run.quantizes(kFpropW)) {
        b = {.quantized = weight.fprop, .folded = weight.folded_fprop};
    } else {
        const bool exact = recipe_->fprop_w.spec.format == Format::fp32;
        b = run.plain_factor(kFpropW, exact ? weight.master : weight.bf16, false);
    }
    for (const Place place : {kFpropW, kDgradW})
        if (weight.history != nullptr) run.record(place, static_cast<const float*>(weight.amax.data) + place);
    run.with_result(recipe_->fprop_y, "fprop.y", y, [&](const Tensor& out) {
        if (!recipe_->outliers) return run.multiply(kFpropX, a, b, out, false);
        const Tensor product =
            out.dtype == DType::f32 ? out : context.arena.allocate(DType::f32, {y.rows(), y.cols()});
        run.multiply(kFpropX, a, b, product, false);
        add_outlier_product(context, x, range, weight.outlier_product, product, out);
    });
    return saved;
}

void QuantLinear::backward(Context& context, const Weight& weight, const Saved& saved, const Tensor& dy,
                           const Tensor& dx, const Tensor& dw, const float* dy_amax) const {
    const bool wants_dx = dx.shape.rank() > 0;
    require(dy.cols() == out_ && (!wants_dx || (dx.cols() == in_ && dx.rows() == dy.rows())) &&
                dw.dtype == DType::f32 && dw.shape == Shape({out_, in_}),
            "a layer from {} to {} features was given dy {}, dx {}, dw {} {}", in_, out_, dy.shape.str(),
            dx.shape.str(), name_of(dw.dtype), dw.shape.str());
    const ArenaScope scope(context.arena);
    Execution run(*this, context, weight.history);
    for (const Place place : {kDgradDy, kWgradDy}) run.know_amax(place, dy_amax);
    if (!wants_dx) return run.wgrad(weight, saved, dy, {}, dw);
    std::optional<QuantizedMatrix> for_dgrad, for_wgrad;
    if (run.shares_codes_of_dy()) {
        std::tie(for_dgrad, for_wgrad) = run.codes_of(dy);
    } else if (run.quantizes_both(kDgradDy, kWgradDy, dy)) {
        std::tie(for_dgrad, for_wgrad) = run.quantize_both_of_gradient(dy);
    }
    run.dgrad(weight, saved, dy, for_dgrad, dx);
    run.wgrad(weight, saved, dy, for_wgrad, dw);
}

}  // namespace nibble
