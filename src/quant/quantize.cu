// The passes of a quantiser on a GPU.
#include "quant/cuda_forms.h"
#include "quant/quantize_kernel.cuh"

namespace nibble::cuda {

namespace {

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

Job make_job(const QuantSpec& spec, const Tensor& x, const RandomKey& key, QuantizedMatrix& out,
             const QuantizeOptions& options) {
    Job job{};
    job.spec = kernel_spec(spec);
    job.rule = nvfp4_rule(spec.range.numerator, spec.range.denominator, spec.cap);
    job.mult = spec.mult;
    job.key = key;
    const SignBits signs = signs_of(spec, key, options);
    for (int i = 0; i < 2 * kMaxRotation; ++i) {
        job.signs[i / kMaxRotation][i % kMaxRotation / 32] |= uint32_t{signs[static_cast<size_t>(i)]}
                                                              << (i % 32);
    }
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

template <bool kOfRows>
void find_amax(const Context& context, const Job& job, bool transposed) {
    with_tiles(job, transposed, [&]<bool kTransposed, int kRows>() {
        const auto of = [&]<typename T>() {
            launch_tiles<T, kTransposed, kRows>(context, amax_kernel<T, kTransposed, kRows, kOfRows>, job);
        };
        job.is_bf16 ? of.template operator()<Bf16>() : of.template operator()<float>();
    });
}

constexpr int kThreads = 256;
dim3 blocks_of(int64_t count) { return dim3(static_cast<unsigned>(divide_up<int64_t>(count, kThreads))); }

}  // namespace

void quantize(Context& context, const QuantSpec& spec, const Tensor& x, const RandomKey& key,
              QuantizedMatrix& out, const QuantizeOptions& options) {
    const ArenaScope scope(context.arena);
    const Tensor scalars = context.arena.allocate(DType::u32, {sizeof(Scalars) / sizeof(uint32_t)});
    const bool is_posthoc = spec.tensor == TensorScale::posthoc;
    const Tensor wide =
        context.arena.allocate(DType::bf16, {is_posthoc ? out.rows : 0, out.padded_cols / kNvfp4Group});
    if (context.planning()) return;

    Job job = make_job(spec, x, key, out, options);
    job.scalars = static_cast<Scalars*>(scalars.data);
    job.fault = context.fault != nullptr ? context.fault : &job.scalars->fault;
    job.wide = static_cast<Bf16*>(wide.data);
    cuda::fill_zero(context, scalars);

    // Where the amax comes from: the step before, the producer of x, or a pass of its own.
    const bool has_tensor_scale = spec.format == Format::nvfp4
                                      ? !spec.outer_1x128 && (spec.tensor == TensorScale::current ||
                                                              spec.tensor == TensorScale::delayed)
                                      : !spec.is_mx() && spec.block == Block::tensor;
    const bool is_known = options.known_amax != nullptr && spec.rotation == Rotation::none;
    const bool is_needed = options.amax != nullptr || has_tensor_scale;
    auto* const found = reinterpret_cast<float*>(&job.scalars->amax);
    job.amax = is_known ? options.known_amax : found;
    if (spec.tensor == TensorScale::delayed) job.previous_amax = options.previous_amax;
    if (is_needed && !is_known) find_amax<false>(context, job, options.transposed);
    if (options.amax != nullptr) {
        check(cudaMemcpyAsync(options.amax, job.amax, sizeof(float), cudaMemcpyDefault, context.stream),
              "copy of an amax");
    }

    if (spec.has_row_scales()) {
        cuda::fill_zero(context, out.fp32_scales);
        find_amax<true>(context, job, options.transposed);
    }
    if (!quantize_hot(context, job, options.transposed)) {
        with_tiles(job, options.transposed, [&]<bool kTransposed, int kRows>() {
            launch_tiles<AnyElement, kTransposed, kRows>(
                context, quantize_kernel<AnySpec, AnyElement, kTransposed, kRows>, job);
        });
    }
    if (is_posthoc) {
        launch(context, posthoc_scales_kernel, blocks_of(out.scales.count()), dim3(kThreads), 0, job);
    }
    if (spec.has_row_scales()) {
        launch(context, row_scales_kernel, blocks_of(out.rows), dim3(kThreads), 0, job);
    }
    if (context.fault != nullptr) return;
    Scalars result;
    cuda::copy(context, scalars, {&result, DType::u32, Device::cpu, scalars.shape});
    if (result.fault == 0) return;
    Buffer here(x.dtype, x.shape);
    cuda::copy(context, x, here.tensor());
    fail_not_finite(here.tensor(), options.name);
}

}  // namespace nibble::cuda
