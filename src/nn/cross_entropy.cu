// The logits of a tile of rows at a time: product, then softmax, loss and the gradient of the logits in one
// kernel. The gradients of a chunk of tiles are kept for the products that give dx and dweight; where logits
// are BF16, they take the place of the logits. Losses and scales stay on the GPU until the call's end.
#include "core/cuda_vector.cuh"
#include "gemm/matmul.h"
#include "nn/cuda_forms.h"
#include "quant/fp8_codes.h"
#include "quant/quant.h"

namespace nibble::cuda {

namespace {

constexpr int kThreads = 1024;  // of a row
// How many rows a multiprocessor takes at once: GPUs for desktops hold 1536 threads, others 2048.
#if defined(__CUDA_ARCH__) && ((__CUDA_ARCH__ > 800 && __CUDA_ARCH__ < 900) || __CUDA_ARCH__ >= 1200)
constexpr int kMostRows = 1;
#else
constexpr int kMostRows = 2;
#endif

template <typename Logit>
struct LossArguments {
    int64_t vocabulary;
    const Logit* logits;
    float factor, scale;
    const int32_t* targets;
    float* losses;
};

// As numerics/elements.h rounds to E5M2, to nearest even; |v| is at most 57344.
__device__ float rounded_to_e5m2(float v) {
    constexpr int kDropped = 23 - 2;  // bits of the mantissa
    const uint32_t bits = __float_as_uint(v);
    const uint32_t up = bits + (bits >> kDropped & 1u) + (1u << (kDropped - 1)) - 1;
    const float normal = __uint_as_float(up & ~0u << kDropped);
    const float whole = 0x1.8p7f;  // adding it leaves no bits below 2^-16
    return fabsf(v) < 0x1p-14f ? (v + whole) - whole : normal;
}

template <LossRow::Rounding kRounding>
__device__ float rounded(float v) {
    if constexpr (kRounding == LossRow::Rounding::bf16) return round_to_bf16(v);
    if constexpr (kRounding == LossRow::Rounding::e5m2) return rounded_to_e5m2(v);
    return v;
}

// The maximum of scaled logits so far, and the sum of exponentials relative to it.
struct Softmax {
    float max = -INFINITY, sum = 0.0f;

