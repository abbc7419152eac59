// The passes of a quantiser on a GPU.
#include "quant/cuda_forms.h"
#include "quant/quantize_both.h"
#include "quant/quantize_kernel.cuh"

namespace nibble::cuda {

namespace {

// What begins a call: the counters of its coins and the signs of its rotation, of a step and micro-step that
// may be known only when recorded work is replayed.
struct Beginning {
    RandomKey key;
    SignsDepend signs_depend;
    int rounds;
    uint32_t fixed_signs[2][kMaxRotation / 32];  // unless they depend on the seed

    Beginning(const QuantSpec& spec, const RandomKey& key_, const SignBits* given)
        : key(key_),
          signs_depend(given == nullptr ? nibble::signs_depend(spec, key_.gemm) : SignsDepend{}),
          rounds(spec.rotation_rounds()),
          fixed_signs{} {
        if (signs_depend.on_seed) return;
        const SignBits signs = given != nullptr ? *given : rotation_signs(spec, key);
        for (int i = 0; i < 2 * kMaxRotation; ++i) {
            fixed_signs[i / kMaxRotation][i % kMaxRotation / 32] |= uint32_t{signs[static_cast<size_t>(i)]}
                                                                    << (i % 32);
        }
    }
};

// Two threads, each of which makes the signs of a round.
__global__ void begin_kernel(const __grid_constant__ Beginning b, Scalars* scalars) {
    const int round = static_cast<int>(threadIdx.x);
    const uint32_t step = b.key.step_there != nullptr ? *b.key.step_there : b.key.step;
    const uint32_t micro_step =
        b.key.micro_step_there != nullptr ? *b.key.micro_step_there : b.key.micro_step;
    if (round == 0) {
        scalars->amax = scalars->posthoc = scalars->fault = 0;
        scalars->counter = {step, uint32_t{b.key.layer} << 16 | micro_step << 8 | operand_of(b.key)};
    }
    Philox draw{};
    if (b.signs_depend.on_seed && round < b.rounds) {
        draw = sign_draw(b.key, round, b.signs_depend.on_step ? step : 0,
                         static_cast<uint8_t>(b.signs_depend.on_micro_step ? micro_step : 0));
    }
    for (int i = 0; i < kMaxRotation / 32; ++i)
        scalars->signs[round][i] = b.signs_depend.on_seed ? draw.word[i] : b.fixed_signs[round][i];
}

void begin_pass(const Context& context, const Beginning& beginning, Job& job, Scalars* scalars) {
    job.scalars = scalars;
    job.coins.counter = &scalars->counter;
    launch(context, begin_kernel, 1, 2, 0, beginning, scalars);
}

// tensor=posthoc, the second pass: one thread for each scale byte.
__global__ void posthoc_scales_kernel(const __grid_constant__ Job job) {
    const int64_t group = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    const int64_t in_row = job.padded_cols / kNvfp4Group;
    if (group >= job.rows * in_row) return;
    const float tensor_scale = posthoc_tensor_scale(job.rule, __uint_as_float(job.scalars->posthoc));
    if (group == 0) *job.tensor_scale = scaled(job, tensor_scale);
    // Rows of a tile share a byte, so they share a coin.
    const int64_t row = group / in_row / job.spec.block_rows * job.spec.block_rows;
    job.scales[group] = round_scale(job.spec, job, bf16_decode(job.wide[group]) / tensor_scale,
                                    row * in_row + group % in_row);
}

// Block row, the last pass: from each row's amax to its scale.
__global__ void row_scales_kernel(const __grid_constant__ Job job) {
    const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (row >= job.rows) return;
    float& value = job.fp32_scales[row];
    value = fp32_scale(largest_of(job.spec.element), value).scale;
}

int rows_of_block(Block block) {
    switch (block) {
        case Block::b16x16:
            return 16;
        case Block::b32x32:
            return 32;
        case Block::b128x128:
            return 128;
        default:
            return 1;
    }
}

KernelSpec kernel_spec(const QuantSpec& spec) {
    return {.format = spec.format,
            .element = spec.element,
            .scale = spec.scale,
            .round = spec.round,
            .correct = spec.correct,
            .scale_round = spec.scale_round,
            .tensor = spec.tensor,
            .block_cols = spec.block_size(),
            .block_rows = rows_of_block(spec.block),
            .is_row = spec.has_row_scales(),
            .outer = spec.outer_1x128,
            .out_bf16 = spec.out_bf16,
            .mask = spec.mask_clip,
            .emulation = spec.emulation,
            .rotation = spec.rotation == Rotation::none ? 0 : spec.rotation_size,
            .rounds = spec.rotation_rounds()};
}

// Rows of 16-byte pieces: a thread's 16 columns are whole ones.
bool has_aligned_rows(const Tensor& x, int64_t stride) {
    return reinterpret_cast<uintptr_t>(x.data) % sizeof(uint4) == 0 &&
           static_cast<size_t>(stride) * size_of(x.dtype) % sizeof(uint4) == 0;
}

// x: where the values are; of the forward's bytes, the BF16 that they stand for, without data.
Job make_job(const QuantSpec& spec, const Tensor& x, const RandomKey& key, QuantizedMatrix& out,
             const QuantizeOptions& options) {
    Job job{};
    job.spec = kernel_spec(spec);
    job.rule = nvfp4_rule(spec.range.numerator, spec.range.denominator, spec.cap);
    job.mult = spec.mult;
    job.coins = CoinSource(key);
    job.amax_factor = hadamard_factor(job.spec.rotation);
    job.factor = spec.emulation ? nibble::round_to_bf16(job.amax_factor) : job.amax_factor;
    job.x = x.data;
    job.rows = out.rows;
    job.cols = options.transposed ? x.rows() : out.cols;
    job.stride = options.transposed ? x.cols() : out.cols;
    job.is_bf16 = x.dtype == DType::bf16;
    job.is_vector = has_aligned_rows(x, job.stride);
    job.padded_cols = out.padded_cols;
    const bool keeps_bytes = out.codes.data != nullptr;
    job.codes = keeps_bytes ? out.codes.as<uint8_t>() : nullptr;
    job.scales = keeps_bytes && spec.has_scale_bytes() ? out.scales.as<uint8_t>() : nullptr;
    job.operand = out.operand.data != nullptr ? out.operand.as<Bf16>() : nullptr;
    job.mask = spec.mask_clip ? out.mask.as<uint8_t>() : nullptr;
    job.fp32_scales = spec.has_fp32_scales() ? out.fp32_scales.as<float>() : nullptr;
    job.tensor_scale = out.tensor_scale_ptr();
    job.scale = options.scale;
    return job;
}

// Calls body<kTransposed, kRows>() as the call and its spec need.
template <typename Body>
void with_tiles(const Job& job, bool transposed, Body&& body) {
    const auto with_rows = [&]<bool kTransposed>() {
        job.spec.block_rows > kFewRows ? body.template operator()<kTransposed, kManyRows>()
                                       : body.template operator()<kTransposed, kFewRows>();
    };
    transposed ? with_rows.template operator()<true>() : with_rows.template operator()<false>();
}

template <bool kTransposed, int kRows>
void launch_tiles(const Context& context, void (*kernel)(Job), Job job) {
    const dim3 blocks = divide_tiles(job, kRows);
    const size_t shared = kTransposed ? sizeof(float) * TransposedTile<float, kRows>::kCount : 0;
    if (shared > 40 << 10) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared)),
              "shared memory of a kernel");
    }
    launch(context, kernel, blocks, dim3(kRows * kGroups), shared, job);
}

