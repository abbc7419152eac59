// nibble bench kernels: what a training step spends its time in beside quantisers (bench quant) and products
// (bench gemm).
#include <algorithm>
#include <utility>

#include "cli/bench.h"
#include "nn/bias.h"
#include "nn/cuda_forms.h"
#include "nn/dge.h"
#include "nn/nn.h"
#include "nn/outliers.h"
#include "nn/qk_norm.h"
#include "nn/quant_linear_parts.h"
#include "nn/smooth_swiglu.h"
#include "optim/optim.h"
#include "quant/fp8_codes.h"
#include "recipe/recipe.h"
#include "train/speed_of_light.h"

namespace nibble {

namespace {

constexpr double kBf16 = 2, kF32 = 4;  // bytes of an element
constexpr double kNvfp4 = 9.0 / 16, kMxfp4 = 17.0 / 32;

class KernelBench {
  public:
    explicit KernelBench(const BenchOptions& options)
        : report_(options, "kernels"),
          device_(options.device()),
          rate_(copy_rate(device_)),
          peak_(measure_gemm_peak(device_, 1.0)),
          model_(parse_model_config(read_text(options.model), options.model.string())),
          tokens_(options.batch * options.sequence),
          sequence_(options.sequence) {
        fmt::print(
            "{}, {} sequences of {} tokens; copy {:.0f} GB/s, bf16 products {:.1f} TFLOP/s\n"
            "The least time is that of the bytes that must move, at the rate of the copy, or of the "
            "operations, at that of products:\n"
            "{:<48} {:>10} {:>10} {:>9}  share\n",
            options.model.string(), options.batch, options.sequence, rate_ * 1e-9, peak_ * 1e-12, "kernel",
            "MB", "least us", "us");
    }
    void run() {
        embedding();
        norms();
        attention();
        swiglu();
        head();
        update();
        codes();
        parts_of_recipes();
        modifiers();
        report_.finish();
    }

  private:
    // bytes: what must be read and written; operations: of products.
    template <typename Work>
    void measure(const std::string& name, double bytes, Work&& work, double operations = 0) {
        const double seconds = seconds_of(device_, work, true);
        const double least = std::max(bytes / rate_, operations / peak_);
        report_.add({{"kernel", name},
                     {"bytes", bytes},
                     {"operations", operations},
                     {"seconds", seconds},
                     {"least_seconds", least},
                     {"share", least / seconds}},
                    fmt::format("{:<48} {:>10.1f} {:>10.1f} {:>9.1f}  {:.2f}{}", name, bytes * 1e-6,
                                least * 1e6, seconds * 1e6, least / seconds,
                                operations > 0 ? fmt::format(", {:.0f} GFLOP", operations * 1e-9) : ""));
    }
    Buffer random(DType dtype, Shape shape) const { return random_tensor(dtype, shape, device_, 1); }
    Buffer zero(DType dtype, Shape shape) const { return Buffer(dtype, shape, device_); }
    // Of a matrix of so many columns, a row for each token.
    double elements(int64_t cols) const { return static_cast<double>(tokens_) * static_cast<double>(cols); }

    void embedding() {
        const int64_t width = model_.hidden_size;
        const Buffer tokens = random_integers({tokens_}, model_.vocab_size, device_, 1),
                     weight = random(DType::f32, {model_.vocab_size, width}),
                     y = random(DType::bf16, {tokens_, width}),
                     gradient = zero(DType::f32, {model_.vocab_size, width});
        const OnCpu here(tokens.tensor());
        std::vector<int32_t> used(here.tensor().span<int32_t>().begin(), here.tensor().span<int32_t>().end());
        std::ranges::sort(used);
        used.erase(std::unique(used.begin(), used.end()), used.end());
        const double rows =
            static_cast<double>(used.size()) * static_cast<double>(width);  // elements of them
        measure("embedding", kF32 * rows + kBf16 * elements(width),
                [&](Context& c) { embedding_forward(c, tokens.tensor(), weight.tensor(), y.tensor()); });
        measure("embedding, backward", kBf16 * elements(width) + 2 * kF32 * rows,
                [&](Context& c) { embedding_backward(c, y.tensor(), tokens.tensor(), gradient.tensor()); });
    }

