#include "train/self_check.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <limits>

#include "core/cuda.h"
#include "gemm/matmul.h"
#include "nn/bias.h"
#include "nn/nn.h"
#include "nn/qk_norm.h"
#include "nn/smooth_swiglu.h"
#include "optim/optim.h"
#include "train/random_numbers.h"

namespace nibble {

namespace {

constexpr int64_t kSequence = 64, kTokens = 2 * kSequence;
constexpr AttentionShape kAttention = {.sequence = kSequence, .heads = 4, .kv_heads = 2, .head_dim = 64};
constexpr int64_t kHeads = kAttention.heads + 2 * kAttention.kv_heads;
constexpr int64_t kWidth = 384, kVocabulary = 1024;

// The same numbers on both devices.
Tensor random(const Context& context, DType dtype, Shape shape, uint64_t seed) {
    const Tensor there = context.arena.allocate(dtype, shape);
    if (context.planning()) return there;
    const Buffer here(dtype, shape);
    fill_about_normal(here.tensor(), seed);
    copy(context, here.tensor(), there);
    return there;
}
Tensor random_integers(const Context& context, int64_t count, int64_t limit) {
    const Tensor there = context.arena.allocate(DType::i32, {count});
    if (context.planning()) return there;
    const Buffer here(DType::i32, {count});
    fill_below(here.tensor(), limit, 9);
    copy(context, here.tensor(), there);
    return there;
}
Tensor random_heads(const Context& context, DType dtype, uint64_t seed) {
    return random(context, dtype, {kTokens, kHeads * kAttention.head_dim}, seed);
}
Tensor zeros(const Context& context, DType dtype, Shape shape) {
    const Tensor there = context.arena.allocate(dtype, shape);
    if (!context.planning()) fill_zero(context, there);
    return there;
}

// Makes its input, calls what is checked, and returns what that left.
using Work = std::function<std::vector<Tensor>(Context&)>;

std::vector<std::vector<double>> results_of(Device device, const Work& work) {
    Arena arena(device);
    Context context{arena};
    context.seed = 1;
    {
        const ArenaScope scope(arena);
        work(context);
    }
    arena.commit();
    std::vector<std::vector<double>> results;
    for (const Tensor& result : work(context)) {
        synchronize(context);
        const OnCpu here(result);
        std::vector<double> values;
        if (result.dtype == DType::f64) {
            const auto all = here.tensor().span<double>();
            values.assign(all.begin(), all.end());
        } else {
            with_elements(here.tensor(), [&](const auto* all) {
                for (int64_t i = 0; i < result.count(); ++i) values.push_back(double{to_float(all[i])});
            });
        }
        results.push_back(std::move(values));
    }
    return results;
}

// most: of each result; the last is that of all that follow. The check tells of the result that comes nearest
// to its own.
KernelCheck compare(std::string name, std::vector<double> most, const Work& work) {
    KernelCheck check{std::move(name), 0, most[0]};
    const auto expected = results_of(Device::cpu, work), found = results_of(Device::cuda, work);
    for (size_t r = 0; r < expected.size(); ++r) {
        const double error = largest_difference(expected[r], found[r]),
                     allowed = most[std::min(r, most.size() - 1)];
        if (error / allowed > check.error / check.most) {
            check.error = error;
            check.most = allowed;
        }
    }
    return check;
}
KernelCheck compare(std::string_view name, DType activations, std::vector<double> most, const Work& work) {
    return compare(fmt::format("{}, {}", name, activations == DType::bf16 ? "bf16" : "f32"), std::move(most),
                   work);
}
// What is wrong is wrong by much more; another order of sums gives 5e-6, and in BF16 6e-3.
double most_of(DType activations) { return activations == DType::bf16 ? 0x1p-5 : 1e-4; }

// Whether FP8 tensor cores make a product of a layer.
bool multiplies_in_fp8(const Recipe& recipe, const AllowedProducts& allowed) {
    const auto is_in_fp8 = [&](const OperandSpec& a, const OperandSpec& b) {
        return product_way(a, b, allowed, Device::cuda) != ProductWay::emulated;
    };
    return is_in_fp8(recipe.fprop_x, recipe.fprop_w) || is_in_fp8(recipe.dgrad_dy, recipe.dgrad_w) ||
           is_in_fp8(recipe.wgrad_dy, recipe.wgrad_x);
}

}  // namespace

double largest_difference(std::span<const double> expected, std::span<const double> found) {
    double largest = 0, difference = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        if (!std::isfinite(expected[i]) || !std::isfinite(found[i]))
            return std::numeric_limits<double>::infinity();
        largest = std::max(largest, std::fabs(expected[i]));
        difference = std::max(difference, std::fabs(found[i] - expected[i]));
    }
    return difference == 0 ? 0 : difference / largest;
}

