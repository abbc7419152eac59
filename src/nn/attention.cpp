// Causal attention over blocks of queries: the scores of one block, against all keys up to its last row, are
// the most that exists at a time. Products run as tiles of the GEMM library, on dense copies of the heads;
// attention_rows.cpp does what lies between them.
#include "nn/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/cuda.h"
#include "gemm/tasks.h"
#include "gemm/tile_product.h"
#include "nn/attention_cuda.h"
#include "nn/attention_rows.h"
#include "nn/cuda_forms.h"
#include "nn/element.h"

namespace nibble {

namespace {

constexpr int64_t kBlock = 128;  // queries

// What forward and backward share: sizes, dtypes, and the products of each block.
struct Layout {
    int64_t sequence, head_dim, sequences, blocks;
    int64_t heads, kv_heads, group;
    float scale;
    bool is_bf16;
    DType operands;  // of the products
    ProbabilityForm form;

    Layout(const AttentionShape& s, const Tensor& qkv, const Tensor& out, const Tensor& logsumexp)
        : sequence(s.sequence), head_dim(s.head_dim), heads(s.heads), kv_heads(s.kv_heads) {
        require(sequence > 0 && head_dim > 0 && heads > 0 && kv_heads > 0 && heads % kv_heads == 0,
                "attention: {} query heads cannot share {} key heads of {} over sequences of {}", heads,
                kv_heads, head_dim, sequence);
        group = heads / kv_heads;
        require(
            qkv.cols() == (heads + 2 * kv_heads) * head_dim && out.cols() == heads * head_dim &&
                qkv.rows() == out.rows() && qkv.rows() % sequence == 0 &&
                logsumexp.count() == qkv.rows() * heads,
            "attention: qkv {}, out {} and logsumexp {} do not fit {} and {} heads of {}, sequences of {}",
            qkv.shape.str(), out.shape.str(), logsumexp.shape.str(), heads, kv_heads, head_dim, sequence);
        sequences = qkv.rows() / sequence;
        blocks = (sequence + kBlock - 1) / kBlock;
        scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
        is_bf16 = qkv.dtype == DType::bf16;
        operands = is_bf16 ? bf16_product_dtype() : DType::f32;
        form = !is_bf16                  ? ProbabilityForm::f32
               : operands == DType::bf16 ? ProbabilityForm::bf16
                                         : ProbabilityForm::rounded_f32;
    }

    int64_t tasks() const { return sequences * kv_heads; }
    int64_t rows(int64_t block) const { return std::min(kBlock, sequence - block * kBlock); }
    int64_t keys(int64_t block) const { return block * kBlock + rows(block); }
    size_t operand_bytes(int64_t count) const { return static_cast<size_t>(count) * size_of(operands); }
    ScoreBlock scores(int64_t block) const {
        return {rows(block), block * kBlock + 1, keys(block), scale, form};
    }
};

// Columns from `col` on of row `row` of a tensor.
StridedRows rows_at(const Tensor& t, int64_t row, int64_t col) {
    const size_t offset = static_cast<size_t>(row * t.cols() + col) * size_of(t.dtype);
    return {static_cast<std::byte*>(t.data) + offset, t.cols(), t.dtype == DType::bf16};
}

// Copies one head of one sequence, [sequence, head_dim], dense, in the products' dtype.
void copy_head(const Layout& l, const Tensor& t, int64_t row, int64_t col, std::byte* to) {
    copy_rows(rows_at(t, row, col), l.sequence, l.head_dim, {to, l.head_dim, l.operands == DType::bf16});
}

TileShape tile(const Layout& l, int64_t m, int64_t n, int64_t k) {
    TileShape shape;
    shape.m = m;
    shape.n = shape.c_m = n;
    shape.k = k;
    shape.operands = l.operands;
    return shape;
}

// The products of one block, over dense operands.
struct BlockProducts {
    const TileProduct* scores;  // [rows, keys] = a[rows, head_dim] · b[keys, head_dim]ᵀ
    const TileProduct* values;  // [rows, head_dim] = p[rows, keys] · b[keys, head_dim]
    // [keys, head_dim] = p[rows, keys]ᵀ · b[rows, head_dim]: of keys or values; the second adds to what is
    // there.
    const TileProduct *gradient, *adding_gradient;