template <bool kOfRows>
void find_amax(const Context& context, const Job& job, bool transposed) {
    with_tiles(job, transposed, [&]<bool kTransposed, int kRows>() {
        launch_tiles<kTransposed, kRows>(context, amax_kernel<kTransposed, kRows, kOfRows>, job);
    });
}

constexpr int kThreads = 256;
dim3 blocks_of(int64_t count) { return dim3(static_cast<unsigned>(divide_up<int64_t>(count, kThreads))); }

Tensor allocate_scalars(Context& context, int64_t count = 1) {
    return context.arena.allocate(DType::u32, {count * int64_t{sizeof(Scalars) / sizeof(uint32_t)}});
}

// What the passes of a call need in memory of the GPU, beside what they read and write.
struct Scratch {
    Tensor scalars, wide;

    Scratch(Context& context, const QuantizedMatrix& out)
        : scalars(allocate_scalars(context)),
          wide(context.arena.allocate(DType::bf16, {out.spec.tensor == TensorScale::posthoc ? out.rows : 0,
                                                    out.padded_cols / kNvfp4Group})) {}
};

// Whether a value was not finite, where the context does not take note of it.
bool has_fault(const Context& context, const Job& job) {
    if (context.fault != nullptr) return false;
    uint32_t fault = 0;
    cuda::copy(context, {job.fault, DType::u32, Device::cuda, {1}}, {&fault, DType::u32, Device::cpu, {1}});
    return fault != 0;
}
[[noreturn]] void fail_not_finite_there(const Context& context, const Tensor& x, std::string_view name) {
    Buffer here(x.dtype, x.shape);
    cuda::copy(context, x, here.tensor());
    fail_not_finite(here.tensor(), name);
}