    template <int kCount>
    __device__ void add(const float (&logits)[kCount]) {
        float most = logits[0];
        for (int i = 1; i < kCount; ++i) most = fmaxf(most, logits[i]);
        if (most > max) {
            sum *= expf(max - most);
            max = most;
        }
        const float base = max == -INFINITY ? 0.0f : max;
        for (int i = 0; i < kCount; ++i) sum += expf(logits[i] - base);
    }
};

// A block a row. Rows begin anywhere; what is between multiples of kWidth, counted from the first row, is
// read 16 bytes at a time. The second pass goes backwards, for what was read last is still in the cache.
// Where the cache is too small for two rows a multiprocessor (kHolds), there is one, and its first `held`
// pieces stay in shared memory.
//
// Gradients may take the place of their logits: none is written before the whole row was read, and then each
// by the thread that reads its logit.
template <bool kHolds, LossRow::Rounding kRounding, typename Logit, typename Element>
__global__ void __launch_bounds__(kThreads, kHolds ? 1 : kMostRows)
    loss_kernel(const LossArguments<Logit> a, int held, Element* gradients) {
    constexpr int kWidth = kPerAccess<Logit>, kUnrolled = 16 / kWidth;
    Logit* const held_logits = dynamic_shared<Logit>();
    __shared__ float maxima[kWarp], sums[kWarp];
    const int64_t begin = blockIdx.x * a.vocabulary, end = begin + a.vocabulary;
    const int64_t first = min(end, (begin + kWidth - 1) / kWidth * kWidth),
                  last = max(first, end / kWidth * kWidth);
    const auto pieces = static_cast<int>((last - first) / kWidth), heads = static_cast<int>(first - begin);
    const int singles = heads + static_cast<int>(end - last), thread = static_cast<int>(threadIdx.x);
    const Logit* const row = a.logits + first;
    // Places count from the first piece; this is that of one of the `singles` before and after the pieces.
    const auto place_of = [&](int i) { return i - heads + (i < heads ? 0 : pieces * kWidth); };
    const auto logit_at = [&](int place) {
        float logit[1];
        load_floats(row + place, logit);
        return logit[0];
    };
    const int target = a.targets[blockIdx.x];

    if (target == kIgnoredTarget) {
        if (thread == 0) a.losses[blockIdx.x] = 0.0f;
        if (gradients == nullptr) return;
        const float zeros[kWidth] = {}, zero[1] = {};
        for (int i = thread; i < pieces; i += kThreads)
            store_floats(zeros, gradients + first + int64_t{i} * kWidth);
        if (thread < singles) store_floats(zero, gradients + first + place_of(thread));
        return;
    }
    const float factor = a.factor;

    Softmax softmax;
#pragma unroll kUnrolled
    for (int i = thread; i < pieces; i += kThreads) {
        const auto piece = Piece<Logit, kWidth>::load(row + int64_t{i} * kWidth);
        if (kHolds && i < held) piece.store(held_logits + i * kWidth);
        float logits[kWidth];
        for (int j = 0; j < kWidth; ++j) logits[j] = piece[j] * factor;
        softmax.add(logits);
    }
    if (thread < singles) {
        const float logit[1] = {logit_at(place_of(thread)) * factor};
        softmax.add(logit);
    }
    const bool is_target = 0 <= target && target < a.vocabulary;
    float at_target = 0.0f;  // read before a gradient can take its place
    if (thread == 0 && is_target) at_target = factor * logit_at(target - heads);
    const float warp_max = lanes_max(softmax.max);
    if (thread % kWarp == 0) maxima[thread / kWarp] = warp_max;
    __syncthreads();
    const float max = lanes_max(maxima[thread % kWarp]);
    float total = block_sum(softmax.sum * expf(softmax.max - max), sums);
    if (!is_target) total = NAN;
    if (thread == 0) a.losses[blockIdx.x] = max - at_target + logf(total);
    if (gradients == nullptr) return;

    const float inverse = a.scale / total;
    const auto gradient = [&](int column, float logit) {
        float e = expf(logit * factor - max);
        if (column == target) e -= total;
        return rounded<kRounding>(e * inverse);
    };
    if (thread < singles) {
        const int place = place_of(thread);
        const float out[1] = {gradient(heads + place, logit_at(place))};
        store_floats(out, gradients + first + place);
    }
    const auto make_piece = [&](int i, const Logit* logits) {
        float values[kWidth];
        load_floats(logits + i * kWidth, values);
        for (int j = 0; j < kWidth; ++j) values[j] = gradient(heads + i * kWidth + j, values[j]);
        store_floats(values, gradients + first + i * kWidth);
    };
    int i = pieces - 1 - thread;
#pragma unroll kUnrolled
    for (; i >= (kHolds ? held : 0); i -= kThreads) make_piece(i, row);
    if constexpr (kHolds) {
#pragma unroll kUnrolled
        for (; i >= 0; i -= kThreads) make_piece(i, held_logits);
    }
}

// result: the sum of the losses in double, and how many targets counted.
__global__ void __launch_bounds__(kThreads)
    total_kernel(int64_t rows, const float* losses, const int32_t* targets, double* totals) {
    __shared__ double sums[kWarp], counts[kWarp];
    double sum = 0, count = 0;
#pragma unroll 4
    for (int64_t t = threadIdx.x; t < rows; t += kThreads) {
        sum += double{losses[t]};
        count += targets[t] == kIgnoredTarget ? 0 : 1;
    }
    sum = block_sum(sum, sums);
    count = block_sum(count, counts);
    if (threadIdx.x != 0) return;
    totals[0] += sum;
    totals[1] += count;
}

// Pieces of a row of logits to hold in the shared memory of a block: none where the cache is large enough.
template <typename Logit>
int held_pieces(int64_t vocabulary) {
    static const auto attribute = [](cudaDeviceAttr which) {
        int device = 0, value = 0;
        check(cudaGetDevice(&device), "the GPU in use");
        check(cudaDeviceGetAttribute(&value, which, device), "size of the GPU");
        return int64_t{value};
    };
    static const int64_t cache = attribute(cudaDevAttrL2CacheSize);
    static const int64_t shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    constexpr int64_t kBytes = sizeof(Logit), kWidth = kPerAccess<Logit>, kReductions = 1024;
    if (vocabulary * kBytes * 2 * multiprocessors() <= cache) return 0;
    return static_cast<int>(std::min(vocabulary / kWidth, (shared - kReductions) / (kWidth * kBytes)));
}

// What a product reads of x or of the weight: `values`, which lack the factor `scale` (F32 [1]), if it has a
// shape.
struct HeadOperand {
    Tensor values, scale;