std::vector<KernelCheck> check_kernels(const KernelKinds& kinds) {
    const DType type = kinds.activations;
    const bool is_bf16 = type == DType::bf16;
    std::vector<KernelCheck> checks;
    const auto add = [&](const char* name, const Work& work) {
        checks.push_back(compare(name, type, {most_of(type)}, work));
    };
    const auto heads = [&](Context& c, uint64_t seed) { return random_heads(c, type, seed); };

    add("embedding", [&](Context& c) {
        const Tensor tokens = random_integers(c, kTokens, kVocabulary),
                     weight = random(c, DType::f32, {kVocabulary, kWidth}, 1),
                     dy = random(c, type, {kTokens, kWidth}, 2), y = zeros(c, type, {kTokens, kWidth}),
                     dweight = zeros(c, DType::f32, {kVocabulary, kWidth});
        embedding_forward(c, tokens, weight, y);
        embedding_backward(c, dy, tokens, dweight);
        return std::vector{y, dweight};
    });
    add("rmsnorm", [&](Context& c) {
        const Shape shape = {kTokens, kWidth};
        const Tensor x = random(c, type, shape, 1), delta = random(c, type, shape, 2),
                     weight = random(c, DType::f32, {kWidth}, 3), dy = random(c, type, shape, 4),
                     sum = zeros(c, type, shape), y = zeros(c, type, shape), dx = random(c, type, shape, 5),
                     rstd = zeros(c, DType::f32, {kTokens}), dweight = zeros(c, DType::f32, {kWidth});
        rmsnorm_forward(c, x, delta, weight, 1e-5f, sum, y, rstd);
        rmsnorm_backward(c, dy, sum, weight, rstd, dx, dx, dweight);
        return std::vector{sum, y, dx, dweight};
    });
    const auto add_rope = [&](const char* name, RopeLayout layout) {
        add(name, [&, layout](Context& c) {
            const int64_t half = kAttention.head_dim / 2;
            const Tensor qkv = heads(c, 1), dqkv = heads(c, 2), bias = random(c, DType::f32, {qkv.cols()}, 3),
                         cos = random(c, DType::f32, {kSequence, half}, 4),
                         sin = random(c, DType::f32, {kSequence, half}, 5),
                         dbias = zeros(c, DType::f32, {qkv.cols()});
            rope_forward(c, layout, qkv, kSequence, kAttention.heads, kAttention.kv_heads, cos, sin, bias);
            rope_backward(c, layout, dqkv, kSequence, kAttention.heads, kAttention.kv_heads, cos, sin);
            bias_backward(c, dqkv, dbias);
            return std::vector{qkv, dqkv, dbias};
        });
    };
    add_rope("bias and rope", RopeLayout::half_split);
    add_rope("bias and rope of neighbours", RopeLayout::interleaved);
    add("norms of queries and keys", [&](Context& c) {
        const int64_t size = kAttention.head_dim, normed = kAttention.heads + kAttention.kv_heads;
        const Tensor qkv = heads(c, 1), dqkv = heads(c, 2), q = random(c, DType::f32, {size}, 3),
                     k = random(c, DType::f32, {size}, 4), x = zeros(c, type, {kTokens, normed * size}),
                     rstd = zeros(c, DType::f32, {kTokens, normed}), dq = zeros(c, DType::f32, {size}),
                     dk = zeros(c, DType::f32, {size});
        qk_norm_forward(c, kAttention, qkv, q, k, 1e-5f, x, rstd);
        qk_norm_backward(c, kAttention, dqkv, q, k, x, rstd, dq, dk);
        return std::vector{qkv, dqkv, dq, dk};
    });
    checks.push_back(check_attention(type, kinds.deterministic_attention));
    add("swiglu", [&](Context& c) {
        const Tensor gate_up = random(c, type, {kTokens, 2 * kWidth}, 1),
                     dh = random(c, type, {kTokens, kWidth}, 2), h = zeros(c, type, {kTokens, kWidth}),
                     dgate_up = zeros(c, type, gate_up.shape);
        swiglu_forward(c, gate_up, h);
        swiglu_backward(c, dh, gate_up, dgate_up);
        return std::vector{h, dgate_up};
    });
    checks.push_back(check_head(type, {}));
    checks.push_back(check_head(type, {.operands = HeadOperands::fp8, .fp8 = kinds.head_sums}));
    if (is_bf16) checks.push_back(check_head(type, {.logits = DType::bf16}));
    return checks;
}

