#include "optim/adamw.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "optim/adamw.cpp"
#include "core/cuda.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "optim/cuda_forms.h"
#include "optim/moments.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Multiplications and additions stay apart (no fused multiply-add), so that every instruction set gives the
// bits of adamw_reference. Returns how many elements whole vectors covered.
int64_t UpdateVectors(const AdamWFactors& f, int64_t count, const float* gradient, float* master, float* m,
                      float* v) {
    const hn::ScalableTag<float> d;
    const auto factor = hn::Set(d, f.gradient), epsilon = hn::Set(d, f.epsilon);
    const auto beta1 = hn::Set(d, f.beta1), rest1 = hn::Set(d, f.rest1);
    const auto beta2 = hn::Set(d, f.beta2), rest2 = hn::Set(d, f.rest2);
    const auto correction1 = hn::Set(d, f.correction1), correction2 = hn::Set(d, f.correction2);
    const auto lr = hn::Set(d, f.lr), keep = hn::Set(d, f.keep);
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
        const auto g = hn::Mul(factor, hn::LoadU(d, gradient + i));
        const auto new_m = hn::Add(hn::Mul(beta1, hn::LoadU(d, m + i)), hn::Mul(rest1, g));
        const auto new_v = hn::Add(hn::Mul(beta2, hn::LoadU(d, v + i)), hn::Mul(rest2, hn::Mul(g, g)));
        const auto root = hn::Add(hn::Sqrt(hn::Mul(new_v, correction2)), epsilon);
        const auto change = hn::Mul(lr, hn::Div(hn::Mul(new_m, correction1), root));
        hn::StoreU(hn::Sub(hn::Mul(hn::LoadU(d, master + i), keep), change), d, master + i);
        hn::StoreU(new_m, d, m + i);
        hn::StoreU(new_v, d, v + i);
    }
    return i;
}

}  // namespace nibble::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(UpdateVectors);

void adamw_reference(const AdamWFactors& f, float gradient, float& master, float& m, float& v) {
    const float g = f.gradient * gradient;
    m = f.beta1 * m + f.rest1 * g;
    v = f.beta2 * v + f.rest2 * (g * g);
    const float root = std::sqrt(v * f.correction2) + f.epsilon;
    master = master * f.keep - f.lr * ((m * f.correction1) / root);
}

namespace {

constexpr int64_t kChunk = 16384, kAlignment = 16;  // elements

int64_t aligned(int64_t count) { return (count + kAlignment - 1) / kAlignment * kAlignment; }

float stored_as(float x, float, uint16_t) { return x; }
Bf16 stored_as(float x, Bf16, uint16_t coin) { return bf16_round_stochastic(x, coin); }

// Elements [begin, end) of tensor number `tensor`, one after the other.
template <typename Gradient, typename Moment>
void update_elements(const AdamWFactors& f, uint16_t tensor, int64_t begin, int64_t end,
                     const Gradient* gradient, float* master, Moment* m, Moment* v) {
    Philox coins{};
    for (int64_t i = begin; i < end; ++i) {
        const auto at = static_cast<int>(i % kMomentCoins);
        if (std::is_same_v<Moment, Bf16> && (at == 0 || i == begin))
            coins = moment_coins(f.seed, f.update, tensor, i / kMomentCoins);
        float new_m = to_float(m[i]), new_v = to_float(v[i]);
        adamw_reference(f, to_float(gradient[i]), master[i], new_m, new_v);
        m[i] = stored_as(new_m, m[i], coins.coin(2 * at));
        v[i] = stored_as(new_v, v[i], coins.coin(2 * at + 1));
    }
}

}  // namespace

size_t AdamW::moment_bytes(const Shape& shape, DType moments) {
    return 2 * static_cast<size_t>(aligned(shape.count())) * size_of(moments);
}

