// The elements of quantised formats, one at a time: a code, its value, and rounding to it.
//
//   e2m1   4 bits, 0 .5 1 1.5 2 3 4 6              e4m3   8 bits, up to 448, subnormal step 2^-9
//   int4   4 bits, -7 .. 7, two's complement       e5m2   8 bits, up to 57344, subnormal step 2^-16
//   log4   4 bits, 0 1 2 4 8 16 32 64: a sign and an exponent (LUQ, arXiv 2112.10769)
//
// All but int4 are a sign bit above a magnitude whose codes count up through binades of 2^Mantissa steps.
// e2m1 has more rounding modes of its own (e2m1.h), and E4M3 as a scale byte has none of the sign (e4m3.h).
// Sources: arXiv 2209.05433, table 1 (E4M3 and E5M2; the codes of infinity and NaN are not used).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "numerics/e2m1.h"
#include "numerics/e8m0.h"
#include "numerics/host_device.h"
#include "numerics/stochastic.h"

namespace nibble {

enum class Element : uint8_t { e2m1, e4m3, e5m2, int4, log4 };

NIBBLE_HD int bits_of(Element element) {
    return element == Element::e4m3 || element == Element::e5m2 ? 8 : 4;
}

// Magnitudes: code c of a format with `Mantissa` bits and smallest binade 2^Least; the codes below 2^Mantissa
// are multiples of that binade's step from 0 on.
template <int Mantissa, int Least, int Largest>
struct Minifloat {
    static constexpr int kLargestCode = Largest;

    NIBBLE_HD static float decode(int code) {
        constexpr int kSteps = 1 << Mantissa;
        const int binade = code < kSteps ? 0 : (code >> Mantissa) - 1;
        return static_cast<float>(code - (binade << Mantissa)) * power_of_two(binade + Least - Mantissa);
    }
    // The binade of a, counted from the least; a lies `place` steps of it above zero. Exact.
    struct Place {
        int binade;
        float place;
    };
    NIBBLE_HD static Place place_of(float a) {
        const int exponent = exponent_of(a) < Least ? Least : exponent_of(a);
        return {exponent - Least, a * power_of_two(Mantissa - exponent)};
    }
    // To nearest; a tie goes to the even number of steps: to the even code, but where a binade is one step
    // (log4) from the middle of two powers of two up. 0 <= a; saturates.
    NIBBLE_HD static int nearest(float a) {
        const Place at = place_of(std::fmin(a, decode(kLargestCode)));
        constexpr float kWhole = 0x1.8p23f;  // adding it leaves no bits below 1
        return (at.binade << Mantissa) + static_cast<int>((at.place + kWhole) - kWhole);
    }
    // Up with the probability of the distance; grid points never move. 0 <= a; saturates.
    NIBBLE_HD static int stochastic(float a, uint16_t coin) {
        const Place at = place_of(std::fmin(a, decode(kLargestCode)));
        const int whole = static_cast<int>(at.place);
        return (at.binade << Mantissa) + whole + rounds_up(at.place - static_cast<float>(whole), coin);
    }
};

using E4M3 = Minifloat<3, -6, 0x7e>;
using E5M2 = Minifloat<2, -14, 0x7b>;
using Log4 = Minifloat<0, 0, 7>;

// The same for a number with its sign. A negative value that rounds to zero keeps its sign bit.
template <typename Magnitude, int SignBit>
struct SignedElement {
    NIBBLE_HD static float decode(uint8_t code) {
        const float magnitude = Magnitude::decode(code & (SignBit - 1));
        return (code & SignBit) != 0 ? -magnitude : magnitude;
    }
    NIBBLE_HD static uint8_t nearest(float v) {
        return static_cast<uint8_t>((std::signbit(v) ? SignBit : 0) | Magnitude::nearest(std::fabs(v)));
    }
    NIBBLE_HD static uint8_t stochastic(float v, uint16_t coin) {
        return static_cast<uint8_t>((std::signbit(v) ? SignBit : 0) |
                                    Magnitude::stochastic(std::fabs(v), coin));
    }
};

struct E2M1Element {
    NIBBLE_HD static float decode(uint8_t code) { return e2m1_decode(code); }
    NIBBLE_HD static uint8_t nearest(float v) { return e2m1_nearest(v); }
    NIBBLE_HD static uint8_t stochastic(float v, uint16_t coin) { return e2m1_stochastic(v, coin); }
};

// -7 .. 7; ties to the even number. Code 8 (-8) is not used, and zero has no sign.
struct Int4Element {
    NIBBLE_HD static float decode(uint8_t code) { return static_cast<float>((code & 7) - (code & 8)); }
    NIBBLE_HD static uint8_t nearest(float v) {
        constexpr float kWhole = 0x1.8p23f;
        return signed_code(v, static_cast<int>((std::fmin(std::fabs(v), 7.0f) + kWhole) - kWhole));
    }
    NIBBLE_HD static uint8_t stochastic(float v, uint16_t coin) {
        const float a = std::fmin(std::fabs(v), 7.0f);
        const int whole = static_cast<int>(a);
        return signed_code(v, whole + rounds_up(a - static_cast<float>(whole), coin));
    }

  private:
    NIBBLE_HD static uint8_t signed_code(float v, int magnitude) {
        return static_cast<uint8_t>((v < 0.0f ? -magnitude : magnitude) & 15);
    }
};

// Calls body with the functions of an element: decode(code), nearest(v), stochastic(v, coin).
template <typename Body>
NIBBLE_HD auto with_element(Element element, Body&& body) {
    switch (element) {
        case Element::e4m3:
            return body(SignedElement<E4M3, 0x80>{});
        case Element::e5m2:
            return body(SignedElement<E5M2, 0x80>{});
        case Element::int4:
            return body(Int4Element{});
        case Element::log4:
            return body(SignedElement<Log4, 8>{});
        case Element::e2m1:
            break;
    }
    return body(E2M1Element{});
}

// The largest magnitude: 6, 448, 57344, 7 or 64.
NIBBLE_HD float largest_of(Element element) {
    constexpr float kLargest[] = {kE2M1Max, 448.0f, 57344.0f, 7.0f, 64.0f};
    return kLargest[static_cast<int>(element)];
}

NIBBLE_HD float element_decode(Element element, uint8_t code) {
    return with_element(element, [code](auto e) { return e.decode(code); });
}

}  // namespace nibble
