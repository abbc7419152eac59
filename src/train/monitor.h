// Monitor: is there more gradient than quantisation noise? The ratio of FP4 All the Way (arXiv 2505.19115,
// section 4), layer by layer, with what quantisation did to each operand.
//
// With a quantised gradient g + e, E e = 0, Cov e = sigma² I in d dimensions, and a Hessian without preferred
// directions, the best SGD step gains r² / (1 + r²) of what it gains without noise, r = |g| / (sigma
// sqrt(d)). The loss of gain grows fastest at r = sqrt(3), where 3/4 are left: below, 4 bits cost more than
// they save.
//
// For a layer, g is its weight gradient dW and sigma² d = E |dW_hat - dW|². Either is predicted from what the
// operands of wgrad show, relative squared errors e_Y² and e_X², independent and of mean zero:
//
//   sigma² d = (e_Y² + e_X² + e_Y² e_X²) sum over tokens t of |dY_t|² |X_t|²
//
// in the space (rotated along the tokens, or not) in which they are multiplied; or measured with two passes
// over the same batch that share no random number, |dW_1 - dW_2|² / 2. A prediction counts each layer's own
// product; two passes also see what arrives from other layers, and miss the error of nearest rounding.
//
// The statistics are made on the CPU. Of a model on a GPU each operand is copied as it is made, so that a
// sampled step waits; the others do not know of the monitor.
#pragma once

#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/core.h"
#include "nn/transformer.h"
#include "quant/statistics.h"

namespace nibble {

inline constexpr double kLeastGradientToNoise = 1.7320508075688772;  // sqrt(3)

// What the best step gains at this ratio, as a share of what it gains without noise.
double step_progress(double gradient_to_noise);
// E |dW_hat - dW|². power: the sum over tokens of |dY_t|² |X_t|².
double predicted_noise(double relative_mse_dy, double relative_mse_x, double power);

// One sample of one layer, summed over the micro-steps of a step.
struct LayerHealth {
    double gradient = 0;  // |dW|², estimated: |dW_hat|² less the noise, or 0 where that is negative
    double noise = 0;     // E |dW_hat - dW|²; 0: none
    std::array<QuantStatistics, 6> operands;  // in the order of kOperandNames; no elements: not quantised

    bool has_noise() const { return noise > 0; }
    double gradient_to_noise() const;  // of a layer that has noise
};

class Monitor {
  public:
    enum class Noise : uint8_t { predicted, two_pass };

    // `tokens`: of a micro-batch. The model must outlive the monitor.
    Monitor(Transformer& model, int64_t every, Noise noise, int64_t tokens);

    // Whether the step with this number (1 is the first) is sampled.
    bool is_due(int64_t step) const { return step % every_ == 0; }
    bool takes_two_passes() const { return noise_ == Noise::two_pass; }
    size_t bytes() const;  // of its own memory, the CPU's

    // Watches one step. The gradients of an independent pass over the batch come first, where two are taken.
    // Nothing that the step computes depends on being watched.
    class Sample {
      public:
        explicit Sample(Monitor& monitor);
        ~Sample();
        Sample(const Sample&) = delete;
        Sample& operator=(const Sample&) = delete;
        // Takes the model's gradients, of the whole step.
        void finish(Context& context, int64_t step);

      private:
        Monitor& monitor_;
    };
    // The model's gradients are those of the independent pass.
    void keep_other_pass(const Context& context);

    // The last sample as a line of the log, but for "tokens" and "time".
    const nlohmann::ordered_json& last() const { return last_; }
    const std::vector<LayerHealth>& layers() const { return layers_; }

    // What `when` of a phase compares: each layer's median over the last five samples; of these, the median
    // over the layers. Nothing before five samples of a phase.
    std::optional<double> gradient_to_noise() const;
    void begin_phase() { samples_in_phase_ = 0; }

    // The state of the run's layers at the last sample; null without one.
    nlohmann::ordered_json summary() const;
    // What a resumed run needs.
    nlohmann::ordered_json state() const;
    void restore(const nlohmann::ordered_json& state);

  private:
    // Where the statistics are made: `context` itself, or one on the CPU whose memory is the monitor's.
    Context on_cpu(Context& context);
    void observe(Context& context, const QuantLinear::Observation& seen);
    void add_noise(uint16_t layer);
    nlohmann::ordered_json record(int64_t step) const;
    // Of each layer over the samples that are kept; NaN: without noise in all of them.
    std::vector<double> medians() const;

    Transformer& model_;
    int64_t every_;
    Noise noise_;
    std::vector<const Parameter*> matrices_;  // by layer id
    std::vector<LayerHealth> layers_;         // of the sample under way, then of the last one
    // |X_t|² of each layer from its forward, where it is made there, until its backward; |dY_t|².
    struct Powers {
        double* of_token = nullptr;
        int64_t tokens = 0;  // 0: not seen yet
        double relative_mse = 0;
    };
    Buffer power_memory_, other_gradients_;
    Arena copies_;  // of operands of a GPU, with the scratch of their statistics
    std::vector<Powers> x_;
    Powers dy_;

    int64_t samples_ = 0, samples_in_phase_ = 0;
    std::vector<std::vector<double>> recent_;  // ratios of all layers, the newest sample last
    nlohmann::ordered_json last_;
};

// A summary in a few lines for a person.
std::string health_text(const nlohmann::ordered_json& summary);

}  // namespace nibble