    Operand rows(int64_t begin, int64_t end) const { return with_scale(values.slice(begin, end)); }
    Operand all() const { return with_scale(values); }
    Operand transposed(int64_t begin, int64_t end) const {
        return with_scale(Operand::transposed(values.slice(begin, end)));
    }

  private:
    Operand with_scale(Operand operand) const {
        operand.scale = scale;
        return operand;
    }
};

Tensor as_matrix(const Tensor& x) { return x.reshaped({x.rows(), x.cols()}); }

__global__ void set_kernel(float* to, float value) { *to = value; }

QuantizedMatrix rows_of(QuantizedMatrix q, int64_t begin, int64_t end) {
    q.rows = end - begin;
    q.codes = q.codes.slice(begin, end);
    return q;
}

QuantizedMatrix quantized(Context& context, const Tensor& x, std::string_view name) {
    static const QuantSpec spec = parse_spec(kHeadSpec);
    QuantizedMatrix q = allocate_quantized(context.arena, spec, x.rows(), x.cols());
    nibble::quantize(context, spec, x, {}, q, {.name = name});
    return q;
}

// The elements of kHeadSpec, exact in BF16.
HeadOperand in_fp8(Context& context, const Tensor& x, std::string_view name) {
    const Tensor values = context.arena.allocate(DType::bf16, {x.rows(), x.cols()});
    const Tensor scale = context.arena.allocate(DType::f32, {1});
    const ArenaScope scope(context.arena);
    const QuantizedMatrix q = quantized(context, x, name);
    const bool is_padded = q.padded_cols != x.cols();
    const Tensor decoded = is_padded ? context.arena.allocate(values.dtype, {q.rows, q.padded_cols}) : values;
    nibble::dequantize_operand(context, q, decoded);
    if (context.planning()) return {values, scale};
    if (is_padded) {
        const auto width = static_cast<size_t>(x.cols()) * sizeof(Bf16);
        check(cudaMemcpy2DAsync(values.data, width, decoded.data,
                                static_cast<size_t>(q.padded_cols) * sizeof(Bf16), width,
                                static_cast<size_t>(x.rows()), cudaMemcpyDeviceToDevice, context.stream),
              "copy on the GPU");
    }
    cuda::copy(context, q.tensor_scale, scale);
    return {values, scale};
}

// The products of the head in FP8, of codes that lie as its tensor cores read them.
class HeadInFp8 {
  public:
    // Codes of gradients for chunks of so many rows; none: no backward.
    HeadInFp8(Context& context, const Tensor& x, const Tensor& weight, Fp8Sums sums, int64_t chunk)
        : x_(quantized(context, x, "input of lm_head")),
          weight_(quantized(context, weight, "weight of lm_head")) {
        options_.fp8 = sums;
        if (chunk == 0) return;
        weight_by_column_ = transposed_codes(context, weight_);
        static const QuantSpec spec = parse_spec("fp8:e5m2 tensor");
        gradients_ = allocate_quantized(context.arena, spec, chunk, weight.rows());
        largest_ = context.arena.allocate(DType::f32, {1});
        if (context.planning()) return;
        launch(context, set_kernel, 1, 1, 0, largest_.as<float>(), kLargestGradient);
    }

