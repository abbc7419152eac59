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
            .rotation = spec.rotates_columns() ? spec.rotation_size : 0,
            .rounds = spec.rotation_rounds(),
            .rotation_of_rows = spec.rotates_rows() ? spec.rotation_size : 0};
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
    job.stride = x.cols();
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

// What the passes of a call need in memory of the GPU, beside what they read and write.
struct Scratch {
    Tensor scalars, wide;

    Scratch(Context& context, const QuantizedMatrix& out)
        : scalars(context.arena.allocate(DType::u32, {int64_t{sizeof(Scalars) / sizeof(uint32_t)}})),
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

// Begins the passes of one call. Where the amax comes from: the step before, the producer of x, or a pass.
void begin_passes(const Context& context, const QuantSpec& spec, const RandomKey& key, const Scratch& scratch,
                  const QuantizeOptions& options, Job& job) {
    begin_pass(context, Beginning(spec, key, options.signs), job,
               static_cast<Scalars*>(scratch.scalars.data));
    job.fault = context.fault != nullptr ? context.fault : &job.scalars->fault;
    job.wide = static_cast<Bf16*>(scratch.wide.data);
    job.amax = options.known_amax != nullptr ? options.known_amax
                                             : reinterpret_cast<const float*>(&job.scalars->amax);
    if (spec.tensor == TensorScale::delayed) job.previous_amax = options.previous_amax;
}
// Whether a pass must find the amax of the tensor.
bool wants_amax(const QuantSpec& spec, const QuantizeOptions& options) {
    return options.known_amax == nullptr && (options.amax != nullptr || spec.takes_amax_of_tensor());
}
void find_amax_of_tensor(const Context& context, const Job& job, bool transposed) {
    (has_hot_kernels(job.spec, job.is_bf16, transposed) ? find_amax_hot : find_amax<false>)(context, job,
                                                                                            transposed);
}
void find_amaxes_of_rows(const Context& context, const Job& job, bool transposed) {
    (job.spec.rotation == 0 ? find_amaxes_of_rows_hot : find_amax<true>)(context, job, transposed);
}
void give_amax(const Context& context, const Job& job, const QuantizeOptions& options) {
    if (options.amax == nullptr) return;
    check(cudaMemcpyAsync(options.amax, job.amax, sizeof(float), cudaMemcpyDefault, context.stream),
          "copy of an amax");
}
// After the codes: what scales are made of them, or of amaxes of rows. True if a value was not finite, where
// the context does not take note of it.
bool finish_passes(const Context& context, const Job& job, const QuantizedMatrix& out) {
    if (out.spec.tensor == TensorScale::posthoc)
        launch(context, posthoc_scales_kernel, blocks_of(out.scales.count()), dim3(kThreads), 0, job);
    if (out.spec.has_row_scales())
        launch(context, row_scales_kernel, blocks_of(out.rows), dim3(kThreads), 0, job);
    return has_fault(context, job);
}

// The passes of one call; true as finish_passes() says.
// transpose: where the codes go transposed, too, by has_transposing_kernel(); or null.
bool run_passes(const Context& context, Job job, const RandomKey& key, const Scratch& scratch,
                const QuantizedMatrix& out, const QuantizeOptions& options,
                const QuantizedMatrix* transpose = nullptr) {
    const QuantSpec& spec = out.spec;
    begin_passes(context, spec, key, scratch, options, job);
    if (wants_amax(spec, options)) find_amax_of_tensor(context, job, options.transposed);
    give_amax(context, job, options);
    if (spec.has_row_scales()) {
        cuda::fill_zero(context, out.fp32_scales);
        find_amaxes_of_rows(context, job, options.transposed);
    }
    if (transpose != nullptr) {
        quantize_with_transpose(context, job, transpose->codes.as<uint8_t>(), transpose->padded_cols);
    } else if (has_hot_kernels(job.spec, job.is_bf16, options.transposed)) {
        quantize_hot(context, job, options.transposed);
    } else {
        with_tiles(job, options.transposed, [&]<bool kTransposed, int kRows>() {
            launch_tiles<kTransposed, kRows>(context, quantize_kernel<kTransposed, kRows>, job);
        });
    }
    return finish_passes(context, job, out);
}

// The amaxes that two operands of one tensor need, of the tensor or of rows; from one read if both do.
void find_amaxes(const Context& context, const Job& rows, bool of_rows, const Job& columns, bool of_columns) {
    if (!of_rows && !of_columns) return;
    const Job& only = of_rows ? rows : columns;  // if it is
    if (of_rows && of_columns && has_both_amaxes_kernel(rows.spec, columns.spec)) {
        find_both_amaxes_hot(context, rows, columns);
    } else if ((of_rows && of_columns) || only.spec.rotation_of_rows != 0 || only.spec.is_row) {
        find_both_amaxes_any(context, rows, columns);
    } else {
        find_amax_of_tensor(context, only, of_columns);
    }
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

bool can_quantize_both(DType dtype, const QuantSpec& rows, const QuantSpec& columns) {
    if (dtype != DType::bf16) return false;
    const KernelSpec of_rows = kernel_spec(rows), of_columns = kernel_spec(columns);
    if (has_quantize_both_kernel(of_rows, of_columns)) return true;
    // Two reads by fast kernels take less time than one by the kernel for all specs (docs/performance.md).
    return !has_hot_kernels(of_rows, true, false) || !has_hot_kernels(of_columns, true, true);
}

void quantize_both(Context& context, const Tensor& x, const OperandOfBoth& rows,
                   const OperandOfBoth& columns) {
    const OperandOfBoth* const operands[] = {&rows, &columns};
    const ArenaScope scope(context.arena);
    const Scratch scratch[] = {{context, *rows.out}, {context, *columns.out}};
    if (context.planning()) return;
    Job jobs[2];
    bool needs_amax[2];
    for (const int i : {0, 1}) {
        const OperandOfBoth& operand = *operands[i];
        const QuantSpec& spec = operand.out->spec;
        QuantizeOptions options = operand.options;
        options.transposed = i == 1;
        jobs[i] = make_job(spec, x, operand.key, *operand.out, options);
        begin_passes(context, spec, operand.key, scratch[i], options, jobs[i]);
        if (spec.has_row_scales()) cuda::fill_zero(context, operand.out->fp32_scales);
        needs_amax[i] = wants_amax(spec, options) || spec.has_row_scales();
    }
    find_amaxes(context, jobs[0], needs_amax[0], jobs[1], needs_amax[1]);
    for (const int i : {0, 1}) give_amax(context, jobs[i], operands[i]->options);
    const bool is_hot = has_quantize_both_kernel(jobs[0].spec, jobs[1].spec);
    (is_hot ? quantize_both_hot : quantize_both_any)(context, jobs[0], jobs[1]);
    for (const int i : {0, 1}) {
        if (finish_passes(context, jobs[i], *operands[i]->out))
            fail_not_finite_there(context, x, operands[i]->options.name);
    }
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
    // The pass for the amaxes of rows does not read bytes.
    if (!has_hot_kernels(job.spec, job.is_bf16, true) || out.spec.has_row_scales()) return false;
    const ArenaScope scope(context.arena);
    const Scratch scratch(context, out);
    const bool failed = !context.planning() && run_passes(context, job, key, scratch, out, transposed);
    require(!failed,
            "{}: its values are too large to rotate: the sums of the Hadamard transform overflow FP32",
            options.name);
    return true;
}

}  // namespace nibble::cuda
