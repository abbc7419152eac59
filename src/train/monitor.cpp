#include "train/monitor.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/cuda.h"
#include "optim/clip.h"

namespace nibble {

using Json = nlohmann::ordered_json;

namespace {

constexpr size_t kRecent = 5;                // samples
constexpr size_t kSickest = 5;               // layers that a summary names
constexpr size_t kWgradDy = 4, kWgradX = 5;  // places in kOperandNames

// Health has no use for more than five digits, and a log of many layers for fewer bytes.
Json number(double x) {
    return std::isfinite(x) ? Json(std::strtod(fmt::format("{:.5g}", x).c_str(), nullptr)) : Json();
}

// NaN where there are no values.
double median(std::vector<double> values) {
    std::erase_if(values, [](double x) { return std::isnan(x); });
    if (values.empty()) return NAN;
    std::sort(values.begin(), values.end());
    const size_t half = values.size() / 2;
    return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

double squared_norm(Context& context, const Tensor& x) {
    const double norm = global_norm(context, {&x, 1}).norm;
    return norm * norm;
}

// q with codes and scales where the context works: themselves, or copies in its arena.
QuantizedMatrix bytes_on(const Context& context, const QuantizedMatrix& q) {
    QuantizedMatrix result = q;
    result.operand = {};
    for (const auto part : {&QuantizedMatrix::codes, &QuantizedMatrix::scales, &QuantizedMatrix::fp32_scales,
                            &QuantizedMatrix::tensor_scale})
        if ((q.*part).shape.rank() > 0) result.*part = on_device(context, q.*part);
    return result;
}

Json operand_json(const QuantStatistics& s) {
    Json json = {{"relative_mse", number(s.relative_mse())},
                 {"clipped", number(s.clipped_share())},
                 {"flushed", number(s.flushed_share())},
                 {"amax", number(s.amax)}};
    if (s.blocks > 0) json["to_four"] = number(s.share_to_four());
    return json;
}

}  // namespace

double step_progress(double gradient_to_noise) {
    const double square = gradient_to_noise * gradient_to_noise;
    return square / (1 + square);
}

double predicted_noise(double relative_mse_dy, double relative_mse_x, double power) {
    return (relative_mse_dy + relative_mse_x + relative_mse_dy * relative_mse_x) * power;
}

double LayerHealth::gradient_to_noise() const { return std::sqrt(gradient / noise); }

Monitor::Monitor(Transformer& model, int64_t every, Noise noise, int64_t tokens)
    : model_(model), every_(every), noise_(noise) {
    int64_t elements = 0;
    for (const Parameter& parameter : model.parameters()) {
        if (parameter.kind != ParameterKind::matrix) continue;
        matrices_.push_back(&parameter);
        elements += parameter.master.count();
    }
    layers_.resize(matrices_.size());
    x_.resize(matrices_.size());
    // Operands of wgrad are padded along the tokens to at most a multiple of the largest rotation.
    const int64_t padded = (tokens + kMaxRotation - 1) / kMaxRotation * kMaxRotation;
    power_memory_ = Buffer(DType::f64, {static_cast<int64_t>(x_.size()) + 1, padded});
    dy_.of_token = power_memory_.tensor().as<double>();
    for (size_t id = 0; id < x_.size(); ++id)
        x_[id].of_token = dy_.of_token + static_cast<int64_t>(id + 1) * padded;
    if (takes_two_passes()) other_gradients_ = Buffer(DType::f32, {elements});
}

size_t Monitor::bytes() const { return power_memory_.bytes() + other_gradients_.bytes() + copies_.peak(); }

Context Monitor::on_cpu(Context& context) {
    if (context.device == Device::cpu) return context;
    if (copies_.planning() && !context.planning()) copies_.commit();
    return {.arena = copies_, .stream = context.stream};
}

Monitor::Sample::Sample(Monitor& monitor) : monitor_(monitor) {
    std::ranges::fill(monitor.layers_, LayerHealth{});
    monitor.dy_.tokens = 0;
    for (Powers& x : monitor.x_) x.tokens = 0;
    monitor.model_.observe([&monitor](Context& context, const QuantLinear::Observation& seen) {
        monitor.observe(context, seen);
    });
}

Monitor::Sample::~Sample() { monitor_.model_.observe({}); }

void Monitor::observe(Context& context_of_layer, const QuantLinear::Observation& seen) {
    const auto place = static_cast<size_t>(
        std::find(kOperandNames.begin(), kOperandNames.end(), seen.operand) - kOperandNames.begin());
    if (place == kOperandNames.size()) return;  // a result that is quantised
    const bool is_wgrad = place == kWgradDy || place == kWgradX;
    if (seen.quantized == nullptr && !is_wgrad) return;
    Powers& powers = place == kWgradX ? x_[seen.layer] : dy_;
    Context context = on_cpu(context_of_layer);
    const ArenaScope scope(context.arena);
    const Tensor source = on_device(context, seen.source);
    if (seen.quantized != nullptr) {
        const QuantizedMatrix quantized = bytes_on(context, *seen.quantized);
        StatisticsOptions options;
        options.signs = seen.signs;
        options.transposed = seen.is_transposed;
        options.scale = seen.scale;
        if (is_wgrad) options.column_power = powers.of_token;
        const QuantStatistics s = measure_quantized(context, quantized, source, options);
        layers_[seen.layer].operands[place] += s;
        if (is_wgrad) powers.tokens = quantized.padded_cols, powers.relative_mse = s.relative_mse();
    } else {
        const auto of_tokens = seen.is_transposed ? row_powers : column_powers;
        if (!context.planning()) of_tokens(source, seen.scale, powers.of_token);
        powers.tokens = seen.is_transposed ? source.rows() : source.cols();
        powers.relative_mse = 0;
    }
    if (is_wgrad) add_noise(seen.layer);
}

void Monitor::add_noise(uint16_t layer) {
    Powers& x = x_[layer];
    if (dy_.tokens == 0 || x.tokens == 0) return;  // one of the two is still to come
    const double power =
        std::inner_product(dy_.of_token, dy_.of_token + std::min(dy_.tokens, x.tokens), x.of_token, 0.0);
    layers_[layer].noise += predicted_noise(dy_.relative_mse, x.relative_mse, power);
    dy_.tokens = x.tokens = 0;
}

void Monitor::keep_other_pass(const Context& context) {
    if (context.planning()) return;
    float* to = other_gradients_.tensor().as<float>();
    for (const Parameter* matrix : matrices_) {
        copy(context, matrix->gradient, {to, DType::f32, Device::cpu, matrix->gradient.shape});
        to += matrix->gradient.count();
    }
}

void Monitor::Sample::finish(Context& context, int64_t step) {
    Monitor& m = monitor_;
    auto* other = m.takes_two_passes() ? m.other_gradients_.tensor().as<float>() : nullptr;
    std::vector<double> ratios(m.layers_.size(), NAN);
    for (size_t id = 0; id < m.layers_.size(); ++id) {
        LayerHealth& layer = m.layers_[id];
        Tensor gradient = m.matrices_[id]->gradient;
        double square = squared_norm(context, gradient);
        if (other != nullptr) {
            Context here = m.on_cpu(context);
            const ArenaScope scope(here.arena);
            gradient = on_device(here, gradient);
            const Tensor difference{other, DType::f32, Device::cpu, gradient.shape};
            square = (square + squared_norm(here, difference)) / 2;
            const auto* g = gradient.as<float>();
            if (!context.planning()) {
                parallel_for(gradient.count(), 1 << 14, [&](int64_t begin, int64_t end) {
                    for (int64_t i = begin; i < end; ++i) other[i] -= g[i];
                });
            }
            layer.noise = squared_norm(here, difference) / 2;
            other += gradient.count();
        }
        layer.gradient = std::max(0.0, square - layer.noise);
        if (layer.has_noise()) ratios[id] = layer.gradient_to_noise();
    }
    if (context.planning()) return;
    m.last_ = m.record(step);
    ++m.samples_;
    if (std::ranges::all_of(ratios, [](double r) { return std::isnan(r); })) return;
    ++m.samples_in_phase_;
    m.recent_.push_back(std::move(ratios));
    if (m.recent_.size() > kRecent) m.recent_.erase(m.recent_.begin());
}

Json Monitor::record(int64_t step) const {
    Json layers = Json::array();
    double gradient = 0, noise = 0;
    std::vector<double> ratios;
    for (size_t id = 0; id < layers_.size(); ++id) {
        const LayerHealth& layer = layers_[id];
        Json operands = Json::object();
        for (size_t place = 0; place < kOperandNames.size(); ++place)
            if (layer.operands[place].elements > 0)
                operands[std::string(kOperandNames[place])] = operand_json(layer.operands[place]);
        if (operands.empty() && !layer.has_noise()) continue;
        Json json = {{"layer", matrices_[id]->name}};
        if (layer.has_noise()) {
            gradient += layer.gradient, noise += layer.noise;
            ratios.push_back(layer.gradient_to_noise());
            json["gradient_to_noise"] = number(ratios.back());
            json["gradient"] = number(std::sqrt(layer.gradient));
            json["noise"] = number(std::sqrt(layer.noise));
        }
        json["operands"] = operands;
        layers.push_back(json);
    }
    const double least = ratios.empty() ? NAN : *std::min_element(ratios.begin(), ratios.end());
    return {{"type", "health"},
            {"step", step},
            {"noise", takes_two_passes() ? "two-pass" : "predicted"},
            {"gradient_to_noise",
             {{"model", number(std::sqrt(gradient / noise))},
              {"median", number(median(ratios))},
              {"least", number(least)}}},
            {"layers", layers}};
}

std::vector<double> Monitor::medians() const {
    std::vector<double> all;
    for (size_t id = 0; id < layers_.size(); ++id) {
        std::vector<double> of_layer;
        for (const auto& sample : recent_) of_layer.push_back(sample[id]);
        all.push_back(median(std::move(of_layer)));
    }
    return all;
}

std::optional<double> Monitor::gradient_to_noise() const {
    if (samples_in_phase_ < static_cast<int64_t>(kRecent)) return {};
    return median(medians());
}

Json Monitor::summary() const {
    if (samples_ == 0) return {};
    const std::vector<double> ratios = medians();
    std::vector<size_t> order;
    for (size_t id = 0; id < ratios.size(); ++id)
        if (!std::isnan(ratios[id])) order.push_back(id);
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return ratios[a] < ratios[b]; });
    const auto below = std::ranges::count_if(ratios, [](double r) { return r < kLeastGradientToNoise; });
    Json summary = {
        {"samples", samples_},
        {"step", last_.at("step")},
        {"noise", last_.at("noise")},
        {"gradient_to_noise",
         {{"model", last_.at("gradient_to_noise").at("model")}, {"median", number(median(ratios))}}},
        {"layers", order.size()},
        {"layers_below", below},
        {"lowest", Json::array()}};
    for (size_t i = 0; i < std::min(order.size(), kSickest); ++i)
        summary["lowest"].push_back(
            {{"layer", matrices_[order[i]]->name}, {"gradient_to_noise", number(ratios[order[i]])}});
    for (const char* what : {"flushed", "clipped", "relative_mse"}) {
        Json most;
        for (const Json& layer : last_.at("layers"))
            for (const auto& [operand, figures] : layer.at("operands").items())
                if (most.is_null() || figures.at(what) > most.at("value"))
                    most = {{"layer", layer.at("layer")}, {"operand", operand}, {"value", figures.at(what)}};
        if (!most.is_null()) summary["most"][what] = most;
    }
    return summary;
}