    // logits [end - begin, V] of these rows of x.
    void logits(Context& context, int64_t begin, int64_t end, const Tensor& logits) const {
        const QuantizedMatrix rows = rows_of(x_, begin, end);
        nibble::matmul(context, rows, weight_, logits, options_);
    }
    // Keeps the gradients of the logits, numbers of E5M2, as rows of a chunk from `begin` on: under a scale
    // of 1 they are codes without another rounding.
    void keep(Context& context, const Tensor& gradients, int64_t begin) const {
        QuantizedMatrix rows = rows_of(gradients_, begin, begin + gradients.rows());
        nibble::quantize(context, rows.spec, gradients, {}, rows,
                         {.known_amax = largest_.as<float>(), .name = "gradient of the logits"});
    }
    // Of the rows begin .. end - 1, whose gradients are the first of the chunk: `lacks` times them is meant.
    void finish(Context& context, int64_t begin, int64_t end, float lacks, const Tensor& dx,
                const Tensor& dweight) const {
        const ArenaScope scope(context.arena);
        MatmulOptions options = options_;
        options.alpha = lacks;
        const QuantizedMatrix gradients = rows_of(gradients_, 0, end - begin);
        nibble::matmul(context, gradients, weight_by_column_, dx, options);
        const QuantizedMatrix gradients_by_column = transposed_codes(context, gradients),
                              x_by_column = transposed_codes(context, rows_of(x_, begin, end));
        options.accumulate = true;
        nibble::matmul(context, gradients_by_column, x_by_column, dweight, options);
    }

    static bool fits(const Tensor& x, const Tensor& weight) {
        return nibble::has_fp8_products(Device::cuda) && x.cols() % kFp8Multiple == 0 &&
               weight.rows() % kFp8Multiple == 0;
    }

