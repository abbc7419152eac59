// Products by cuBLASLt. Quantised operands are expanded first, which is exact, unless FP8 tensor cores may
// multiply their codes; scales of the whole operands are the product's alpha; factors of rows and columns are
// applied to FP32 sums afterwards, or by the library, where it can: in FP8, on Hopper. FP32 scales that vary
// along K are for a kernel of our own (group_product.h).
#include "core/has_gpu.h"
#include "gemm/cuda_forms.h"
#include "gemm/gpu_product.h"
#include "gemm/group_product.h"
#include "gemm/matmul_shape.h"
#include "gemm/pack.cuh"

namespace nibble::cuda {

namespace {

// Tensor cores read BF16 at full speed where contiguous dimensions are multiples of 8, 16 bytes: other
// products are seven times as slow, and are padded with zeros.
int64_t padded(const MatmulShape& shape, int64_t size) {
    return shape.operands == DType::bf16 ? divide_up<int64_t>(size, 8) * 8 : size;
}

// What the library reads, with at least `rows` rows: the operand itself, or a copy in the arena.
Tensor values_of(Context& context, const Operand& operand, int64_t rows, const MatmulShape& shape) {
    if (operand.quantized != nullptr) {
        const QuantizedMatrix& q = *operand.quantized;
        const bool is_kept = q.operand.shape.rank() > 0 && shape.operands == DType::bf16;
        if (is_kept && rows == q.rows) return q.operand;
        const Tensor values = context.arena.allocate(shape.operands, {rows, q.padded_cols});
        if (context.planning()) return values;
        if (is_kept) {
            cuda::convert(context, q.operand, values);
        } else {
            dequantize_operand(context, q, values.slice(0, q.rows));
            cuda::fill_zero(context, values.slice(q.rows, rows));
        }
        return values;
    }
    const Tensor plain = operand.plain.reshaped({operand.plain.rows(), operand.plain.cols()});
    const int64_t k = padded(shape, shape.k);
    const Shape wanted = operand.is_transposed ? Shape{k, padded(shape, rows)} : Shape{rows, k};
    const bool is_rounded = plain.dtype == DType::bf16 || !shape.rounds;
    const bool is_aligned = shape.operands == DType::f32 || address_alignment(plain.data) >= 16;
    if (plain.dtype == shape.operands && is_rounded && is_aligned && plain.shape == wanted) return plain;
    const Tensor copy = context.arena.allocate(shape.operands, wanted);
    if (!context.planning()) cuda::convert(context, plain, copy, shape.rounds);
    return copy;
}

// Codes that FP8 tensor cores multiply as they are: no scale varies along K. The type of their elements.
std::optional<DType> fp8_type(const Operand& operand) {
    const QuantizedMatrix* const q = operand.quantized;
    if (q == nullptr || q->spec.format != Format::fp8 || q->spec.has_fp32_groups()) return {};
    if (q->codes.shape.rank() == 0) return {};
    return q->spec.element == Element::e5m2 ? DType::e5m2 : DType::e4m3;
}

// Whether the library may multiply the codes of A and B [n, k]: it wants rows of 16 bytes everywhere, and one
// operand in E4M3.
bool are_multiplied_as_codes(const Operand& a, const Operand& b, const MatmulShape& shape) {
    const std::optional<DType> of_a = fp8_type(a), of_b = fp8_type(b);
    if (!of_a || !of_b || (*of_a == DType::e5m2 && *of_b == DType::e5m2)) return false;
    const QuantizedMatrix &qa = *a.quantized, &qb = *b.quantized;
    return qa.padded_cols == qb.padded_cols && qa.padded_cols % kFp8Multiple == 0 &&
           shape.n % kFp8Multiple == 0 && address_alignment(qa.codes.data) >= 16 &&
           address_alignment(qb.codes.data) >= 16;
}

// The numbers that a product reads on the GPU.
struct Factors {
    float alpha, beta;
};

// The scale of an operand, on the GPU, or null, and what it lost (matmul_shape.h).
struct ScaleOf {
    const float* scale;
    double lost;

