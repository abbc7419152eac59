#include "study/align_study.h"

#include <algorithm>
#include <cmath>

#include "numerics/philox.h"
#include "study/linear_study.h"

namespace nibble {

namespace {

constexpr std::string_view kMatrices[] = {"attention.qkv", "attention.out", "mlp.gate_up", "mlp.down"};

std::vector<float> as_floats(const Tensor& t) {
    std::vector<float> values(static_cast<size_t>(t.count()));
    with_elements(t, [&](const auto* from) {
        std::transform(from, from + t.count(), values.begin(), [](auto x) { return to_float(x); });
    });
    return values;
}

// An observer that ends with this object, whose data it may refer to.
class Observation {
  public:
    Observation(Transformer& model, Transformer::ResidualObserver observer) : model_(model) {
        model_.observe_residual(std::move(observer));
    }
    ~Observation() { model_.observe_residual({}); }
    Observation(const Observation&) = delete;
    Observation& operator=(const Observation&) = delete;

  private:
    Transformer& model_;
};

// q, its mean over draws or one of them, against g. rows: what the cosine is averaged over; those in which g
// is zero have none.
struct Comparison {
    double cosine = 0, projection = 0, norm = 0, squared_error = 0;
};
template <typename Value>
Comparison compare(const std::vector<Value>& q, const std::vector<float>& g, int64_t rows) {
    const size_t cols = g.size() / static_cast<size_t>(rows);
    double along = 0, q_power = 0, g_power = 0, error = 0, cosines = 0;
    int64_t counted = 0;
    for (size_t begin = 0; begin < g.size(); begin += cols) {
        double row_along = 0, row_q = 0, row_g = 0;
        for (size_t i = begin; i < begin + cols; ++i) {
            const auto a = static_cast<double>(q[i]), b = double{g[i]};
            row_along += a * b;
            row_q += a * a;
            row_g += b * b;
            error += (a - b) * (a - b);
        }
        along += row_along, q_power += row_q, g_power += row_g;
        if (row_g == 0) continue;
        ++counted;
        if (row_q > 0) cosines += row_along / std::sqrt(row_q * row_g);
    }
    return {cosines / static_cast<double>(counted), along / g_power, std::sqrt(q_power / g_power),
            error / g_power};
}

}  // namespace

AlignmentStudy::AlignmentStudy(Transformer& model, const Tensor& tokens, const Tensor& targets, uint64_t seed)
    : model_(model), tokens_(tokens), targets_(targets), seed_(seed), names_{"residual"} {
    names_.insert(names_.end(), std::begin(kMatrices), std::end(kMatrices));
    model_.set_recipe(find_recipe("bf16"));
    reference_ = run(0);
}

AlignmentStudy::Gradients AlignmentStudy::run(int step) {
    const auto targets = targets_.span<const int32_t>();
    const auto counted = std::ssize(targets) - std::count(targets.begin(), targets.end(), kIgnoredTarget);
    require(counted > 0, "a batch without targets has no gradient");
    Gradients gradients;
    gradients.of.resize(names_.size() * static_cast<size_t>(model_.config().num_hidden_layers));
    const auto of = [&](int block, size_t name) -> std::vector<float>& {
        return gradients.of[static_cast<size_t>(block) * names_.size() + name];
    };
    const Observation observation(model_, [&](int block, const Tensor& t) { of(block, 0) = as_floats(t); });
    Arena arena;
    Context context{arena};
    context.seed = seed_;
    context.step = static_cast<uint32_t>(step);
    model_.zero_gradients(context);
    const auto pass = [&] {
        const ArenaScope scope(arena);
        model_.begin_step(context);
        const HeadLoss loss =
            model_.forward_backward(context, tokens_, targets_, 1.0f / static_cast<float>(counted));
        gradients.loss = loss.loss_sum / static_cast<double>(counted);
    };
    pass();  // plans the memory
    arena.commit();
    pass();
    for (int block = 0; block < model_.config().num_hidden_layers; ++block)
        for (size_t name = 1; name < names_.size(); ++name)
            of(block, name) =
                as_floats(model_.parameter(fmt::format("layers.{}.{}", block, names_[name])).gradient);
    return gradients;
}

RecipeAlignment AlignmentStudy::measure(const Recipe& recipe, int draws) {
    require(draws >= 1, "gradients are averaged over one draw or more, not {}", draws);
    model_.set_recipe(recipe);
    std::ranges::fill(model_.amax_history().span<float>(), 0.0f);
    RecipeAlignment result;
    result.draws = is_random(recipe) ? draws : 1;
    for (int block = 0; block < model_.config().num_hidden_layers; ++block)
        for (const std::string& name : names_) result.gradients.push_back({block, name, {}});

    const auto rows_of = [&](size_t i) { return i % names_.size() == 0 ? tokens_.count() : 1; };
    std::vector<std::vector<double>> mean(reference_.of.size());
    for (int draw = 0; draw < result.draws; ++draw) {
        const Gradients gradients = run(draw);
        if (draw == 0) result.loss = gradients.loss;
        for (size_t i = 0; i < mean.size(); ++i) {
            const std::vector<float>& q = gradients.of[i];
            const Comparison c = compare(q, reference_.of[i], rows_of(i));
            Alignment& a = result.gradients[i].alignment;
            a.cosine += c.cosine / result.draws;
            a.misalignment += (1 - c.projection) / result.draws;
            a.norm += c.norm / result.draws;
            a.error += c.squared_error / result.draws;
            mean[i].resize(q.size());
            for (size_t j = 0; j < q.size(); ++j) mean[i][j] += double{q[j]} / result.draws;
        }
    }
    for (size_t i = 0; i < mean.size(); ++i) {
        const Comparison c = compare(mean[i], reference_.of[i], rows_of(i));
        Alignment& a = result.gradients[i].alignment;
        const double one_draw = a.error, share = 1.0 / result.draws;
        a.error = std::sqrt(one_draw);
        if (result.draws > 1) {
            a.mean_cosine = c.cosine;
            a.bias = std::sqrt(std::max(0.0, (c.squared_error - one_draw * share) / (1 - share)));
        } else {
            a.mean_cosine = is_random(recipe) ? NAN : a.cosine;
            a.bias = is_random(recipe) ? NAN : a.error;
        }
    }
    return result;
}

TokenBatch random_batch(int64_t sequences, int64_t length, int64_t vocabulary, uint64_t seed) {
    TokenBatch batch{Buffer(DType::i32, {sequences, length}), Buffer(DType::i32, {sequences, length})};
    const auto token = [&](int64_t sequence, int64_t i) {
        const auto place = static_cast<uint64_t>(sequence * (length + 1) + i);
        return static_cast<int32_t>(philox_draw(seed, Purpose::data_order, place).word[0] %
                                    static_cast<uint64_t>(vocabulary));
    };
    auto *tokens = batch.tokens.tensor().as<int32_t>(), *targets = batch.targets.tensor().as<int32_t>();
    for (int64_t sequence = 0; sequence < sequences; ++sequence)
        for (int64_t i = 0; i < length; ++i) {
            *tokens++ = token(sequence, i);
            *targets++ = token(sequence, i + 1);
        }
    return batch;
}

}  // namespace nibble
