// TileProduct: one plain matrix product on one thread, C = A · B or C += A · B. The only door to oneDNN.
//
// Larger products are cut into tiles (matmul.cpp, nn/attention.cpp, nn/cross_entropy.cpp) whose results stay
// in the core's cache, and whose shapes depend on the product's shape alone. So results do not depend on the
// number of threads.
#pragma once

#include <compare>
#include <string>

#include "core/core.h"

namespace nibble {

// C[m, n] = sum over k of A[m, k] * B[k, n], FP32 sums. Strides are in elements.
struct TileShape {
    int64_t m = 0, n = 0, k = 0;
    int64_t a_m = 0, a_k = 0;      // A(i, l) is at i * a_m + l * a_k; one of them is 1
    int64_t b_k = 0, b_n = 0;      // B(l, j) is at l * b_k + j * b_n; one of them is 1
    int64_t c_m = 0;               // C(i, j) is at i * c_m + j
    DType operands = DType::bf16;  // of A and B: BF16 where cpu_multiplies_bf16(), or F32
    DType result = DType::f32;     // of C: F32, or BF16 with BF16 operands
    bool accumulate = false;       // C +=; F32 only

    auto operator<=>(const TileShape&) const = default;
};

// The dtype in which this CPU multiplies BF16 values: BF16 where it has instructions for it, F32 elsewhere.
// Products of BF16 values are exact in both.
DType bf16_product_dtype();

class TileProduct {
  public:
    // From the process's cache; made at first use. Call it outside parallel loops, also when planning.
    static const TileProduct& get(const TileShape& shape);
    // The same product over a B in packed layout, which saves packing it for every tile of rows.
    // `model`: a product made by get_packed whose layout B has; null to let the library choose.
    static const TileProduct& get_packed(const TileShape& shape, const TileProduct* model = nullptr);

    // What run() needs beside its tensors, aligned to 64 bytes.
    size_t scratch_bytes() const;
    // Bytes of a packed B.
    size_t packed_bytes() const;
    // Packs B, stored as the shape said.
    void pack(const void* b, void* packed) const;
    // a, b, c: the first elements. On one thread, whatever the caller's threads are.
    void run(const void* a, const void* b, void* c, void* scratch) const;

    TileProduct(const TileProduct&) = delete;
    TileProduct& operator=(const TileProduct&) = delete;
    ~TileProduct();

  private:
    TileProduct(const TileShape& shape, bool packed, const TileProduct* model);
    static const TileProduct& get(const TileShape& shape, bool packed, const TileProduct* model);

    struct Impl;
    std::unique_ptr<Impl> impl_;
};

// "onednn 2.6.3, bf16 amx", "onednn 2.6.3, f32 avx2": the library and how it multiplies.
std::string tile_product_description();

}  // namespace nibble