KernelCheck check_attention(DType activations, bool deterministic) {
    const std::string_view name = deterministic ? "attention" : "attention, gradients in any order";
    return compare(name, activations, {most_of(activations)}, [=](Context& c) {
        AttentionShape shape = kAttention;
        shape.deterministic = deterministic;
        const Shape out_shape = {kTokens, kAttention.heads * kAttention.head_dim};
        const Tensor qkv = random_heads(c, activations, 1), dqkv = zeros(c, activations, qkv.shape),
                     out = zeros(c, activations, out_shape), dout = random(c, activations, out_shape, 2),
                     logsumexp = zeros(c, DType::f32, {kTokens, kAttention.heads});
        attention_forward(c, shape, qkv, out, logsumexp);
        attention_backward(c, shape, dout, qkv, out, logsumexp, dqkv);
        return std::vector{out, dqkv};
    });
}

KernelCheck check_head(DType activations, const HeadOptions& options) {
    const bool is_fp8 = options.operands == HeadOperands::fp8;
    const bool on_fp8_cores = options.fp8 && has_fp8_products(Device::cuda);
    std::string name = is_fp8 ? "head in fp8 and loss" : "head and loss";
    if (on_fp8_cores) name += ", on fp8 tensor cores";
    if (on_fp8_cores && *options.fp8 == Fp8Sums::fast) name += " with fast sums";
    if (options.logits == DType::bf16) name += " of logits in bf16";
    // Of the loss, a sum over tokens, and of gradients: one of E5M2 that falls to the other side of a tie
    // differs by an eighth of itself.
    const std::vector<double> most = {on_fp8_cores ? 1e-2 : 1e-3, is_fp8 ? 0.15 : most_of(activations)};
    return compare(name, activations, most, [=](Context& c) {
        const Tensor x = random(c, activations, {kTokens, kWidth}, 1),
                     weight = random(c, DType::f32, {kVocabulary, kWidth}, 2),
                     targets = random_integers(c, kTokens, kVocabulary),
                     dx = zeros(c, activations, {kTokens, kWidth}),
                     dweight = zeros(c, DType::f32, {kVocabulary, kWidth}),
                     totals = zeros(c, DType::f64, {2});
        head_loss_backward(c, x, weight, targets, 1.0f / kTokens, dx, dweight, totals, options);
        return std::vector{totals, dx, dweight};
    });
}

KernelCheck check_update(DType gradients, DType moments) {
    std::string name = "norm of gradients, clipping and adamw";
    if (gradients == DType::bf16) name += ", gradients in bf16";
    if (moments == DType::bf16) name += ", moments in bf16";
    return compare(name, {1e-6}, [=](Context& c) {
        const Shape shape = {300, 77};
        const Tensor master = random(c, DType::f32, shape, 1), gradient = random(c, gradients, shape, 2),
                     norm = zeros(c, DType::f64, {2}), losses = zeros(c, DType::f64, {2}),
                     factor = zeros(c, DType::f32, {1}), m = zeros(c, moments, shape),
                     v = zeros(c, moments, shape);
        global_norm(c, std::span(&gradient, 1), norm);
        if (c.planning()) return std::vector<Tensor>();
        clip_factor(c, norm, losses, 1.0, factor);
        AdamW optimizer({{"w", master, gradient, true}}, {.moments = moments});
        optimizer.begin_update(c, 1, 1e-2);
        optimizer.finish_update(c, factor);
        copy(c, optimizer.state()[0].m, m);
        copy(c, optimizer.state()[0].v, v);
        synchronize(c);  // the optimizer's memory ends here
        return std::vector{norm, factor, master, m, v};
    });
}