  private:
    QuantizedMatrix x_, weight_, weight_by_column_, gradients_;
    Tensor largest_;
    MatmulOptions options_;
};

constexpr int64_t kLogitBytes = int64_t{512} << 20, kGradientBytes = int64_t{1} << 30, kRows = 128;
int64_t rows_in(int64_t bytes, int64_t row_bytes, int64_t multiple) {
    return std::max(multiple, bytes / row_bytes / multiple * multiple);
}

// Rows whose logits (`tile`), and whose gradients of logits (`chunk`), exist at a time: large products, and
// memory that does not grow with the batch.
struct Chunks {
    int64_t tile, chunk;
};
Chunks chunks_of_f32(int64_t rows, int64_t vocabulary, DType gradients, bool backward) {
    const int64_t tile = std::min(rows, rows_in(kLogitBytes, vocabulary * 4, kRows));
    const int64_t row_bytes = vocabulary * static_cast<int64_t>(size_of(gradients));
    return {tile, backward ? std::min(rows, rows_in(kGradientBytes, row_bytes, tile)) : tile};
}
// Where gradients take the place of logits in BF16: more rows in no more memory. A product copies an operand
// whose rows are no multiple of 16 bytes, and makes such a result in F32 first; gradients that become codes
// exist as such for the whole chunk, for a while twice.
Chunks chunks_in_place(int64_t rows, int64_t vocabulary, bool as_codes) {
    const auto [tile, chunk] = chunks_of_f32(rows, vocabulary, DType::bf16, true);
    const bool is_copied = vocabulary % 8 != 0;
    const int64_t larger = std::min(rows, chunk + (is_copied ? 1 : 2) * tile);
    return {is_copied || as_codes ? tile : larger, larger};
}

// Adds the loss to `totals`; its gradients where `backward`.
void run(Context& context, const Tensor& x, const Tensor& weight, const Tensor& targets,
         const Tensor& loss_rows, const HeadOptions& options, bool backward, float scale, const Tensor& dx,
         const Tensor& dweight, const Tensor& totals) {
    const bool is_fp8 = options.operands == HeadOperands::fp8;
    const bool as_codes = is_fp8 && options.fp8 && HeadInFp8::fits(x, weight);
    const DType operands = is_fp8 ? DType::bf16 : x.dtype;
    const int64_t rows = x.rows(), vocabulary = weight.rows();
    const bool in_place = backward && options.logits == DType::bf16;
    const auto [tile, chunk] = in_place ? chunks_in_place(rows, vocabulary, as_codes)
                                        : chunks_of_f32(rows, vocabulary, operands, backward);

    const ArenaScope scope(context.arena);
    const Tensor losses = context.arena.allocate(DType::f32, {rows});
    HeadOperand a = {as_matrix(x), {}}, b = {weight, {}};
    std::optional<HeadInFp8> codes;
    if (as_codes) {
        codes.emplace(context, as_matrix(x), weight, *options.fp8, backward ? chunk : 0);
    } else if (is_fp8) {
        a = in_fp8(context, x, "input of lm_head");
        b = in_fp8(context, weight, "weight of lm_head");
    } else if (operands != weight.dtype) {
        b.values = context.arena.allocate(operands, weight.shape);
        nibble::detail::convert(context, weight, b.values);
    }
    const Tensor logits = context.arena.allocate(options.logits, {in_place ? 0 : tile, vocabulary});
    const int64_t kept = codes ? tile : chunk;
    const Tensor gradients = context.arena.allocate(operands, {backward ? kept : 0, vocabulary});
    // What the gradients of the logits that are kept lack.
    const float lacks = is_fp8 ? scale / kLargestGradient : 1.0f;
    MatmulOptions forward, for_dx;
    forward.compute = for_dx.compute = operands;
    for_dx.alpha = lacks;
    MatmulOptions for_dweight = for_dx;
    for_dweight.accumulate = true;
    const LossRow how{.scale = is_fp8 ? kLargestGradient : scale,
                      .is_bf16 = operands == DType::bf16,
                      .rounding = is_fp8 ? LossRow::Rounding::e5m2 : LossRow::Rounding::none};
    for (int64_t begin = 0; begin < rows; begin += chunk) {
        const int64_t end = std::min(rows, begin + chunk);
        for (int64_t at = begin; at < end; at += tile) {
            const int64_t next = std::min(end, at + tile);
            const int64_t from = codes ? 0 : at - begin;
            const Tensor tile_gradients = backward ? gradients.slice(from, from + next - at) : Tensor{};
            const Tensor tile_logits = in_place ? tile_gradients : logits.slice(0, next - at);
            if (codes) {
                codes->logits(context, at, next, tile_logits);
            } else {
                nibble::matmul(context, a.rows(at, next), b.all(), tile_logits, forward);
            }
            if (!context.planning())
                cuda::loss_rows(context, how, tile_logits, targets.slice(at, next), losses.slice(at, next),
                                tile_gradients);
            if (codes && backward) codes->keep(context, tile_gradients, at - begin);
        }
        if (!backward) continue;
        if (codes) {
            codes->finish(context, begin, end, lacks, as_matrix(dx).slice(begin, end), dweight);
            continue;
        }
        const Tensor chunk_gradients = gradients.slice(0, end - begin);
        nibble::matmul(context, chunk_gradients, b.transposed(0, vocabulary), as_matrix(dx).slice(begin, end),
                       for_dx);
        nibble::matmul(context, Operand::transposed(chunk_gradients), a.transposed(begin, end), dweight,
                       for_dweight);
    }
    if (context.planning()) return;
    launch(context, total_kernel, 1, kThreads, 0, rows, losses.as<float>(), targets.as<int32_t>(),
           totals.as<double>());
    if (loss_rows.data != nullptr) cuda::copy(context, losses, loss_rows);
}

// loss_rows() of logits of one dtype; to: the gradients, or null.
template <typename Logit, typename Element>
void loss_rows_of(Context& context, const LossRow& row, const Tensor& logits, const Tensor& targets,
                  const Tensor& losses, Element* to) {
    constexpr int kWidth = kPerAccess<Logit>;
    const LossArguments<Logit> arguments{logits.cols(), logits.as<Logit>(),    row.factor,
                                         row.scale,     targets.as<int32_t>(), losses.as<float>()};
    require(
        fits_width<Element>(kWidth, kWidth, {to}) && fits_width<Logit>(kWidth, kWidth, {arguments.logits}),
        "loss_rows: tensors on the GPU begin at multiples of 16 bytes");
    const int held = to == nullptr ? 0 : held_pieces<Logit>(logits.cols());
    const auto with_rounding = [&](auto holds) {
        using enum LossRow::Rounding;
        auto* kernel = loss_kernel<holds(), none, Logit, Element>;
        if (row.rounding == bf16) kernel = loss_kernel<holds(), bf16, Logit, Element>;
        if (row.rounding == e5m2) kernel = loss_kernel<holds(), e5m2, Logit, Element>;
        const int shared = held * kWidth * static_cast<int>(sizeof(Logit));
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
              "shared memory of a kernel");
        launch(context, kernel, static_cast<unsigned>(logits.rows()), kThreads, static_cast<size_t>(shared),
               arguments, held, to);
    };
    held > 0 ? with_rounding(std::true_type()) : with_rounding(std::false_type());
}

}  // namespace