    void norms() {
        const int64_t width = model_.hidden_size;
        const Shape shape = {tokens_, width};
        const Buffer x = random(DType::bf16, shape), delta = random(DType::bf16, shape),
                     weight = random(DType::f32, {width}), sum = zero(DType::bf16, shape),
                     y = zero(DType::bf16, shape), rstd = zero(DType::f32, {tokens_}),
                     gradient = zero(DType::f32, {width}), amax = zero(DType::f32, {1});
        measure("residual, rmsnorm and its amax", 4 * kBf16 * elements(width), [&](Context& c) {
            rmsnorm_forward(c, x.tensor(), delta.tensor(), weight.tensor(), 1e-5f, sum.tensor(), y.tensor(),
                            rstd.tensor(), amax.tensor().as<float>());
        });
        measure("rmsnorm, backward, and residual", 4 * kBf16 * elements(width), [&](Context& c) {
            rmsnorm_backward(c, y.tensor(), sum.tensor(), weight.tensor(), rstd.tensor(), delta.tensor(),
                             x.tensor(), gradient.tensor());
        });
    }

    void attention() {
        const AttentionShape shape = {.sequence = sequence_,
                                      .heads = model_.num_attention_heads,
                                      .kv_heads = model_.num_key_value_heads,
                                      .head_dim = model_.head_dim};
        const int64_t size = shape.head_dim, turned = shape.heads + shape.kv_heads;
        const Buffer qkv = random(DType::bf16, {tokens_, model_.qkv_size()}),
                     dqkv = random(DType::bf16, {tokens_, model_.qkv_size()}),
                     cos = random(DType::f32, {sequence_, size / 2}),
                     sin = random(DType::f32, {sequence_, size / 2}),
                     bias = random(DType::f32, {model_.qkv_size()}), q = random(DType::f32, {size}),
                     k = random(DType::f32, {size}), saved = zero(DType::bf16, {tokens_, turned * size}),
                     statistics = zero(DType::f32, {tokens_, turned}), dq = zero(DType::f32, {size}),
                     dk = zero(DType::f32, {size});
        const double turned_elements = elements(turned * size), all = elements(model_.qkv_size());
        const Tensor none;
        for (const bool has_bias : {false, true})
            measure(has_bias ? "bias of queries, keys and values, and rope" : "rope",
                    2 * kBf16 * (has_bias ? all : turned_elements), [&](Context& c) {
                        rope_forward(c, model_.rope_layout, qkv.tensor(), sequence_, shape.heads,
                                     shape.kv_heads, cos.tensor(), sin.tensor(),
                                     has_bias ? bias.tensor() : none);
                    });
        measure("rope, backward", 2 * kBf16 * turned_elements, [&](Context& c) {
            rope_backward(c, model_.rope_layout, dqkv.tensor(), sequence_, shape.heads, shape.kv_heads,
                          cos.tensor(), sin.tensor());
        });
        measure("bias, backward", kBf16 * all,
                [&](Context& c) { bias_backward(c, dqkv.tensor(), bias.tensor()); });
        measure("norms of queries and keys", 3 * kBf16 * turned_elements, [&](Context& c) {
            qk_norm_forward(c, shape, qkv.tensor(), q.tensor(), k.tensor(), 1e-5f, saved.tensor(),
                            statistics.tensor());
        });
        measure("norms of queries and keys, backward", 3 * kBf16 * turned_elements, [&](Context& c) {
            qk_norm_backward(c, shape, dqkv.tensor(), q.tensor(), k.tensor(), saved.tensor(),
                             statistics.tensor(), dq.tensor(), dk.tensor());
        });
        const Buffer heads = random(DType::bf16, {tokens_, model_.qkv_size()}),
                     out = zero(DType::bf16, {tokens_, model_.attention_size()}),
                     dout = random(DType::bf16, {tokens_, model_.attention_size()}),
                     logsumexp = zero(DType::f32, {tokens_, shape.heads});
        // Of a product of queries and keys, or of weights and values: half of the pairs, for attention is
        // causal.
        const double product = elements(model_.attention_size()) * static_cast<double>(sequence_);
        const double bytes = kBf16 * (all + elements(model_.attention_size()));
        measure(
            "attention", bytes,
            [&](Context& c) {
                attention_forward(c, shape, heads.tensor(), out.tensor(), logsumexp.tensor());
            },
            2 * product);
        measure(
            "attention, backward", 2 * bytes,
            [&](Context& c) {
                attention_backward(c, shape, dout.tensor(), heads.tensor(), out.tensor(), logsumexp.tensor(),
                                   dqkv.tensor());
            },
            5 * product);
    }

    void swiglu() {
        const int64_t width = model_.intermediate_size;
        const Buffer gate_up = random(DType::bf16, {tokens_, 2 * width}),
                     h = random(DType::bf16, {tokens_, width}),
                     gradient = zero(DType::bf16, {tokens_, 2 * width}), amax = zero(DType::f32, {1});
        measure("swiglu and its amax", 3 * kBf16 * elements(width), [&](Context& c) {
            swiglu_forward(c, gate_up.tensor(), h.tensor(), amax.tensor().as<float>());
        });
        measure("swiglu, backward, and its amax", 5 * kBf16 * elements(width), [&](Context& c) {
            swiglu_backward(c, h.tensor(), gate_up.tensor(), gradient.tensor(), amax.tensor().as<float>());
        });
    }