    explicit ScaleOf(const Operand& operand)
        : scale(static_cast<const float*>(scale_of(operand).data)), lost(lost_of_scale(operand)) {}
    __device__ double value() const { return scale == nullptr ? 1.0 : *scale * lost; }
};

// One thread.
__global__ void form_factors(float alpha, ScaleOf a, ScaleOf b, float beta, Factors* out) {
    *out = {static_cast<float>(double{alpha} * a.value() * b.value()), beta};
}

// What one side's lines of C, its rows or its columns, are multiplied with: the operand's scale, the scales
// of its rows and other factors; the last two may be null. F32 [lines].
struct LineFactors {
    ScaleOf scale;
    const float *row_scales, *others;
    int64_t lines;
    float* out;

    LineFactors(const Operand& operand, const float* others_, const Tensor& out_)
        : scale(operand),
          row_scales(static_cast<const float*>(row_scales_of(operand).data)),
          others(others_),
          lines(out_.count()),
          out(out_.as<float>()) {}
};
__global__ void line_factors_kernel(LineFactors rows, LineFactors cols) {
    const LineFactors& side = blockIdx.y == 0 ? rows : cols;
    const auto scale = static_cast<float>(side.scale.value());
    const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
    if (i >= side.lines) return;
    float factor = scale;
    if (side.row_scales != nullptr) factor *= side.row_scales[i];
    if (side.others != nullptr) factor *= side.others[i];
    side.out[i] = factor;
}
void form_line_factors(const Context& context, const LineFactors& rows, const LineFactors& cols) {
    constexpr int kThreads = 256;
    const int64_t blocks = divide_up<int64_t>(std::max(rows.lines, cols.lines), kThreads);
    launch(context, line_factors_kernel, dim3(static_cast<unsigned>(blocks), 2), kThreads, 0, rows, cols);
}

// Sums of products [rows, stride] and what makes C [rows, cols] of them.
struct Finish {
    const float* sums;
    int64_t rows, cols, stride;
    const Factors* factors;
    const float *alpha_row, *row_scales;  // either may be null, here
    const float *col_scales, *alpha_col;  // and here
    bool accumulate;
};

// The order of roundings is that of finish_row().
template <typename Element, int kPack>
__global__ void finish(Finish f, Element* c) {
    const int64_t packs = f.cols / kPack;
    for (int64_t r = blockIdx.y * int64_t{blockDim.y} + threadIdx.y; r < f.rows;
         r += int64_t{gridDim.y} * blockDim.y) {
        float factor = f.factors->alpha;
        if (f.alpha_row != nullptr) factor *= f.alpha_row[r];
        if (f.row_scales != nullptr) factor *= f.row_scales[r];
        for (int64_t p = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; p < packs;
             p += int64_t{gridDim.x} * blockDim.x) {
            const int64_t at = p * kPack;
            const auto sums = *reinterpret_cast<const Pack<float, kPack>*>(f.sums + r * f.stride + at);
            auto& to = *reinterpret_cast<Pack<Element, kPack>*>(c + r * f.cols + at);
            Pack<Element, kPack> out;
            if (f.accumulate) out = to;
            for (int j = 0; j < kPack; ++j) {
                float value = sums.v[j] * factor;
                if (f.col_scales != nullptr || f.alpha_col != nullptr) {
                    float of_col = f.col_scales != nullptr ? f.col_scales[at + j] : f.alpha_col[at + j];
                    if (f.col_scales != nullptr && f.alpha_col != nullptr) of_col *= f.alpha_col[at + j];
                    value *= of_col;
                }
                if (f.accumulate) value += to_float(out.v[j]);
                out.v[j] = store_as<Element>(value);
            }
            to = out;
        }
    }
}

void finish_all(const Context& context, const Finish& f, const Tensor& c) {
    constexpr int kPack = 4;
    with_elements(c, [&]<typename Element>(Element* to) {
        const bool is_packed =
            fits_packs<float, kPack>(f.sums, f.stride) && fits_packs<Element, kPack>(to, f.cols);
        launch(context, is_packed ? finish<Element, kPack> : finish<Element, 1>,
               grid_of_rows(f.rows, is_packed ? f.cols / kPack : f.cols), kRowsBlock, 0, f, to);
    });
}

// --- FP32 scales along K ---

// Two quantised operands, FP32 scales of one or both of which vary along K, and no factors of lines.
bool are_multiplied_by_groups(const Operand& a, const Operand& b, const MatmulOptions& options) {
    if (a.quantized == nullptr || b.quantized == nullptr) return false;
    if (!has_fp32_values(a) && !has_fp32_values(b)) return false;
    return options.alpha_row == nullptr && options.alpha_col == nullptr &&
           row_scales_of(a).shape.rank() == 0 && row_scales_of(b).shape.rank() == 0;
}

// Without data where the context plans.
GroupOperand group_operand(Context& context, const QuantizedMatrix& q) {
    Tensor values = q.operand;
    if (values.shape.rank() == 0) {
        values = context.arena.allocate(DType::bf16, {q.rows, q.padded_cols});
        q.spec.has_fp32_groups() ? dequantize_groups(context, q, values)
                                 : nibble::dequantize_operand(context, q, values);
    }
    if (!q.spec.has_fp32_groups()) return {values.as<Bf16>(), q.padded_cols, nullptr, 0};
    const Tensor scales = context.arena.allocate(DType::f32, {q.fp32_scales.cols(), q.rows});
    if (!context.planning()) nibble::transpose(context, q.fp32_scales, scales);
    return {values.as<Bf16>(), q.padded_cols, scales.as<float>(), q.spec.fp32_block_size()};
}

void multiply_by_groups(Context& context, const Operand& a, const Operand& b, const Tensor& c,
                        const MatmulOptions& options) {
    const Tensor factors = context.arena.allocate(DType::f32, {2});
    const GroupOperand of_a = group_operand(context, *a.quantized),
                       of_b = group_operand(context, *b.quantized);
    if (context.planning()) return;
    auto* const on_device = reinterpret_cast<Factors*>(factors.data);
    launch(context, form_factors, 1, 1, 0, options.alpha.value_or(1.0f), ScaleOf(a), ScaleOf(b),
           options.accumulate ? 1.0f : 0.0f, on_device);
    // Beyond the smaller padding both have zeros.
    const int64_t k = std::min(a.quantized->padded_cols, b.quantized->padded_cols);
    multiply_groups(context, of_a, of_b, k, &on_device->alpha, &on_device->beta, c);
}

StoredMatrix stored(const Tensor& t, bool is_transposed) {
    return {t.cols(), is_transposed, address_alignment(t.data)};
}

}  // namespace

void matmul(Context& context, const Operand& a, const Operand& b, const Tensor& c,
            const MatmulOptions& options) {
    const MatmulShape shape = shape_of_matmul(a, b, c, options);
    const ArenaScope scope(context.arena);
    if (are_multiplied_by_groups(a, b, options)) return multiply_by_groups(context, a, b, c, options);
    const Tensor row_scales = row_scales_of(a), col_scales = row_scales_of(b);
    const bool has_lines = options.alpha_row != nullptr || options.alpha_col != nullptr ||
                           row_scales.shape.rank() > 0 || col_scales.shape.rank() > 0;
    const bool has_scales = scale_of(a).shape.rank() > 0 || scale_of(b).shape.rank() > 0;
    const Tensor factors = context.arena.allocate(DType::f32, {2});
    const Tensor workspace = context.arena.allocate(DType::u8, {GpuProduct::kWorkspace});

    Tensor of_a, of_b, sums;  // sums: of which C is made afterwards, if is_finished
    bool is_finished = false;
    GpuProductShape of_product;  // its k, n and types are given
    const auto complete = [&](bool finishes) {
        is_finished = finishes;
        sums = context.arena.allocate(DType::f32, {is_finished ? shape.m : 0, of_product.n});
        of_product.m = shape.m;
        of_product.a = stored(of_a, a.is_transposed);
        of_product.b = stored(of_b, b.is_transposed);
        of_product.c =
            is_finished ? stored(sums, false) : StoredMatrix{of_product.n, false, address_alignment(c.data)};
        of_product.result = is_finished ? DType::f32 : c.dtype;
        of_product.factors = is_finished || !(has_lines || has_scales) ? FactorsFrom::host
                             : !of_product.is_fp8()                    ? FactorsFrom::gpu
                             : has_lines                               ? FactorsFrom::row_scales
                                                                       : FactorsFrom::scales;
    };
    const GpuProduct* product = nullptr;
    const bool is_aligned = address_alignment(c.data) >= 16;
    if (options.fp8 && cuda::has_fp8_products() && are_multiplied_as_codes(a, b, shape) &&
        (is_aligned || has_lines)) {
        of_a = a.quantized->codes;
        of_b = b.quantized->codes;
        of_product.n = shape.n;
        of_product.k = a.quantized->padded_cols;
        of_product.of_a = *fp8_type(a);
        of_product.of_b = *fp8_type(b);
        of_product.fast_sums = *options.fp8 == Fp8Sums::fast;
        complete(!is_aligned);
        product = GpuProduct::find(of_product, context.planning());
        if (product == nullptr && !is_finished && has_lines) {  // not on Hopper
            complete(true);
            product = GpuProduct::find(of_product, context.planning());
        }
        if (product == nullptr) warn_of_emulation(shape);
    }
    if (product == nullptr) {
        of_product = {};
        of_product.n = padded(shape, shape.n);
        of_product.k = padded(shape, shape.k);
        of_product.of_a = of_product.of_b = shape.operands;
        of_a = values_of(context, a, shape.m, shape);
        of_b = values_of(context, b, of_product.n, shape);
        complete(has_lines || of_product.n != shape.n ||
                 (c.dtype == DType::bf16 && shape.operands == DType::f32));
        if (has_gpu()) product = &GpuProduct::get(of_product, context.planning());
    }
    const bool has_factors_of_rows = of_product.factors == FactorsFrom::row_scales;
    const Tensor of_rows = context.arena.allocate(DType::f32, {has_factors_of_rows ? shape.m : 0}),
                 of_cols = context.arena.allocate(DType::f32, {has_factors_of_rows ? shape.n : 0});
    if (context.planning()) return;

    const float alpha = options.alpha.value_or(1.0f), beta = options.accumulate ? 1.0f : 0.0f;
    auto* const on_device = reinterpret_cast<Factors*>(factors.data);
    const bool are_there = of_product.factors == FactorsFrom::gpu;
    if (are_there || is_finished)
        launch(context, form_factors, 1, 1, 0, alpha, ScaleOf(a), ScaleOf(b), beta, on_device);
    if (!is_finished) {
        GpuProduct::Scales scales = {static_cast<const float*>(scale_of(a).data),
                                     static_cast<const float*>(scale_of(b).data)};
        if (has_factors_of_rows) {
            form_line_factors(context, LineFactors(a, options.alpha_row, of_rows),
                              LineFactors(b, options.alpha_col, of_cols));
            scales = {of_rows.as<float>(), of_cols.as<float>()};
        }
        product->run(context, are_there ? &on_device->alpha : &alpha, of_a.data, of_b.data,
                     are_there ? &on_device->beta : &beta, c.data, workspace, scales);
        return;
    }
    constexpr float kOne = 1.0f, kZero = 0.0f;
    product->run(context, &kOne, of_a.data, of_b.data, &kZero, sums.data, workspace, {});
    finish_all(context,
               {.sums = sums.as<float>(),
                .rows = shape.m,
                .cols = shape.n,
                .stride = sums.cols(),
                .factors = on_device,
                .alpha_row = options.alpha_row,
                .row_scales = static_cast<const float*>(row_scales.data),
                .col_scales = static_cast<const float*>(col_scales.data),
                .alpha_col = options.alpha_col,
                .accumulate = options.accumulate},
               c);
}

bool has_fp8_products() { return has_fp8_tensor_cores(); }

std::string matmul_description() { return gpu_product_description(); }

}  // namespace nibble::cuda
