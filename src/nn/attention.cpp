// Causal attention over blocks of queries: the scores of one block, against all keys up to its last row, are
// the most that exists at a time. Products run as tiles of the GEMM library; attention_rows.cpp does the
// rest.
#include "nn/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "gemm/row_kernels.h"
#include "gemm/tasks.h"
#include "gemm/tile_product.h"
#include "nn/attention_rows.h"
#include "nn/element.h"

namespace nibble {

namespace {

constexpr int64_t kBlock = 128;  // queries

// What forward and backward share: sizes, and where heads lie in the rows of qkv and out.
struct Layout {
    int64_t sequence, head_dim, sequences, blocks;
    int heads, kv_heads, group;
    int64_t qkv_width, out_width;
    int64_t strip;  // row length of a block's scores
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
        qkv_width = (heads + 2 * int64_t{kv_heads}) * head_dim;
        out_width = heads * head_dim;
        require(
            qkv.cols() == qkv_width && out.cols() == out_width && qkv.rows() == out.rows() &&
                qkv.rows() % sequence == 0 && logsumexp.count() == qkv.rows() * heads,
            "attention: qkv {}, out {} and logsumexp {} do not fit {} and {} heads of {}, sequences of {}",
            qkv.shape.str(), out.shape.str(), logsumexp.shape.str(), heads, kv_heads, head_dim, sequence);
        sequences = qkv.rows() / sequence;
        blocks = (sequence + kBlock - 1) / kBlock;
        strip = (sequence + 31) / 32 * 32;
        scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
        is_bf16 = qkv.dtype == DType::bf16;
        operands = is_bf16 ? bf16_product_dtype() : DType::f32;
        form = !is_bf16                  ? ProbabilityForm::f32
               : operands == DType::bf16 ? ProbabilityForm::bf16
                                         : ProbabilityForm::rounded_f32;
    }

    // On a CPU without BF16 products, heads are widened to F32 first.
    bool widens() const { return is_bf16 && operands == DType::f32; }
    int64_t tasks() const { return sequences * kv_heads; }
    int64_t rows(int64_t block) const { return std::min(kBlock, sequence - block * kBlock); }
    int64_t keys(int64_t block) const { return block * kBlock + rows(block); }
    // Strides of heads as the products read them.
    int64_t qkv_stride() const { return widens() ? head_dim : qkv_width; }
    int64_t out_stride() const { return widens() ? head_dim : out_width; }
    size_t operand_bytes(int64_t count) const { return static_cast<size_t>(count) * size_of(operands); }
    size_t widened_bytes() const { return widens() ? operand_bytes(sequence * head_dim) : 0; }
};

std::byte* element(const Tensor& t, int64_t row, int64_t col) {
    return static_cast<std::byte*>(t.data) + static_cast<size_t>(row * t.cols() + col) * size_of(t.dtype);
}

// One head of one sequence, as the products read it.
struct Head {
    const std::byte* data;
    int64_t stride;
    size_t element;