    // The products of the head are those of bench gemm.
    void head() {
        if constexpr (kHasCuda) {
            if (device_ == Device::cpu) return;
            const int64_t vocabulary = model_.vocab_size;
            const int64_t rows = std::min(tokens_, (int64_t{1} << 28) / vocabulary);
            const double logits = static_cast<double>(rows) * static_cast<double>(vocabulary);
            const Buffer f32 = random(DType::f32, {rows, vocabulary}),
                         bf16 = random(DType::bf16, {rows, vocabulary}),
                         targets = random_integers({rows}, vocabulary, device_, 1),
                         losses = zero(DType::f32, {rows});
            const auto softmax = [&](const Buffer& from, const Buffer& to) {
                return [&](Context& c) {
                    if (!c.planning())
                        cuda::loss_rows(c, {.scale = 1, .is_bf16 = true}, from.tensor(), targets.tensor(),
                                        losses.tensor(), to.tensor());
                };
            };
            measure("softmax, loss and gradients of logits in f32", (kF32 + kBf16) * logits,
                    softmax(f32, bf16));
            measure("softmax, loss and gradients in bf16, in place", 2 * kBf16 * logits, softmax(bf16, bf16));
        }
    }

    void update() {
        const auto count = static_cast<double>(model_.parameters());
        const Shape shape = {model_.parameters()};
        const Buffer master = zero(DType::f32, shape), bf16 = zero(DType::bf16, shape),
                     norm = zero(DType::f64, {2}), factor = random(DType::f32, {1});
        for (const DType gradients : {DType::f32, DType::bf16}) {
            const Buffer gradient = zero(gradients, shape);
            const bool is_narrow = gradients == DType::bf16;
            const double bytes = is_narrow ? kBf16 : kF32;
            const std::string suffix = is_narrow ? ", gradients and moments in bf16" : "";
            const Tensor tensors[] = {gradient.tensor()};
            measure("gradients cleared" + suffix, bytes * count, [&](Context& c) {
                if (!c.planning()) fill_zero(c, gradient.tensor());
            });
            measure("norm of gradients" + suffix, bytes * count,
                    [&](Context& c) { global_norm(c, tensors, norm.tensor()); });
            AdamW optimizer({{"w", master.tensor(), gradient.tensor(), true}}, {.moments = gradients});
            bool has_begun = false;
            measure("adamw" + suffix, (2 * kF32 + bytes + 4 * bytes) * count, [&](Context& c) {
                if (c.planning()) return;
                if (!std::exchange(has_begun, true)) optimizer.begin_update(c, 1, 1e-4);
                optimizer.finish_update(c, factor.tensor());
            });
        }
        measure("weights in bf16", (kF32 + kBf16) * count,
                [&](Context& c) { nibble::detail::convert(c, master.tensor(), bf16.tensor()); });
    }

    // What is made of bytes that a quantiser left.
    void codes() {
        const int64_t width = model_.intermediate_size;
        const Buffer x = random(DType::bf16, {tokens_, width});
        const double count = elements(width);
        const auto measure_of = [&](const char* name, const QuantSpec& spec, double bytes, auto&& work) {
            const QuantizedTensor made(x, spec);
            measure(name, bytes * count, [&](Context& c) { work(c, made.matrix); });
        };
        const QuantSpec nvfp4 = parse_spec("nvfp4 1x16"), mxfp4 = parse_spec("mxfp4 1x32");
        const auto to_values = [](Context& c, const QuantizedMatrix& q) {
            dequantize_operand(c, q, c.arena.allocate(DType::bf16, {q.rows, q.padded_cols}));
        };
        measure_of("values of nvfp4 bytes", nvfp4, kNvfp4 + kBf16, to_values);
        measure_of("values of mxfp4 bytes", mxfp4, kMxfp4 + kBf16, to_values);
        measure_of("values and fp32 scales transposed (jetfire)", parse_spec("fp4 32x32"),
                   0.5 + kF32 / 32 + kBf16 + kF32 / 32,
                   [](Context& c, const QuantizedMatrix& q) { transposed_groups(c, q); });
        measure_of("mxfp4 bytes folded to fp8 codes", mxfp4, kMxfp4 + 1,
                   [](Context& c, const QuantizedMatrix& q) { folded_to_fp8(c, q, Element::e5m2); });
        measure_of("fp8 codes transposed", parse_spec("fp8:e4m3 tensor"), 2,
                   [](Context& c, const QuantizedMatrix& q) { transposed_codes(c, q); });
        // The amax of what is rotated comes from a read of its own.
        const Keep keep = device_ == Device::cuda ? Keep::operand : Keep::bytes;
        const Recipe quartet2 = find_recipe("quartet2");
        measure_of("nvfp4 bytes quantised again (quartet2)", quartet2.fprop_x.spec,
                   2 * kNvfp4 + (keep == Keep::operand ? kBf16 : kNvfp4),
                   [&](Context& c, const QuantizedMatrix& q) {
                       QuantizedMatrix out =
                           allocate_quantized(c.arena, quartet2.wgrad_x.spec, q.padded_cols, q.rows, keep);
                       requantize_transposed(c, q, {.seed = 1}, out);
                   });
    }