    BlockProducts(const Layout& l, int64_t block, bool backward) {
        TileShape shape = tile(l, l.rows(block), l.keys(block), l.head_dim);
        shape.a_m = shape.b_n = l.head_dim;
        shape.a_k = shape.b_k = 1;
        scores = &TileProduct::get(shape);
        shape = tile(l, l.rows(block), l.head_dim, l.keys(block));
        shape.a_m = l.keys(block);
        shape.b_k = l.head_dim;
        shape.a_k = shape.b_n = 1;
        values = &TileProduct::get(shape);
        gradient = adding_gradient = scores;
        if (!backward) return;
        shape = tile(l, l.keys(block), l.head_dim, l.rows(block));
        shape.a_k = l.keys(block);
        shape.b_k = l.head_dim;
        shape.a_m = shape.b_n = 1;
        gradient = &TileProduct::get(shape);
        shape.accumulate = true;
        adding_gradient = &TileProduct::get(shape);
    }
    size_t scratch_bytes() const {
        return std::max({scores->scratch_bytes(), values->scratch_bytes(), gradient->scratch_bytes(),
                         adding_gradient->scratch_bytes()});
    }
};

struct Products {
    std::vector<BlockProducts> blocks;
    size_t scratch_bytes = 0;

    Products(const Layout& l, bool backward) {
        for (int64_t block = 0; block < l.blocks; ++block) {
            blocks.emplace_back(l, block, backward);
            scratch_bytes = std::max(scratch_bytes, blocks.back().scratch_bytes());
        }
    }
};

}  // namespace

void attention_forward(Context& context, const AttentionShape& shape, const Tensor& qkv, const Tensor& out,
                       const Tensor& logsumexp) {
    require_activations({&qkv, &out}, "attention_forward");
    const Layout l(shape, qkv, out, logsumexp);
    NIBBLE_ON_CUDA(context, attention_forward(context, shape, qkv, out, logsumexp));
    const Products products(l, false);
    const int64_t score_count = kBlock * l.sequence + kVectorSlack, head_count = l.sequence * l.head_dim;
    ScratchLayout layout;
    const size_t product_at = layout.add(products.scratch_bytes);
    const size_t scores_at = layout.add<float>(score_count);
    const size_t p_at = layout.add(l.operand_bytes(score_count));
    const size_t sums_at = layout.add<float>(kBlock * l.head_dim);
    const size_t q_at = layout.add(l.operand_bytes(head_count)),
                 k_at = layout.add(l.operand_bytes(head_count));
    const size_t v_at = layout.add(l.operand_bytes(head_count));
    parallel_tasks(context, l.tasks(), layout.bytes(), [&](int64_t task, std::byte* scratch) {
        const int64_t first = task / l.kv_heads * l.sequence, kv = task % l.kv_heads;
        auto* scores = reinterpret_cast<float*>(scratch + scores_at);
        auto* sums = reinterpret_cast<float*>(scratch + sums_at);
        auto* const lse = logsumexp.as<float>();
        void* run_scratch = scratch + product_at;
        copy_head(l, qkv, first, (l.heads + kv) * l.head_dim, scratch + k_at);
        copy_head(l, qkv, first, (l.heads + l.kv_heads + kv) * l.head_dim, scratch + v_at);
        for (int64_t h = kv * l.group; h < (kv + 1) * l.group; ++h) {
            copy_head(l, qkv, first, h * l.head_dim, scratch + q_at);
            for (int64_t block = 0; block < l.blocks; ++block) {
                const int64_t begin = block * kBlock, row = first + begin;
                const std::byte* q = scratch + q_at + l.operand_bytes(begin * l.head_dim);
                float max[kBlock], sum[kBlock];
                products.blocks[block].scores->run(q, scratch + k_at, scores, run_scratch);
                softmax_block(l.scores(block), scores, scratch + p_at, max, sum);
                products.blocks[block].values->run(scratch + p_at, scratch + v_at, sums, run_scratch);
                for (int64_t i = 0; i < l.rows(block); ++i) {
                    lse[(row + i) * l.heads + h] = max[i] * l.scale + std::log(sum[i]);
                    sum[i] = 1.0f / sum[i];
                }
                scale_rows(sums, sum, l.rows(block), l.head_dim, rows_at(out, row, h * l.head_dim));
            }
        }
    });
}

void attention_backward(Context& context, const AttentionShape& shape, const Tensor& dout, const Tensor& qkv,
                        const Tensor& out, const Tensor& logsumexp, const Tensor& dqkv) {
    require_activations({&qkv, &out, &dout, &dqkv}, "attention_backward");
    const Layout l(shape, qkv, out, logsumexp);
    require(dout.count() == out.count() && dout.cols() == out.cols() && dqkv.count() == qkv.count() &&
                dqkv.cols() == qkv.cols(),
            "attention_backward: dout {} and dqkv {} do not fit out {} and qkv {}", dout.shape.str(),
            dqkv.shape.str(), out.shape.str(), qkv.shape.str());
    NIBBLE_ON_CUDA(context, attention_backward(context, shape, dout, qkv, out, logsumexp, dqkv));
    const Products products(l, true);
    const int64_t score_count = kBlock * l.sequence + kVectorSlack, head_count = l.sequence * l.head_dim;
    ScratchLayout layout;
    const size_t product_at = layout.add(products.scratch_bytes);
    const size_t scores_at = layout.add<float>(score_count), dp_at = layout.add<float>(score_count);
    const size_t p_at = layout.add(l.operand_bytes(score_count)),
                 ds_at = layout.add(l.operand_bytes(score_count));
    const size_t dq_at = layout.add<float>(kBlock * l.head_dim);
    const size_t dk_at = layout.add<float>(head_count), dv_at = layout.add<float>(head_count);
    const size_t q_at = layout.add(l.operand_bytes(head_count)),
                 k_at = layout.add(l.operand_bytes(head_count));
    const size_t v_at = layout.add(l.operand_bytes(head_count)),
                 dout_at = layout.add(l.operand_bytes(head_count));
    parallel_tasks(context, l.tasks(), layout.bytes(), [&](int64_t task, std::byte* scratch) {
        const int64_t first = task / l.kv_heads * l.sequence, kv = task % l.kv_heads;
        const int64_t k_col = (l.heads + kv) * l.head_dim, v_col = k_col + l.kv_heads * l.head_dim;
        const auto* const all_lse = logsumexp.as<float>();
        const auto floats = [&](size_t at) { return reinterpret_cast<float*>(scratch + at); };
        void* run_scratch = scratch + product_at;
        copy_head(l, qkv, first, k_col, scratch + k_at);
        copy_head(l, qkv, first, v_col, scratch + v_at);
        for (int64_t h = kv * l.group; h < (kv + 1) * l.group; ++h) {
            const int64_t col = h * l.head_dim;
            copy_head(l, qkv, first, col, scratch + q_at);
            copy_head(l, dout, first, col, scratch + dout_at);
            for (int64_t block = l.blocks - 1; block >= 0; --block) {
                const int64_t begin = block * kBlock, row = first + begin, rows = l.rows(block);
                const BlockProducts& product = products.blocks[block];
                const std::byte* q = scratch + q_at + l.operand_bytes(begin * l.head_dim);
                const std::byte* d = scratch + dout_at + l.operand_bytes(begin * l.head_dim);
                float delta[kBlock], lse[kBlock];
                dot_rows(rows_at(dout, row, col), rows_at(out, row, col), rows, l.head_dim, delta);
                for (int64_t i = 0; i < rows; ++i) lse[i] = all_lse[(row + i) * l.heads + h];
                product.scores->run(q, scratch + k_at, floats(scores_at), run_scratch);
                product.scores->run(d, scratch + v_at, floats(dp_at), run_scratch);
                softmax_backward_block(l.scores(block), floats(scores_at), floats(dp_at), lse, delta,
                                       scratch + p_at, scratch + ds_at);
                product.values->run(scratch + ds_at, scratch + k_at, floats(dq_at), run_scratch);
                scale_rows(floats(dq_at), nullptr, rows, l.head_dim, rows_at(dqkv, row, col));
                // The first head's last block sees all keys: it writes what the others add to.
                const bool is_first = h == kv * l.group && block == l.blocks - 1;
                const TileProduct& gradient = is_first ? *product.gradient : *product.adding_gradient;
                gradient.run(scratch + ds_at, q, floats(dk_at), run_scratch);
                gradient.run(scratch + p_at, d, floats(dv_at), run_scratch);
            }
        }
        scale_rows(floats(dk_at), nullptr, l.sequence, l.head_dim, rows_at(dqkv, first, k_col));
        scale_rows(floats(dv_at), nullptr, l.sequence, l.head_dim, rows_at(dqkv, first, v_col));
    });
}

std::string attention_library(Device device) {
    if constexpr (kHasCuda) {
        if (device == Device::cuda) return cuda::attention_library();
    }
    return {};
}

std::string attention_description(Device device, const AttentionShape& shape, DType activations) {
    if constexpr (kHasCuda) {
        if (device == Device::cuda)
            return cuda::cudnn_takes_attention(shape, activations)
                       ? fmt::format("{}{}", cuda::attention_library(),
                                     shape.deterministic ? ", deterministic" : "")
                       : "kernels of nibble, sums in f32";
    }
    const bool is_bf16 = activations == DType::bf16 && bf16_product_dtype() == DType::bf16;
    return fmt::format("products in {}, sums in f32", is_bf16 ? "bf16" : "f32");
}

}  // namespace nibble
