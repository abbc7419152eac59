// What quantisation did to a matrix, in sums over its elements: for studies and for the monitor of a run.
#pragma once

#include "quant/quant.h"

namespace nibble {

// x against its value in 4 bits, q, in the space in which it is quantised (rotated, if the spec rotates).
// Sums of several matrices add up.
struct QuantStatistics {
    double power = 0;  // |x|²
    double error = 0;  // |q - x|²
    double along = 0;  // <q - x, x>
    double amax = 0;   // the largest |x|
    // Counts of elements. Padding holds none, unless a rotation has filled it.
    double elements = 0;
    double clipped = 0;  // beyond the largest value of their block
    double flushed = 0;  // not 0, and become 0
    // Counts of blocks, where the scale rule is four-six; blocks of zeros are left out.
    double blocks = 0, blocks_to_four = 0;  // scaled so that their maximum is 4, not 6

    double relative_mse() const { return power > 0 ? error / power : 0; }
    double clipped_share() const { return elements > 0 ? clipped / elements : 0; }
    double flushed_share() const { return elements > 0 ? flushed / elements : 0; }
    double share_to_four() const { return blocks > 0 ? blocks_to_four / blocks : 0; }
    QuantStatistics& operator+=(const QuantStatistics& other);
};

struct StatisticsOptions {
    const SignBits* signs = nullptr;  // of the rotation; needed where the spec has some
    bool transposed = false;          // x is stored [cols, rows], as in QuantizeOptions
    float scale = 1;                  // `scale` times x was quantised
    double* column_power = nullptr;   // receives the sum of x² of each of the q.padded_cols columns
};

// q was quantised from x, F32 or BF16. Scratch of a few MB comes from context.arena; a planning pass returns
// zeros. The result does not depend on the number of threads.
QuantStatistics measure_quantized(Context& context, const QuantizedMatrix& q, const Tensor& x,
                                  const StatisticsOptions& options = {});

// out[r] <- scale² times the sum of squares of row r of x, F32 or BF16.
void row_powers(const Tensor& x, float scale, double* out);
// The same of column c.
void column_powers(const Tensor& x, float scale, double* out);

}  // namespace nibble