    Head(const Layout& l, const Tensor& t, int64_t row, int64_t col, std::byte* widened)
        : data(nibble::element(t, row, col)),
          stride(l.widens() ? l.head_dim : t.cols()),
          element(size_of(l.operands)) {
        if (!l.widens()) return;
        for (int64_t i = 0; i < l.sequence; ++i) {
            to_f32(reinterpret_cast<const Bf16*>(nibble::element(t, row + i, col)),
                   reinterpret_cast<float*>(widened) + i * l.head_dim, l.head_dim);
        }
        data = widened;
    }
    const void* at(int64_t row) const { return data + static_cast<size_t>(row * stride) * element; }
};

void store_row(const float* from, float factor, bool is_bf16, void* to, int64_t count) {
    FinishRow row;
    row.sums = from;
    row.factor = factor;
    if (is_bf16) {
        finish_row(row, static_cast<Bf16*>(to), count);
    } else {
        finish_row(row, static_cast<float*>(to), count);
    }
}

TileShape tile(const Layout& l, int64_t m, int64_t n, int64_t k) {
    TileShape shape;
    shape.m = m;
    shape.n = n;
    shape.k = k;
    shape.operands = l.operands;
    return shape;
}

// [rows, keys] = a[rows, head_dim] · b[keys, head_dim]ᵀ
const TileProduct& scores_product(const Layout& l, int64_t block, int64_t a_stride) {
    TileShape shape = tile(l, l.rows(block), l.keys(block), l.head_dim);
    shape.a_m = a_stride;
    shape.a_k = shape.b_k = 1;
    shape.b_n = l.qkv_stride();
    shape.c_m = l.strip;
    return TileProduct::get(shape);
}

// [rows, head_dim] = p[rows, keys] · b[keys, head_dim]
const TileProduct& values_product(const Layout& l, int64_t block) {
    TileShape shape = tile(l, l.rows(block), l.head_dim, l.keys(block));
    shape.a_m = l.strip;
    shape.a_k = shape.b_n = 1;
    shape.b_k = l.qkv_stride();
    shape.c_m = l.head_dim;
    return TileProduct::get(shape);
}

// [head_dim, keys] += a[rows, head_dim]ᵀ · p[rows, keys]: gradients of keys and values, transposed, because a
// narrow A is cheaper to transpose than a wide one.
const TileProduct& keys_product(const Layout& l, int64_t block, int64_t a_stride) {
    TileShape shape = tile(l, l.head_dim, l.keys(block), l.rows(block));
    shape.a_m = shape.b_n = 1;
    shape.a_k = a_stride;
    shape.b_k = shape.c_m = l.strip;
    shape.accumulate = true;
    return TileProduct::get(shape);
}

struct BlockProducts {
    const TileProduct *scores, *values;                               // forward and backward
    const TileProduct *value_scores, *key_gradient, *value_gradient;  // backward
};

std::vector<BlockProducts> products_of(const Layout& l, bool backward) {
    std::vector<BlockProducts> products;
    for (int64_t block = 0; block < l.blocks; ++block) {
        BlockProducts p{&scores_product(l, block, l.qkv_stride()), &values_product(l, block), nullptr,
                        nullptr, nullptr};
        if (backward) {
            p.value_scores = &scores_product(l, block, l.out_stride());
            p.key_gradient = &keys_product(l, block, l.qkv_stride());
            p.value_gradient = &keys_product(l, block, l.out_stride());
        }
        products.push_back(p);
    }
    return products;
}

size_t product_scratch(const std::vector<BlockProducts>& products) {
    size_t bytes = 0;
    for (const BlockProducts& p : products) {
        for (const TileProduct* one :
             {p.scores, p.values, p.value_scores, p.key_gradient, p.value_gradient}) {
            if (one != nullptr) bytes = std::max(bytes, one->scratch_bytes());
        }
    }
    return bytes;
}

}  // namespace