    void parts_of_recipes() {
        const int64_t width = model_.intermediate_size;
        const Buffer x = random(DType::bf16, {tokens_, width}), y = zero(DType::bf16, {tokens_, width}),
                     range = random(DType::f32, {2}),
                     rows = random(DType::f32, {(tokens_ + 127) / 128 * 128, width}),
                     w = random(DType::f32, {model_.hidden_size, width}),
                     dw = random(DType::f32, {model_.hidden_size, width});
        const double count = elements(width), weights = static_cast<double>(w.tensor().count());
        const QuantSpec turned = find_recipe("quartet").fprop_x.spec;
        const int64_t padded = turned.padded(width);
        const Buffer gradient = random(DType::f32, {tokens_, padded}),
                     mask = zero(DType::u8, {tokens_, padded / 8}), sum = zero(DType::f32, {tokens_, width});
        const auto read = static_cast<double>(gradient.bytes() + mask.bytes());
        measure("dx masked, turned back (quartet)", read + kBf16 * count, [&](Context& c) {
            if (!c.planning())
                nibble::detail::finish_gradient(c, gradient.tensor(), mask.tensor(), &turned, {}, y.tensor(),
                                                false);
        });
        measure("dw masked, turned back, added (quartet)", read + 2 * kF32 * count, [&](Context& c) {
            if (!c.planning())
                nibble::detail::finish_gradient(c, gradient.tensor(), mask.tensor(), &turned, {},
                                                sum.tensor(), true);
        });
        measure("two exact quantiles (dge-occ)", kBf16 * count,
                [&](Context& c) { quantile_range(c, x.tensor(), 0.99, range.tensor()); });
        measure("clamped to them (dge-occ)", 2 * kBf16 * count, [&](Context& c) {
            if (!c.planning()) clamp(c, x.tensor(), range.tensor(), y.tensor());
        });
        measure("slope of dge (dge-occ)", 3 * kF32 * weights,
                [&](Context& c) { multiply_by_dge_slope(c, Dge{}, w.tensor(), dw.tensor()); });
        measure("turned back down the rows, f32 (halo)", 2.0 * static_cast<double>(rows.bytes()),
                [&](Context& c) { unrotate_rows(c, 128, {}, rows.tensor()); });
    }

    void modifiers() {
        const Shape shape = {model_.hidden_size, model_.intermediate_size};
        const auto count = static_cast<double>(shape.count());
        const QuantSpec spec = parse_spec("nvfp4 1x16");
        const Buffer w = random(DType::f32, shape), average = random(DType::f32, shape),
                     path = zero(DType::f32, shape), quantized_path = zero(DType::f32, shape),
                     hidden = random(DType::bf16, {tokens_, shape[1]}),
                     scales = random(DType::f32, {shape[1]});
        // The amax of the weight comes from a read of its own.
        measure("cage", 3 * kF32 * count,
                [&](Context& c) { cage_update(c, spec, {.seed = 1}, 1e-6, w.tensor()); });
        measure("q-ema", 3 * kF32 * count,
                [&](Context& c) { qema_update(c, 0.999, false, w.tensor(), average.tensor()); });
        const Oscillation seen = {path.tensor(), quantized_path.tensor(), average.tensor()};
        measure("oscireset, a step of its window", 9 * kF32 * count,
                [&](Context& c) { oscireset_watch(c, spec, {.seed = 1}, w.tensor(), seen); });
        measure("largest of each channel (smooth-swiglu)", kBf16 * elements(shape[1]),
                [&](Context& c) { channel_scales(c, {.scale = "exact"}, hidden.tensor(), scales.tensor()); });
        measure("channels scaled (smooth-swiglu)", 2 * kBf16 * elements(shape[1]), [&](Context& c) {
            if (!c.planning()) multiply_columns(c, hidden.tensor(), scales.tensor());
        });
    }

    Report report_;
    Device device_;
    double rate_, peak_;
    ModelConfig model_;
    int64_t tokens_, sequence_;
};

}  // namespace

void bench_kernels(const BenchOptions& options) { KernelBench(options).run(); }

}  // namespace nibble
