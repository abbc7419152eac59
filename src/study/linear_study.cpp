#include "study/linear_study.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "nn/quant_linear.h"

namespace nibble {

namespace {

Buffer matrix_of(int64_t rows, int64_t cols, const std::vector<float>& values) {
    Buffer buffer(DType::f32, {rows, cols});
    std::memcpy(buffer.data(), values.data(), buffer.bytes());
    return buffer;
}

template <typename A>
double relative(const std::vector<A>& a, const std::vector<float>& b) {
    double error = 0, power = 0;
    for (size_t i = 0; i < b.size(); ++i) {
        const double d = static_cast<double>(a[i]) - double{b[i]};
        error += d * d;
        power += double{b[i]} * double{b[i]};
    }
    return std::sqrt(error / power);
}

double slope(const std::vector<double>& a, const std::vector<float>& b) {
    double product = 0, power = 0;
    for (size_t i = 0; i < b.size(); ++i) {
        product += a[i] * double{b[i]};
        power += double{b[i]} * double{b[i]};
    }
    return product / power;
}

void add_share(std::vector<double>& sum, const std::vector<float>& x, int draws) {
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += double{x[i]} / draws;
}

}  // namespace

double relative_error(const std::vector<float>& a, const std::vector<float>& b) { return relative(a, b); }
double relative_error(const std::vector<double>& a, const std::vector<float>& b) { return relative(a, b); }

LayerData random_layer(int64_t tokens, int64_t in, int64_t out, Distribution distribution, uint64_t seed) {
    const auto draw = [&](int64_t rows, int64_t cols, uint64_t number) {
        return matrix_of(rows, cols, random_samples(distribution, rows * cols, 3 * (seed - 1) + number));
    };
    return {draw(tokens, in, 1), draw(out, in, 2), draw(tokens, out, 3)};
}

LayerProducts run_layer(const Recipe& recipe, const LayerData& data, uint64_t seed, uint32_t step) {
    const Tensor &x = data.x.tensor(), &w = data.w.tensor(), &dy = data.dy.tensor();
    const QuantLinear layer(recipe, w.cols(), w.rows(), 0);
    LayerProducts out = {std::vector<float>(static_cast<size_t>(dy.count())),
                         std::vector<float>(static_cast<size_t>(x.count())),
                         std::vector<float>(static_cast<size_t>(w.count()), 0.0f)};
    Arena arena;
    Context context{arena};
    context.seed = seed;
    context.step = step;
    AmaxHistory history;
    const auto run = [&] {
        const ArenaScope scope(arena);
        const QuantLinear::Weight weight =
            layer.prepare(context, w, layer.needs_history() ? &history : nullptr);
        const QuantLinear::Saved saved = layer.forward(context, weight, x, view_of(out.y, dy.shape));
        layer.backward(context, weight, saved, dy, view_of(out.dx, x.shape), view_of(out.dw, w.shape));
    };
    run();  // plans the memory
    arena.commit();
    run();
    return out;
}

LayerProducts exact_products(const LayerData& data) {
    Recipe exact;
    exact.name = "exact";
    for (const std::string_view name : kOperandNames) operand(exact, name).spec = parse_spec("fp32");
    return run_layer(exact, data, 1, 0);
}

Recipe with_unquantized_backward(Recipe recipe) {
    for (OperandSpec* o : {&recipe.dgrad_dy, &recipe.dgrad_w, &recipe.wgrad_dy, &recipe.wgrad_x}) {
        o->spec = parse_spec("fp32");
        if (o->source == Source::same_bits) o->source = Source::forward;
    }
    return recipe;
}

bool is_random(const QuantSpec& spec) {
    const bool fixed_signs = spec.signs == Signs::run || spec.signs == Signs::te;
    return spec.is_stochastic() || (spec.has_signs() && !fixed_signs);
}

bool is_random(const Recipe& recipe) {
    return std::any_of(kOperandNames.begin(), kOperandNames.end(),
                       [&](std::string_view name) { return is_random(operand(recipe, name).spec); });
}

LayerErrors layer_errors(const Recipe& recipe, const LayerData& data, const LayerProducts& exact, int draws,
                         uint64_t seed) {
    if (!is_random(recipe)) draws = 1;
    LayerErrors errors;
    std::vector<double> dx(exact.dx.size()), dw(exact.dw.size());
    for (int draw = 0; draw < draws; ++draw) {
        const LayerProducts out = run_layer(recipe, data, seed, static_cast<uint32_t>(draw));
        if (draw == 0) {
            errors.y = relative(out.y, exact.y);
            errors.dx = relative(out.dx, exact.dx);
            errors.dw = relative(out.dw, exact.dw);
            const LayerProducts own = run_layer(with_unquantized_backward(recipe), data, seed, 0);
            errors.own_dx = relative(out.dx, own.dx);
            errors.own_dw = relative(out.dw, own.dw);
        }
        add_share(dx, out.dx, draws);
        add_share(dw, out.dw, draws);
    }
    errors.mean_dx = relative(dx, exact.dx);
    errors.mean_dw = relative(dw, exact.dw);
    errors.slope_dx = slope(dx, exact.dx);
    errors.slope_dw = slope(dw, exact.dw);
    return errors;
}

}  // namespace nibble