void attention_forward(Context& context, const AttentionShape& shape, const Tensor& qkv, const Tensor& out,
                       const Tensor& logsumexp) {
    require_activations({&qkv, &out}, "attention_forward");
    const Layout l(shape, qkv, out, logsumexp);
    const auto products = products_of(l, false);
    ScratchLayout scratch_layout;
    const size_t product_at = scratch_layout.add(product_scratch(products));
    const size_t scores_at = scratch_layout.add<float>(kBlock * l.strip);
    const size_t p_at = scratch_layout.add(l.operand_bytes(kBlock * l.strip));
    const size_t sum_at = scratch_layout.add<float>(kBlock * l.head_dim);
    const size_t q_at = scratch_layout.add(l.widened_bytes());
    const size_t k_at = scratch_layout.add(l.widened_bytes());
    const size_t v_at = scratch_layout.add(l.widened_bytes());
    parallel_tasks(context, l.tasks(), scratch_layout.bytes(), [&](int64_t task, std::byte* scratch) {
        const int64_t first = task / l.kv_heads * l.sequence, kv = task % l.kv_heads;
        auto* scores = reinterpret_cast<float*>(scratch + scores_at);
        auto* sums = reinterpret_cast<float*>(scratch + sum_at);
        const Head k(l, qkv, first, (l.heads + kv) * l.head_dim, scratch + k_at);
        const Head v(l, qkv, first, (l.heads + l.kv_heads + kv) * l.head_dim, scratch + v_at);
        for (int64_t h = kv * l.group; h < (kv + 1) * l.group; ++h) {
            const Head q(l, qkv, first, h * l.head_dim, scratch + q_at);
            for (int64_t block = 0; block < l.blocks; ++block) {
                const int64_t begin = block * kBlock;
                products[block].scores->run(q.at(begin), k.data, scores, scratch + product_at);
                SoftmaxRow softmax[kBlock];
                for (int64_t i = 0; i < l.rows(block); ++i) {
                    softmax[i] = softmax_row(scores + i * l.strip, begin + i + 1, l.keys(block), l.scale,
                                             l.form, scratch + p_at + l.operand_bytes(i * l.strip));
                }
                products[block].values->run(scratch + p_at, v.data, sums, scratch + product_at);
                for (int64_t i = 0; i < l.rows(block); ++i) {
                    const int64_t row = first + begin + i;
                    logsumexp.as<float>()[row * l.heads + h] =
                        softmax[i].max * l.scale + std::log(softmax[i].sum);
                    store_row(sums + i * l.head_dim, 1.0f / softmax[i].sum, l.is_bf16,
                              element(out, row, h * l.head_dim), l.head_dim);
                }
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
    const auto products = products_of(l, true);
    ScratchLayout scratch_layout;
    const size_t product_at = scratch_layout.add(product_scratch(products));
    const size_t scores_at = scratch_layout.add<float>(kBlock * l.strip);
    const size_t dp_at = scratch_layout.add<float>(kBlock * l.strip);
    const size_t p_at = scratch_layout.add(l.operand_bytes(kBlock * l.strip));
    const size_t ds_at = scratch_layout.add(l.operand_bytes(kBlock * l.strip));
    const size_t dq_at = scratch_layout.add<float>(kBlock * l.head_dim);
    const size_t dk_at = scratch_layout.add<float>(l.head_dim * l.strip);
    const size_t dv_at = scratch_layout.add<float>(l.head_dim * l.strip);
    const size_t q_at = scratch_layout.add(l.widened_bytes());
    const size_t k_at = scratch_layout.add(l.widened_bytes());
    const size_t v_at = scratch_layout.add(l.widened_bytes());
    const size_t dout_at = scratch_layout.add(l.widened_bytes());
    parallel_tasks(context, l.tasks(), scratch_layout.bytes(), [&](int64_t task, std::byte* scratch) {
        const int64_t first = task / l.kv_heads * l.sequence, kv = task % l.kv_heads;
        const int64_t k_col = (l.heads + kv) * l.head_dim, v_col = k_col + l.kv_heads * l.head_dim;
        auto* scores = reinterpret_cast<float*>(scratch + scores_at);
        auto* dp = reinterpret_cast<float*>(scratch + dp_at);
        auto* dq = reinterpret_cast<float*>(scratch + dq_at);
        auto* dk = reinterpret_cast<float*>(scratch + dk_at);
        auto* dv = reinterpret_cast<float*>(scratch + dv_at);
        void* run_scratch = scratch + product_at;
        const Head k(l, qkv, first, k_col, scratch + k_at), v(l, qkv, first, v_col, scratch + v_at);
        std::fill_n(dk, l.head_dim * l.strip, 0.0f);
        std::fill_n(dv, l.head_dim * l.strip, 0.0f);
        for (int64_t h = kv * l.group; h < (kv + 1) * l.group; ++h) {
            const int64_t col = h * l.head_dim;
            const Head q(l, qkv, first, col, scratch + q_at), d(l, dout, first, col, scratch + dout_at);
            for (int64_t block = 0; block < l.blocks; ++block) {
                const int64_t begin = block * kBlock;
                const BlockProducts& p = products[block];
                p.scores->run(q.at(begin), k.data, scores, run_scratch);
                p.value_scores->run(d.at(begin), v.data, dp, run_scratch);
                for (int64_t i = 0; i < l.rows(block); ++i) {
                    const int64_t row = first + begin + i;
                    const float delta =
                        dot_row(element(dout, row, col), element(out, row, col), l.is_bf16, l.head_dim);
                    softmax_backward_row(scores + i * l.strip, dp + i * l.strip, begin + i + 1, l.keys(block),
                                         l.scale, logsumexp.as<float>()[row * l.heads + h], delta, l.form,
                                         scratch + p_at + l.operand_bytes(i * l.strip),
                                         scratch + ds_at + l.operand_bytes(i * l.strip));
                }
                p.values->run(scratch + ds_at, k.data, dq, run_scratch);
                p.key_gradient->run(q.at(begin), scratch + ds_at, dk, run_scratch);
                p.value_gradient->run(d.at(begin), scratch + p_at, dv, run_scratch);
                for (int64_t i = 0; i < l.rows(block); ++i) {
                    store_row(dq + i * l.head_dim, 1.0f, l.is_bf16, element(dqkv, first + begin + i, col),
                              l.head_dim);
                }
            }
        }
        store_transposed(dk, l.strip, l.sequence, l.head_dim, l.is_bf16, element(dqkv, first, k_col),
                         l.qkv_width);
        store_transposed(dv, l.strip, l.sequence, l.head_dim, l.is_bf16, element(dqkv, first, v_col),
                         l.qkv_width);
    });
}

}  // namespace nibble