// The passes of one call. True if a value was not finite, where the context does not take note of it.
// transpose: where the codes go transposed, too, by has_transposing_kernel(); or null.
bool run_passes(const Context& context, Job job, const RandomKey& key, const Scratch& scratch,
                const QuantizedMatrix& out, const QuantizeOptions& options,
                const QuantizedMatrix* transpose = nullptr) {
    const QuantSpec& spec = out.spec;
    begin_pass(context, Beginning(spec, key, options.signs), job,
               static_cast<Scalars*>(scratch.scalars.data));
    job.fault = context.fault != nullptr ? context.fault : &job.scalars->fault;
    job.wide = static_cast<Bf16*>(scratch.wide.data);

    // Where the amax comes from: the step before, the producer of x, or a pass of its own.
    const bool is_known = options.known_amax != nullptr;
    const bool is_needed = options.amax != nullptr || spec.takes_amax_of_tensor();
    auto* const found = reinterpret_cast<float*>(&job.scalars->amax);
    job.amax = is_known ? options.known_amax : found;
    if (spec.tensor == TensorScale::delayed) job.previous_amax = options.previous_amax;
    const bool is_hot = has_hot_kernels(job, options.transposed);
    if (is_needed && !is_known) (is_hot ? find_amax_hot : find_amax<false>)(context, job, options.transposed);
    if (options.amax != nullptr) {
        check(cudaMemcpyAsync(options.amax, job.amax, sizeof(float), cudaMemcpyDefault, context.stream),
              "copy of an amax");
    }

    if (spec.has_row_scales()) {
        cuda::fill_zero(context, out.fp32_scales);
        find_amax<true>(context, job, options.transposed);
    }
    if (transpose != nullptr) {
        quantize_with_transpose(context, job, transpose->codes.as<uint8_t>(), transpose->padded_cols);
    } else if (is_hot) {
        quantize_hot(context, job, options.transposed);
    } else {
        with_tiles(job, options.transposed, [&]<bool kTransposed, int kRows>() {
            launch_tiles<kTransposed, kRows>(context, quantize_kernel<kTransposed, kRows>, job);
        });
    }
    if (spec.tensor == TensorScale::posthoc) {
        launch(context, posthoc_scales_kernel, blocks_of(out.scales.count()), dim3(kThreads), 0, job);
    }
    if (spec.has_row_scales()) {
        launch(context, row_scales_kernel, blocks_of(out.rows), dim3(kThreads), 0, job);
    }
    return has_fault(context, job);
}

void quantize_job(Context& context, const Tensor& x, const RandomKey& key, const Job& job,
                  const QuantizedMatrix& out, const QuantizeOptions& options,
                  const QuantizedMatrix* transpose = nullptr) {
    const ArenaScope scope(context.arena);
    const Scratch scratch(context, out);
    if (context.planning()) return;
    if (run_passes(context, job, key, scratch, out, options, transpose))
        fail_not_finite_there(context, x, options.name);
}

}  // namespace

void quantize(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
              QuantizedMatrix& out, const QuantizeOptions& options) {
    quantize_job(context, x, key, make_job(spec, x, key, out, options), out, options);
}

bool quantize_with_transpose(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
                             QuantizedMatrix& out, const QuantizedMatrix& transpose,
                             const QuantizeOptions& options) {
    const Job job = make_job(spec, x, key, out, options);
    if (options.transposed || !has_transposing_kernel(job)) return false;
    quantize_job(context, x, key, job, out, options, &transpose);
    return true;
}