AdamW::AdamW(std::vector<OptimizedTensor> tensors, const AdamWOptions& options)
    : tensors_(std::move(tensors)), options_(options) {
    const auto is_beta = [](double beta) { return beta >= 0 && beta < 1; };
    if (!is_beta(options.beta1) || !is_beta(options.beta2)) {
        fail_usage("the betas of AdamW must be in [0, 1), not [{}, {}]", options.beta1, options.beta2);
    }
    if (!(options.epsilon > 0)) fail_usage("the epsilon of AdamW must be positive, not {}", options.epsilon);
    if (!(options.weight_decay >= 0)) {
        fail_usage("the weight decay must not be negative, but is {}", options.weight_decay);
    }
    require(options.moments == DType::f32 || options.moments == DType::bf16,
            "the moments of AdamW are F32 or BF16, not {}", name_of(options.moments));
    size_t bytes = 0;
    const Device device = tensors_.empty() ? Device::cpu : tensors_.front().master.device;
    for (const OptimizedTensor& tensor : tensors_) {
        require(tensor.master.device == device && tensor.gradient.device == device,
                "{}: AdamW needs all tensors on one device", tensor.name);
        const DType of_gradient = tensor.gradient.dtype;
        require(
            tensor.master.dtype == DType::f32 && (of_gradient == DType::f32 || of_gradient == DType::bf16),
            "{}: AdamW needs an F32 master and an F32 or BF16 gradient, not {} and {}", tensor.name,
            name_of(tensor.master.dtype), name_of(tensor.gradient.dtype));
        require(tensor.master.shape == tensor.gradient.shape, "{}: the master is {}, its gradient {}",
                tensor.name, tensor.master.shape.str(), tensor.gradient.shape.str());
        bytes += moment_bytes(tensor.master.shape, options.moments);
    }
    require(tensors_.size() < (1u << 16), "AdamW takes {} tensors at most", (1u << 16) - 1);
    if (options.offload && device == Device::cpu)
        fail_usage("moments are offloaded from a GPU; on the cpu they are in the host's memory already");
    std::byte* next = nullptr;
    if (options.offload) {
        host_memory_ = HostBuffer(bytes, "turn the offload off");
        next = host_memory_.data();
    } else {
        memory_ = Buffer(bytes, device);
        next = memory_.data();
    }
    const auto take = [&](const Shape& shape) {
        const Tensor taken{next, options.moments, device, shape};
        next += static_cast<size_t>(aligned(shape.count())) * size_of(options.moments);
        return taken;
    };
    for (size_t t = 0; t < tensors_.size(); ++t) {
        const Tensor& master = tensors_[t].master;
        const int64_t count = master.count();
        State state{tensors_[t].name, take(master.shape), {}};
        state.v = take(master.shape);
        state_.push_back(std::move(state));
        for (int64_t begin = 0; begin < count; begin += kChunk) {
            chunks_.push_back({t, begin, std::min(count, begin + kChunk)});
        }
    }
    if constexpr (kHasCuda) {
        if (device == Device::cuda) {
            cuda_chunks_ = cuda::adamw_chunks(tensors_, state_);
            cuda_factors_ = Buffer(sizeof(AdamWFactors), device);
        }
    }
}

AdamWFactors AdamW::factors_of(const Context& context, int64_t update, double lr,
                               double gradient_factor) const {
    require(update >= 1, "updates of AdamW count from 1, not {}", update);
    const auto t = static_cast<double>(update);
    AdamWFactors decayed;
    decayed.gradient = static_cast<float>(gradient_factor);
    decayed.beta1 = static_cast<float>(options_.beta1);
    decayed.rest1 = static_cast<float>(1 - options_.beta1);
    decayed.beta2 = static_cast<float>(options_.beta2);
    decayed.rest2 = static_cast<float>(1 - options_.beta2);
    decayed.correction1 = static_cast<float>(1 / (1 - std::pow(options_.beta1, t)));
    decayed.correction2 = static_cast<float>(1 / (1 - std::pow(options_.beta2, t)));
    decayed.lr = static_cast<float>(lr);
    decayed.epsilon = static_cast<float>(options_.epsilon);
    decayed.keep = static_cast<float>(1 - lr * options_.weight_decay);
    decayed.seed = context.seed;
    decayed.update = static_cast<uint32_t>(update);
    return decayed;
}

void AdamW::update(Context& context, int64_t update, double lr, double gradient_factor) {
    begin_update(context, update, lr, gradient_factor);
    finish_update(context, {});
}

void AdamW::begin_update(const Context& context, int64_t update, double lr, double gradient_factor) {
    if (context.planning()) return;
    factors_ = factors_of(context, update, lr, gradient_factor);
    NIBBLE_ON_CUDA(context, set_adamw_factors(context, factors_, cuda_factors()));
}

void AdamW::finish_update(Context& context, const Tensor& gradient_factor) {
    if (context.planning()) return;
    require(factors_.update > 0, "an update of AdamW is finished that has not begun");
    const float* const factor = gradient_factor.as<float>();
    NIBBLE_ON_CUDA(context, adamw_update(context, cuda_chunks_, cuda_factors(), factor, options_.moments));
    AdamWFactors factors = factors_;
    if (factor != nullptr) factors.gradient *= *factor;
    update_on_cpu(factors);
}

void AdamW::update_on_cpu(const AdamWFactors& decayed) {
    if (std::isnan(decayed.gradient)) return;
    AdamWFactors plain = decayed;
    plain.keep = 1;
    const auto update_vectors = HWY_DYNAMIC_DISPATCH(UpdateVectors);
    parallel_for(static_cast<int64_t>(chunks_.size()), 1, [&](int64_t first, int64_t last) {
        for (int64_t c = first; c < last; ++c) {
            const Chunk& chunk = chunks_[static_cast<size_t>(c)];
            const OptimizedTensor& tensor = tensors_[chunk.tensor];
            const AdamWFactors& f = tensor.decay ? decayed : plain;
            auto* const master = tensor.master.as<float>();
            const State& state = state_[chunk.tensor];
            with_elements(tensor.gradient, [&](const auto* gradient) {
                with_elements(state.m, [&]<typename Moment>(Moment* m) {
                    auto* const v = state.v.as<Moment>();
                    int64_t begin = chunk.begin;
                    if constexpr (std::is_same_v<decltype(gradient), const float*> &&
                                  std::is_same_v<Moment, float>)
                        begin += update_vectors(f, chunk.end - begin, gradient + begin, master + begin,
                                                m + begin, v + begin);
                    update_elements(f, static_cast<uint16_t>(chunk.tensor), begin, chunk.end, gradient,
                                    master, m, v);
                });
            });
        }
    });
}

}  // namespace nibble
#endif
