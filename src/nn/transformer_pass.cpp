#include "nn/transformer_pass.h"

#include <cmath>
#include <optional>

#include "core/cuda.h"
#include "nn/attention.h"
#include "nn/bias.h"
#include "nn/embedding.h"
#include "nn/finite.h"
#include "nn/qk_norm.h"
#include "nn/quant_linear_parts.h"
#include "nn/rmsnorm.h"
#include "nn/rope.h"
#include "nn/smooth_swiglu.h"
#include "nn/swiglu.h"

namespace nibble {

namespace {

// Ends a pass of first_non_finite().
struct FoundNonFinite {
    std::string name;
};

// True if the backward of a layer under `recipe` reads the tensor that its forward was given.
bool backward_reads_input(const Recipe& recipe) {
    const OperandSpec& x = recipe.wgrad_x;
    return x.source == Source::original ? !x.spec.is_quantized() : !recipe.fprop_x.spec.is_quantized();
}

}  // namespace

void Transformer::check(const Context& context, const Tensor& tensor, std::string_view what,
                        int block) const {
    if (!checks_ || context.planning() || is_finite(context, tensor)) return;
    const size_t name = what.find('@');  // where the block's prefix goes
    if (name == std::string_view::npos) throw FoundNonFinite{std::string(what)};
    throw FoundNonFinite{fmt::format("{}layers.{}.{}", what.substr(0, name), block, what.substr(name + 1))};
}

Transformer::Pass Transformer::begin_pass(Context& context, const Tensor& tokens, bool for_backward) {
    require(tokens.dtype == DType::i32 && tokens.shape.rank() == 2 && tokens.count() > 0,
            "tokens must be I32 [sequences, length], not {} {}", name_of(tokens.dtype), tokens.shape.str());
    require(tokens.cols() <= config_.max_position_embeddings,
            "sequences of {} tokens are longer than the model's max_position_embeddings = {}", tokens.cols(),
            config_.max_position_embeddings);
    require(executed_ != nullptr, "a pass through the model needs the weights that begin_step() makes");
    Pass pass;
    pass.tokens = tokens.count();
    pass.sequence = tokens.cols();
    pass.for_backward = for_backward;
    const auto allocate = [&](int64_t cols) {
        return context.arena.allocate(options_.activations, {pass.tokens, cols});
    };
    pass.residual = allocate(config_.hidden_size);
    pass.delta = allocate(config_.hidden_size);
    pass.normed = allocate(config_.hidden_size);
    pass.hidden = allocate(config_.intermediate_size);
    if (recipe_.fprop_x.spec.is_quantized()) pass.amax = context.arena.allocate(DType::f32, {1});
    if (recipe_.dgrad_dy.spec.is_quantized() || recipe_.wgrad_dy.spec.is_quantized())
        pass.d_amax = context.arena.allocate(DType::f32, {1});
    if (for_backward && options_.recompute == Recompute::block) pass.stream = allocate(config_.hidden_size);
    embedding_forward(context, tokens.reshaped({pass.tokens}), embedding().master, pass.residual);
    check(context, pass.residual, "output of embedding");
    return pass;
}

void Transformer::linear_forward(Context& context, const Pass& pass, int block, BlockLayer which,
                                 const Tensor& x, const Tensor& y, Use use) {
    const auto id = running_layer_ = static_cast<size_t>(block * kBlockLayers + which);
    const bool is_of_attention = which == kOutLayer;  // which does not know its amax
    const bool is_smoothed = which == kDownLayer && smoothing(block) != nullptr;
    const float* const amax =
        is_of_attention || is_smoothed ? nullptr : static_cast<const float*>(pass.amax.data);
    QuantLinear::Saved saved = (*executed_)[id].forward(context, weights_[id], x, y, use, amax);
    const bool shares_scratch = x.data == pass.normed.data || x.data == pass.hidden.data;
    require(context.planning() || saved.x.data == nullptr || !shares_scratch,
            "layer {} keeps an input that the next layer overwrites", id);
    saved_[static_cast<size_t>(block)].linear[which] = saved;
}

void Transformer::linear_backward(Context& context, const Pass& pass, int block, BlockLayer which,
                                  const Tensor& dy, const Tensor& dx, const float* dy_amax) {
    const ArenaScope scope(context.arena);
    const bool is_of_mlp = which == kGateUpLayer || which == kDownLayer;
    if (options_.recompute == Recompute::norms || (options_.recompute == Recompute::mlp && !is_of_mlp))
        input_again(context, pass, block, which);
    const auto id = running_layer_ = static_cast<size_t>(block * kBlockLayers + which);
    const QuantLinear::Saved& saved = saved_[static_cast<size_t>(block)].linear[which];
    const Tensor& gradient = matrix_of(id).gradient;
    const Tensor& scales = saved_[static_cast<size_t>(block)].channel_scales;
    const bool is_smoothed = which == kDownLayer && scales.shape.rank() > 0;
    if (gradient.dtype == DType::f32 && !is_smoothed) {
        (*executed_)[id].backward(context, weights_[id], saved, dy, dx, gradient, dy_amax);
        return;
    }
    const Tensor sum = context.arena.allocate(DType::f32, gradient.shape);
    if (!context.planning()) fill_zero(context, sum);
    (*executed_)[id].backward(context, weights_[id], saved, dy, dx, sum, dy_amax);
    if (is_smoothed) {
        divide_columns(context, sum, scales, sum);
        multiply_columns(context, dx, scales);
    }
    detail::finish_gradient(context, sum, {}, nullptr, {}, gradient, /*accumulate=*/true);
}

void Transformer::input_again(Context& context, const Pass& pass, int block, BlockLayer which) {
    const Saved& saved = saved_[static_cast<size_t>(block)];
    Tensor x = saved.mixed;
    if (which == kQkvLayer)
        x = norm(context, pass, block, kAttentionNorm, saved.attention_x, {}, {}, Use::second);
    if (which == kGateUpLayer) x = norm(context, pass, block, kMlpNorm, saved.mlp_x, {}, {}, Use::second);
    if (which == kDownLayer) {
        x = hidden(context, pass, block, Use::second);
        if (saved.channel_scales.shape.rank() > 0) multiply_columns(context, x, saved.channel_scales);
    }
    linear_forward(context, pass, block, which, x, {}, Use::second);
}

bool Transformer::reads_inputs(int block, Use use) const {
    const Recipe& recipe = executed_ == &bf16_layers_ || is_kept(block) ? bf16_ : recipe_;
    return (use == Use::train || use == Use::second) && backward_reads_input(recipe);
}

Tensor Transformer::smooth(Context& context, const SmoothSwiglu& options, int block, const Tensor& hidden,
                           Use use) {
    const auto id = running_layer_ = static_cast<size_t>(block * kBlockLayers + kDownLayer);
    const Tensor& master = matrix_of(id).master;
    const Tensor scales = context.arena.allocate(DType::f32, {config_.intermediate_size});
    const Tensor divided = context.arena.allocate(DType::f32, master.shape);
    channel_scales(context, options, hidden, scales);
    multiply_columns(context, hidden, scales);
    divide_columns(context, master, scales, divided);
    QuantLinear layer = layers_[id];
    if (use == Use::second) layer.observe({});  // it has seen this weight
    weights_[id] = layer.prepare(context, divided);
    return scales;
}

Tensor Transformer::norm(Context& context, const Pass& pass, int block, BlockParameter which, const Tensor& x,
                         const Tensor& delta, const Tensor& sum, Use use) {
    const bool is_first = which == kAttentionNorm;
    const Saved& saved = saved_[static_cast<size_t>(block)];
    const Tensor normed = reads_inputs(block, use) ? context.arena.allocate(x.dtype, x.shape) : pass.normed;
    rmsnorm_forward(context, x, delta, of_block(block, which).master, config_.rms_norm_eps, sum, normed,
                    is_first ? saved.attention_rstd : saved.mlp_rstd, static_cast<float*>(pass.amax.data));
    check(context, delta.shape.rank() > 0 ? sum : x,
          is_first ? "residual stream before @attention.norm" : "residual stream before @mlp.norm", block);
    check(context, normed, is_first ? "output of @attention.norm" : "output of @mlp.norm", block);
    return normed;
}

void Transformer::attention(Context& context, const Pass& pass, int block, const Tensor& normed, Use use) {
    Saved& saved = saved_[static_cast<size_t>(block)];
    saved.qkv = context.arena.allocate(options_.activations, {pass.tokens, config_.qkv_size()});
    linear_forward(context, pass, block, kQkvLayer, normed, saved.qkv, use);
    check(context, saved.qkv, "output of @attention.qkv", block);
    qkv_forward(context, pass, block);
    saved.mixed = context.arena.allocate(options_.activations, {pass.tokens, config_.attention_size()});
    saved.logsumexp = context.arena.allocate(DType::f32, {pass.tokens, config_.num_attention_heads});
    attention_forward(context, attention_shape(pass), saved.qkv, saved.mixed, saved.logsumexp);
    check(context, saved.mixed, "output of @attention (softmax and values)", block);
    linear_forward(context, pass, block, kOutLayer, saved.mixed, pass.delta, use);
    check(context, pass.delta, "output of @attention.out", block);
}

void Transformer::mlp(Context& context, const Pass& pass, int block, const Tensor& normed, Use use) {
    Saved& saved = saved_[static_cast<size_t>(block)];
    saved.gate_up =
        context.arena.allocate(options_.activations, {pass.tokens, 2 * config_.intermediate_size});
    linear_forward(context, pass, block, kGateUpLayer, normed, saved.gate_up, use);
    check(context, saved.gate_up, "output of @mlp.gate_up", block);
    const Tensor x = hidden(context, pass, block, use);
    const SmoothSwiglu* const smoothed = smoothing(block);
    saved.channel_scales = smoothed != nullptr ? smooth(context, *smoothed, block, x, use) : Tensor{};
    const bool is_again = use == Use::second;  // the block's output is not needed twice
    linear_forward(context, pass, block, kDownLayer, x, is_again ? Tensor{} : pass.delta, use);
    if (!is_again) check(context, pass.delta, "output of @mlp.down", block);
}

Tensor Transformer::hidden(Context& context, const Pass& pass, int block, Use use) {
    const Tensor out = reads_inputs(block, use)
                           ? context.arena.allocate(options_.activations, pass.hidden.shape)
                           : pass.hidden;
    swiglu_forward(context, saved_[static_cast<size_t>(block)].gate_up, out,
                   static_cast<float*>(pass.amax.data));
    check(context, out, "output of @mlp (swiglu)", block);
    return out;
}

void Transformer::block_forward(Context& context, Pass& pass, int block) {
    Saved& saved = saved_[static_cast<size_t>(block)];
    const Recompute recompute = pass.for_backward ? options_.recompute : Recompute::none;
    const Use use = !pass.for_backward             ? Use::evaluate
                    : recompute == Recompute::none ? Use::train
                                                   : Use::first;
    const auto allocate = [&] { return context.arena.allocate(options_.activations, pass.residual.shape); };
    saved.attention_rstd = context.arena.allocate(DType::f32, {pass.tokens});
    saved.mlp_rstd = context.arena.allocate(DType::f32, {pass.tokens});
    std::optional<ArenaScope> not_kept;

    // Without a backward the sums of the residual stream are made in place.
    saved.attention_x = pass.has_delta && pass.for_backward ? allocate() : pass.residual;
    Tensor normed = norm(context, pass, block, kAttentionNorm, pass.residual,
                         pass.has_delta ? pass.delta : Tensor{}, saved.attention_x, use);
    if (recompute == Recompute::block) not_kept.emplace(context.arena);
    attention(context, pass, block, normed, use);

    saved.mlp_x = !pass.for_backward              ? pass.residual
                  : recompute == Recompute::block ? pass.stream
                                                  : allocate();
    normed = norm(context, pass, block, kMlpNorm, saved.attention_x, pass.delta, saved.mlp_x, use);
    if (recompute == Recompute::mlp) not_kept.emplace(context.arena);
    mlp(context, pass, block, normed, use);
    pass.residual = saved.mlp_x;
    pass.has_delta = true;
}

void Transformer::qkv_forward(Context& context, const Pass& pass, int block) {
    Saved& saved = saved_[static_cast<size_t>(block)];
    if (config_.has_qk_norm()) {
        const int64_t heads = config_.num_attention_heads + config_.num_key_value_heads;
        saved.qk_x = saved.qk_rstd = {};
        if (pass.for_backward) {
            saved.qk_x =
                context.arena.allocate(options_.activations, {pass.tokens, heads * config_.head_dim});
            saved.qk_rstd = context.arena.allocate(DType::f32, {pass.tokens, heads});
        }
        qk_norm_forward(context, attention_shape(pass), saved.qkv, of_block(block, kQNorm).master,
                        of_block(block, kKNorm).master, config_.rms_norm_eps, saved.qk_x, saved.qk_rstd);
        check(context, saved.qkv, "queries and keys of @attention after their norm", block);
    }
    rope_forward(context, config_.rope_layout, saved.qkv, pass.sequence, config_.num_attention_heads,
                 config_.num_key_value_heads, rope_cos_, rope_sin_,
                 config_.has_qkv_bias() ? of_block(block, kQkvBias).master : Tensor{});
}

void Transformer::qkv_backward(Context& context, const Pass& pass, int block) {
    const Saved& saved = saved_[static_cast<size_t>(block)];
    rope_backward(context, config_.rope_layout, pass.d_qkv, pass.sequence, config_.num_attention_heads,
                  config_.num_key_value_heads, rope_cos_, rope_sin_);
    if (config_.has_qk_norm()) {
        const Parameter &q_norm = of_block(block, kQNorm), &k_norm = of_block(block, kKNorm);
        qk_norm_backward(context, attention_shape(pass), pass.d_qkv, q_norm.master, k_norm.master, saved.qk_x,
                         saved.qk_rstd, q_norm.gradient, k_norm.gradient);
    }
    if (config_.has_qkv_bias()) bias_backward(context, pass.d_qkv, of_block(block, kQkvBias).gradient);
}

void Transformer::block_backward(Context& context, const Pass& pass, int block) {
    Saved& saved = saved_[static_cast<size_t>(block)];
    const Tensor &d_residual = pass.d_residual, &d_normed = pass.normed, &d_hidden = pass.hidden;
    const ArenaScope made_again(context.arena);
    if (options_.recompute == Recompute::block) {
        const Tensor normed =
            norm(context, pass, block, kAttentionNorm, saved.attention_x, {}, {}, Use::second);
        attention(context, pass, block, normed, Use::second);
        saved.mlp_x = context.arena.allocate(options_.activations, saved.attention_x.shape);
        mlp(context, pass, block,
            norm(context, pass, block, kMlpNorm, saved.attention_x, pass.delta, saved.mlp_x, Use::second),
            Use::second);
    } else if (options_.recompute == Recompute::mlp) {
        mlp(context, pass, block, norm(context, pass, block, kMlpNorm, saved.mlp_x, {}, {}, Use::second),
            Use::second);
    }
    const auto check_gradient = [&](BlockParameter which) {
        if (checks_)
            check(context, of_block(block, which).gradient, "gradient of " + of_block(block, which).name);
    };

    linear_backward(context, pass, block, kDownLayer, d_residual, d_hidden);
    check_gradient(kDown);
    check(context, d_hidden, "gradient of the input of @mlp.down", block);
    const Tensor& d_gate_up = saved.gate_up;
    auto* const amax = static_cast<float*>(pass.d_amax.data);
    swiglu_backward(context, d_hidden, saved.gate_up, d_gate_up, amax);
    check(context, d_gate_up, "gradient of the output of @mlp.gate_up", block);
    linear_backward(context, pass, block, kGateUpLayer, d_gate_up, d_normed, amax);
    check_gradient(kGateUp);
    check(context, d_normed, "gradient of the input of @mlp.gate_up", block);
    const Parameter& mlp_norm = of_block(block, kMlpNorm);
    rmsnorm_backward(context, d_normed, saved.mlp_x, mlp_norm.master, saved.mlp_rstd, d_residual, d_residual,
                     mlp_norm.gradient);
    check_gradient(kMlpNorm);
    check(context, d_residual, "gradient of the residual stream before @mlp.norm", block);

    linear_backward(context, pass, block, kOutLayer, d_residual, pass.d_mixed);
    check_gradient(kOut);
    check(context, pass.d_mixed, "gradient of the input of @attention.out", block);
    attention_backward(context, attention_shape(pass), pass.d_mixed, saved.qkv, saved.mixed, saved.logsumexp,
                       pass.d_qkv);
    qkv_backward(context, pass, block);
    if (config_.has_qkv_bias()) check_gradient(kQkvBias);
    if (config_.has_qk_norm()) {
        check_gradient(kQNorm);
        check_gradient(kKNorm);
    }
    check(context, pass.d_qkv, "gradient of the output of @attention.qkv", block);
    linear_backward(context, pass, block, kQkvLayer, pass.d_qkv, d_normed);
    check_gradient(kQkv);
    check(context, d_normed, "gradient of the input of @attention.qkv", block);
    const Parameter& attention_norm = of_block(block, kAttentionNorm);
    rmsnorm_backward(context, d_normed, saved.attention_x, attention_norm.master, saved.attention_rstd,
                     d_residual, d_residual, attention_norm.gradient);
    check_gradient(kAttentionNorm);
    check(context, d_residual, "gradient of the residual stream before @attention.norm", block);
    if (residual_observer_ && !context.planning()) residual_observer_(block, d_residual);
}

AttentionShape Transformer::attention_shape(const Pass& pass) const {
    return {pass.sequence, config_.num_attention_heads, config_.num_key_value_heads, config_.head_dim,
            options_.deterministic_attention};
}

HeadLoss Transformer::forward_backward(Context& context, const Tensor& tokens, const Tensor& targets,
                                       float scale) {
    const ArenaScope scope(context.arena);
    const Tensor totals = context.arena.allocate(DType::f64, {2});
    if (!context.planning()) fill_zero(context, totals);
    forward_backward(context, tokens, targets, scale, totals);
    return read_loss(context, totals);
}

void Transformer::forward_backward(Context& context, const Tensor& tokens, const Tensor& targets, float scale,
                                   const Tensor& totals) {
    const ArenaScope scope(context.arena);
    Pass pass = begin_pass(context, tokens, true);
    const size_t before = context.arena.used();
    for (int block = 0; block < config_.num_hidden_layers; ++block) block_forward(context, pass, block);
    step_memory_.activations = context.arena.used() - before;
    const Tensor rstd = context.arena.allocate(DType::f32, {pass.tokens});
    const Tensor x = context.arena.allocate(options_.activations, pass.residual.shape);
    rmsnorm_forward(context, pass.residual, pass.delta, final_norm().master, config_.rms_norm_eps, x,
                    pass.normed, rstd);
    check(context, pass.normed, "output of norm");

    const Tensor& d_normed = pass.delta;
    head_loss_backward(context, pass.normed, head().master, flat_targets(tokens, targets), scale, d_normed,
                       head().gradient, totals, head_options());
    if (checks_ && !std::isfinite(read_loss(context, totals).loss_sum)) throw FoundNonFinite{"loss"};
    check(context, head().gradient, "gradient of " + head().name);
    check(context, d_normed, "gradient of the output of norm");
    const auto allocate = [&](int64_t cols) {
        return context.arena.allocate(options_.activations, {pass.tokens, cols});
    };
    pass.d_residual = allocate(config_.hidden_size);
    pass.d_mixed = allocate(config_.attention_size());
    pass.d_qkv = allocate(config_.qkv_size());
    rmsnorm_backward(context, d_normed, x, final_norm().master, rstd, Tensor{}, pass.d_residual,
                     final_norm().gradient);
    check(context, final_norm().gradient, "gradient of norm");
    check(context, pass.d_residual, "gradient of the residual stream before norm");
    for (int block = config_.num_hidden_layers - 1; block >= 0; --block) block_backward(context, pass, block);
    embedding_backward(context, pass.d_residual, tokens.reshaped({pass.tokens}), embedding().gradient);
    check(context, embedding().gradient, "gradient of embedding");
}

Tensor Transformer::hidden_states(Context& context, const Tensor& tokens) {
    Pass pass = begin_pass(context, tokens, false);
    for (int block = 0; block < config_.num_hidden_layers; ++block) {
        const ArenaScope scope(context.arena);
        block_forward(context, pass, block);
    }
    const ArenaScope scope(context.arena);
    const Tensor rstd = context.arena.allocate(DType::f32, {pass.tokens});
    rmsnorm_forward(context, pass.residual, pass.delta, final_norm().master, config_.rms_norm_eps,
                    pass.residual, pass.normed, rstd);
    return pass.normed;
}

HeadLoss Transformer::forward(Context& context, const Tensor& tokens, const Tensor& targets,
                              const Tensor& loss_rows) {
    const ArenaScope scope(context.arena);
    const Tensor x = hidden_states(context, tokens);
    Tensor rows = loss_rows;
    if (rows.shape.rank() > 0) rows = rows.reshaped({tokens.count()});
    return head_loss(context, x, head().master, flat_targets(tokens, targets), rows, head_options());
}

void Transformer::logits(Context& context, const Tensor& tokens, const Tensor& out) {
    const ArenaScope scope(context.arena);
    const int64_t sequences = tokens.rows(), length = tokens.cols();
    require(out.dtype == DType::f32 && out.cols() == config_.vocab_size &&
                (out.rows() == sequences || out.rows() == tokens.count()),
            "the logits of tokens {} do not fit {} {}", tokens.shape.str(), name_of(out.dtype),
            out.shape.str());
    Tensor x = hidden_states(context, tokens);
    if (out.rows() != tokens.count()) {
        const Tensor last = context.arena.allocate(x.dtype, {sequences, config_.hidden_size});
        if (!context.planning()) {
            for (int64_t s = 0; s < sequences; ++s) {
                const int64_t row = (s + 1) * length - 1;
                copy(context, x.slice(row, row + 1), last.slice(s, s + 1));
            }
        }
        x = last;
    }
    head_logits(context, x, head().master, out.reshaped({x.rows(), config_.vocab_size}), head_options());
}

HeadOptions Transformer::head_options() const {
    HeadOptions options;
    if (executed_ == &layers_ && recipe_.lm_head == "fp8") options.operands = HeadOperands::fp8;
    if (options_.allowed.fp8) options.fp8 = options_.allowed.sums();
    options.logits = options_.logits;
    return options;
}

Tensor Transformer::flat_targets(const Tensor& tokens, const Tensor& targets) const {
    require(targets.dtype == DType::i32 && targets.shape == tokens.shape, "targets must be I32 {}, not {} {}",
            tokens.shape.str(), name_of(targets.dtype), targets.shape.str());
    return targets.reshaped({targets.count()});
}

std::string Transformer::first_non_finite(Context& context, const Tensor& tokens, const Tensor& targets,
                                          float scale) {
    for (const Parameter& parameter : parameters_) {
        if (!context.planning() && !is_finite(context, parameter.master))
            return "master of " + parameter.name;
    }
    const ArenaScope scope(context.arena);
    std::string found;
    checks_ = true;
    try {
        begin_step(context);
        forward_backward(context, tokens, targets, scale);
    } catch (const FoundNonFinite& non_finite) {
        found = non_finite.name;
    } catch (const Error& error) {
        found = fmt::format("{}: {}", matrix_of(running_layer_).name, error.what());
    }
    checks_ = false;
    return found;
}

}  // namespace nibble