bool find_both_amaxes(Context& context, const Tensor& x, const RotatedSpec& rows, const RotatedSpec& columns,
                      const Tensor& amaxes) {
    const auto is_current = [](const QuantSpec& spec) {
        return spec.takes_amax_of_tensor() && spec.tensor != TensorScale::delayed && !spec.rotates_rows();
    };
    if (x.dtype != DType::bf16 || !is_current(*rows.spec) || !is_current(*columns.spec)) return false;
    const auto job_of = [&](const RotatedSpec& of, bool transposed) {
        QuantizedMatrix shape;
        shape.rows = transposed ? x.cols() : x.rows();
        shape.cols = transposed ? x.rows() : x.cols();
        QuantizeOptions options;
        options.transposed = transposed;
        return make_job(*of.spec, x, {}, shape, options);
    };
    Job of_rows = job_of(rows, false), of_columns = job_of(columns, true);
    if (!has_both_kernel(of_rows, of_columns)) return false;
    const ArenaScope scope(context.arena);
    const Tensor scalars = allocate_scalars(context, 2);
    if (context.planning()) return true;
    cuda::fill_zero(context, amaxes);
    auto* const of_both = static_cast<Scalars*>(scalars.data);
    begin_pass(context, Beginning(*rows.spec, rows.key, rows.signs), of_rows, of_both);
    begin_pass(context, Beginning(*columns.spec, columns.key, columns.signs), of_columns, of_both + 1);
    find_both_amaxes_hot(context, of_rows, of_columns, amaxes.as<float>());
    return true;
}

bool can_quantize_both(DType dtype, const QuantSpec& rows, const QuantSpec& columns, Keep keep) {
    const auto is_whole = [](const QuantSpec& spec) {
        return !spec.rotates_rows() && has_exact_operand(spec);
    };
    return dtype == DType::bf16 && is_whole(rows) && is_whole(columns) &&
           has_quantize_both_kernel(kernel_spec(rows), kernel_spec(columns), keep);
}

void quantize_both(Context& context, const Tensor& x, const OperandOfBoth& rows,
                   const OperandOfBoth& columns) {
    const ArenaScope scope(context.arena);
    const Tensor scalars = allocate_scalars(context, 2);
    if (context.planning()) return;
    auto* const of_both = static_cast<Scalars*>(scalars.data);
    const auto job_of = [&](const OperandOfBoth& of, bool transposed) {
        QuantizedMatrix& out = *of.out;
        require(of.known_amax != nullptr || !out.spec.takes_amax_of_tensor(),
                "{}: the amax of both orientations must be known", of.name);
        QuantizeOptions options;
        options.transposed = transposed;
        Job job = make_job(out.spec, x, of.key, out, options);
        begin_pass(context, Beginning(out.spec, of.key, of.signs), job, of_both + transposed);
        job.fault = context.fault != nullptr ? context.fault : &job.scalars->fault;
        job.amax = of.known_amax != nullptr ? of.known_amax : reinterpret_cast<float*>(&job.scalars->amax);
        return job;
    };
    const Job of_rows = job_of(rows, false), of_columns = job_of(columns, true);
    quantize_both_hot(context, of_rows, of_columns);
    if (has_fault(context, of_rows)) fail_not_finite_there(context, x, rows.name);
    if (has_fault(context, of_columns)) fail_not_finite_there(context, x, columns.name);
}

bool requantize_transposed(Context& context, const QuantizedMatrix& forward, const RandomKey& key,
                           QuantizedMatrix& out, const QuantizeOptions& options) {
    if (forward.spec.element != Element::e2m1 || !forward.spec.has_scale_bytes()) return false;
    QuantizeOptions transposed = options;
    transposed.transposed = true;
    const Tensor shape_only = {nullptr, DType::bf16, Device::cuda, {forward.rows, forward.padded_cols}};
    Job job = make_job(out.spec, shape_only, key, out, transposed);
    job.forward = {forward.codes.as<uint8_t>(), forward.scales.as<uint8_t>(),
                   std::countr_zero(static_cast<unsigned>(forward.spec.block_size())), forward.spec.is_mx()};
    if (!has_hot_kernels(job, true)) return false;
    const ArenaScope scope(context.arena);
    const Scratch scratch(context, out);
    const bool failed = !context.planning() && run_passes(context, job, key, scratch, out, transposed);
    require(!failed,
            "{}: its values are too large to rotate: the sums of the Hadamard transform overflow FP32",
            options.name);
    return true;
}

}  // namespace nibble::cuda