KernelCheck check_modifiers() {
    return compare("modifiers", {1e-6}, [](Context& c) {
        constexpr int64_t kRows = 64, kCols = 512;
        const QuantSpec spec = parse_spec("nvfp4 1x16");
        const Shape shape = {kRows, kCols};
        const Tensor w = random(c, DType::f32, shape, 1), step = random(c, DType::f32, shape, 2),
                     average = zeros(c, DType::f32, shape), divided = zeros(c, DType::f32, shape),
                     hidden = random(c, DType::bf16, shape, 3), scales = zeros(c, DType::f32, {kCols}),
                     factors = random(c, DType::f32, {kCols}, 4);
        const Oscillation seen = {zeros(c, DType::f32, shape), zeros(c, DType::f32, shape),
                                  zeros(c, DType::f32, shape)};
        oscireset_begin(c, step, seen);  // as if w had been elsewhere: its code changes
        cage_update(c, spec, {.seed = 1}, 0.01, w);
        qema_update(c, 0.9, true, w, average);
        qema_update(c, 0.9, false, step, average);
        oscireset_watch(c, spec, {}, w, seen);
        oscireset_reset(c, spec, {}, 1.0, w, seen);
        channel_scales(c, {.scale = "exact"}, hidden, scales);
        multiply_columns(c, hidden, factors);
        divide_columns(c, w, factors, divided);
        return std::vector{w, average, seen.weight_path, seen.quantized_path, scales, hidden, divided};
    });
}

KernelCheck check_layer(const Recipe& recipe, const AllowedProducts& allowed) {
    constexpr int64_t kIn = 256, kOut = 384;
    // Operands have the same bytes: what is left is the order of FP32 sums, or the narrower ones of FP8.
    const bool is_narrow = multiplies_in_fp8(recipe, allowed);
    const double most = !is_narrow ? 1e-4 : allowed.fp8_fast_accumulation ? 1e-1 : 2e-2;
    const QuantLinear layer(recipe, kIn, kOut, 3, allowed);
    const char* const how = !is_narrow                      ? ""
                            : allowed.fp8_fast_accumulation ? ", fp8 with fast sums"
                                                            : ", fp8";
    return compare(fmt::format("linear layer of {}{}", recipe.name, how), {most}, [&](Context& c) {
        const Tensor w = random(c, DType::f32, {kOut, kIn}, 1), x = random(c, DType::bf16, {kTokens, kIn}, 2),
                     dy = random(c, DType::bf16, {kTokens, kOut}, 3),
                     y = zeros(c, DType::f32, {kTokens, kOut}), dx = zeros(c, DType::f32, {kTokens, kIn}),
                     dw = zeros(c, DType::f32, {kOut, kIn});
        const Buffer history(DType::f32, {2, 6}, c.device);  // there in planning passes, too
        std::vector<float> amaxes(12, 4.0f);
        copy(view_of(amaxes, {2, 6}), history.tensor());
        const QuantLinear::Weight weight = layer.prepare(
            c, w, layer.needs_history() ? reinterpret_cast<AmaxHistory*>(history.data()) : nullptr);
        const QuantLinear::Saved saved = layer.forward(c, weight, x, y);
        layer.backward(c, weight, saved, dy, dx, dw);
        if (!c.planning()) synchronize(c);  // the history ends here
        return std::vector{y, dx, dw};
    });
}

std::vector<KernelCheck> check_everything() {
    constexpr DType kTypes[] = {DType::f32, DType::bf16};
    std::vector<KernelCheck> checks = {check_modifiers()};
    for (const DType gradients : kTypes)
        for (const DType moments : kTypes) checks.push_back(check_update(gradients, moments));
    for (const DType activations : kTypes) {
        std::ranges::move(check_kernels({activations}), std::back_inserter(checks));
        checks.push_back(check_attention(activations, false));
    }
    for (const Recipe& recipe : builtin_recipes()) checks.push_back(check_layer(recipe));
    for (const bool fast : {false, true}) {
        if (!has_fp8_products(Device::cuda)) break;
        const AllowedProducts allowed = {.fp8 = true, .fp8_folded = true, .fp8_fast_accumulation = fast};
        for (const Recipe& recipe : builtin_recipes())
            if (multiplies_in_fp8(recipe, allowed)) checks.push_back(check_layer(recipe, allowed));
        for (const DType activations : kTypes)
            checks.push_back(check_head(activations, {.operands = HeadOperands::fp8, .fp8 = allowed.sums()}));
    }
    return checks;
}

void require_well(std::span<const KernelCheck> checks) {
    const auto bad = std::ranges::find_if_not(checks, &KernelCheck::is_well);
    if (bad == checks.end()) return;
    fail(
        "{}: its kernels are off by {:.1e} of the largest number on this GPU, {:.1e} at most is rounding; "
        "train elsewhere, and see what `nibble doctor` says",
        bad->name, bad->error, bad->most);
}

}  // namespace nibble