Json Monitor::state() const {
    return {{"samples", samples_},
            {"samples_in_phase", samples_in_phase_},
            {"recent", recent_},  // NaN is null
            {"last", last_}};
}

void Monitor::restore(const Json& state) {
    samples_ = state.at("samples").get<int64_t>();
    samples_in_phase_ = state.at("samples_in_phase").get<int64_t>();
    last_ = state.at("last");
    recent_.clear();
    for (const Json& sample : state.at("recent")) {
        require(sample.size() == layers_.size(), "the monitor's state is that of {} layers, not of {}",
                sample.size(), layers_.size());
        recent_.emplace_back();
        for (const Json& ratio : sample)
            recent_.back().push_back(ratio.is_null() ? NAN : ratio.get<double>());
    }
}

std::string health_text(const Json& summary) {
    const auto ratio = [](const Json& value) {
        return value.is_null() ? "none" : fmt::format("{:.2f}", value.get<double>());
    };
    const Json& of = summary.at("gradient_to_noise");
    std::string text = fmt::format(
        "health   gradient to noise at step {}: {} in the median layer, {} over the model; {} of {} layers "
        "below {:.2f}, where 4 bits stop paying",
        summary.at("step").dump(), ratio(of.at("median")), ratio(of.at("model")),
        summary.at("layers_below").dump(), summary.at("layers").dump(), kLeastGradientToNoise);
    std::string lowest;
    for (const Json& layer : summary.at("lowest"))
        lowest += fmt::format("{}{} {}", lowest.empty() ? "" : ", ", layer.at("layer").get<std::string>(),
                              ratio(layer.at("gradient_to_noise")));
    if (!lowest.empty()) text += "\n         lowest: " + lowest;
    if (!summary.contains("most")) return text;
    const auto most = [&](const char* what, const char* words) {
        const Json& found = summary.at("most").at(what);
        return fmt::format("{}: {} {} {:.2f} %", words, found.at("layer").get<std::string>(),
                           found.at("operand").get<std::string>(), 100 * found.at("value").get<double>());
    };
    return fmt::format("{}\n         {}; {}; {}", text, most("flushed", "most flushed to zero"),
                       most("clipped", "most clipped"), most("relative_mse", "largest relative MSE"));
}

}  // namespace nibble
