#include "optim/forward_weight.h"

namespace nibble {

Tensor forward_weight(Context& context, const QuantSpec& spec, const RandomKey& key, const Tensor& w) {
    require(w.dtype == DType::f32 && w.shape.rank() == 2, "Q(w) is of F32 matrices, not of {} {}",
            name_of(w.dtype), w.shape.str());
    const Tensor values = context.arena.allocate(DType::f32, {w.rows(), spec.padded(w.cols())});
    const ArenaScope scope(context.arena);
    QuantizedMatrix q = allocate_quantized(context.arena, spec, w.rows(), w.cols());
    QuantizeOptions options;
    options.name = "weight";
    quantize(context, spec, w, key, q, options);
    dequantize(context, q, values);
    if (spec.rotation != Rotation::none) {
        unrotate(context, spec.rotation_size, rotation_signs(spec, key), values, spec.rotation_rounds());
    }
    return values;
}

}  // namespace nibble
