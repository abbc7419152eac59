// Powers with the same bits on every device: libraries of mathematics differ in the last one.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "numerics/host_device.h"

namespace nibble {

// x^p = exp(p log x) of a normal number x > 0, by series in double, one rounding an operation. For results
// between 2^-100 and 2^100; relative error below 1e-13.
NIBBLE_HD double portable_power(double x, double p) {
    constexpr double kLog2 = 0.6931471805599453;
    const uint64_t bits = std::bit_cast<uint64_t>(x);
    double exponent = static_cast<double>(static_cast<int>(bits >> 52 & 0x7ffu) - 1023);
    double m = std::bit_cast<double>((bits & 0xfffffffffffffu) | 0x3ff0000000000000u);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        exponent += 1.0;
    }
    // log m = 2 atanh(t), t = (m - 1) / (m + 1), |t| < 0.172
    const double t = (m - 1.0) / (m + 1.0), square = t * t;
    double sum = 0.0;
    for (int n = 17; n >= 1; n -= 2) sum = sum * square + 1.0 / n;
    const double y = p * (exponent * kLog2 + 2.0 * t * sum);
    // exp y = 2^whole exp z, |z| < 0.35
    const double whole = std::floor(y * (1.0 / kLog2) + 0.5), z = y - whole * kLog2;
    double e = 1.0;
    for (int n = 13; n >= 1; --n) e = e * z * (1.0 / n) + 1.0;
    return e * std::bit_cast<double>(static_cast<uint64_t>(static_cast<int64_t>(whole) + 1023) << 52);
}

}  // namespace nibble
