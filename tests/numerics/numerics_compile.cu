// Compiles every numerics header for the device, so that the oracle stays usable there. Nothing runs.
#include "numerics/numerics.h"

__global__ void use_numerics(const float* x, float* y, unsigned char* codes) {
    using namespace nibble;
    const Philox draw = philox_draw(1, Purpose::elements, blockIdx.x);
    codes[0] = e2m1_nearest(x[0]) | e2m1_nearest_away(x[1]) | e2m1_nearest_down(x[2]);
    codes[1] = e2m1_stochastic(x[3], draw.coin(0));
    codes[2] = e4m3_nearest(x[4]);
    codes[3] = e4m3_stochastic(x[5], draw.coin(1));
    codes[4] = with_element(Element::e5m2, [&](auto e) { return e.stochastic(x[8], draw.coin(2)); });
    codes[5] = mxfp8_rceil(mxfp8_rule(Element::e4m3), x[9]);
    y[2] = fp32_scale(largest_of(Element::int4), x[10]).scale * element_decode(Element::log4, codes[4]);
    y[0] = e2m1_decode(codes[1]) * e4m3_decode(codes[2]) * e8m0_decode(codes[3]);
    y[1] = round_to_bf16(x[6]) * power_of_two(exponent_of(x[7]));
    hadamard_transform(y, 16);
}