void loss_rows(Context& context, const LossRow& row, const Tensor& logits, const Tensor& targets,
               const Tensor& losses, const Tensor& gradients) {
    if (logits.dtype == DType::bf16) {
        require(gradients.data == nullptr || gradients.dtype == DType::bf16,
                "loss_rows: gradients of logits in BF16 are BF16");
        return loss_rows_of<Bf16>(context, row, logits, targets, losses, static_cast<Bf16*>(gradients.data));
    }
    if (gradients.data == nullptr)
        return loss_rows_of<float>(context, row, logits, targets, losses, static_cast<float*>(nullptr));
    with_elements(gradients,
                  [&](auto* to) { loss_rows_of<float>(context, row, logits, targets, losses, to); });
}

HeadLoss head_loss(Context& context, const Tensor& x, const Tensor& weight, const Tensor& targets,
                   const Tensor& loss_rows, const HeadOptions& options) {
    const ArenaScope scope(context.arena);
    const Tensor totals = context.arena.allocate(DType::f64, {2});
    if (!context.planning()) cuda::fill_zero(context, totals);
    run(context, x, weight, targets, loss_rows, options, false, 1.0f, {}, {}, totals);
    return read_loss(context, totals);
}

void head_loss_backward(Context& context, const Tensor& x, const Tensor& weight, const Tensor& targets,
                        float scale, const Tensor& dx, const Tensor& dweight, const Tensor& totals,
                        const HeadOptions& options) {
    run(context, x, weight, targets, {}, options, true, scale, dx, dweight, totals);
}

void head_logits(Context& context, const Tensor& x, const Tensor& weight, const Tensor& logits,
                 const HeadOptions& options) {
    MatmulOptions product;
    product.compute = x.dtype;
    if (options.operands == HeadOperands::plain) return nibble::matmul(context, x, weight, logits, product);
    const ArenaScope scope(context.arena);
    const QuantizedMatrix a = quantized(context, x, "input of lm_head");
    const QuantizedMatrix b = quantized(context, weight, "weight of lm_head");
    product.compute = DType::bf16;
    product.fp8 = options.fp8;
    nibble::matmul(context, a, b, logits, product);
}

}  // namespace nibble::cuda
