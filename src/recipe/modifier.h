// Modifiers: what a method does beside the table of operands, with a state of its own. Here are their names,
// options and text forms; optim/ (after the optimizer's update), quant/ and nn/ execute them.
//
//   cage lambda=10 silence=0.8 ramp=linear
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace nibble {

// CAGE (arXiv 2510.18784): after the update, w <- w - lr lambda (w - Q(w)).
struct Cage {
    double lambda = 10;
    double silence = 0.8;         // fraction of the run before which it does nothing
    std::string ramp = "linear";  // lambda then rises to its value at the end of the run; or "constant"
    friend bool operator==(const Cage&, const Cage&) = default;
};

// Q-EMA (TetraJet, arXiv 2502.20853): the forward's weight is rounded towards its moving average.
struct Qema {
    double decay = 0.999;
    int64_t after = 10;  // updates that the average has seen before it is used
    friend bool operator==(const Qema&, const Qema&) = default;
};

// OsciReset (TetraJet-v2): weights whose quantised value moves much more than they do are set to it.
struct OsciReset {
    double start = 0.64;  // fraction of the run before the first window
    int64_t period = 200, window = 50;
    double threshold = 8;  // of sum |dQ(w)| / sum |dw|
    friend bool operator==(const OsciReset&, const OsciReset&) = default;
};

// Smooth-SwiGLU (arXiv 2409.12517): channels of the SwiGLU's output are brought to one magnitude before they
// are quantised; the down projection's columns take the inverse.
struct SmoothSwiglu {
    double strength = 1;                 // 1: all channels reach the tensor's maximum; 0: nothing changes
    std::string scale = "power-of-two";  // rounded down to one, so that scaling is exact; or "exact"
    friend bool operator==(const SmoothSwiglu&, const SmoothSwiglu&) = default;
};

using Modifier = std::variant<Cage, Qema, OsciReset, SmoothSwiglu>;

// "cage", "qema", "oscireset", "smooth-swiglu".
std::string_view name_of(const Modifier& modifier);
// Each option with its value, in order: {"lambda", "10"}. Texts are without quotes.
std::vector<std::pair<std::string, std::string>> options_of(const Modifier& modifier);
// The name and all options: "cage lambda=10 silence=0.8 ramp=linear".
std::string to_string(const Modifier& modifier);

// The modifier of a name with its defaults. Throws UsageError naming the nearest.
Modifier make_modifier(std::string_view name);
// Throws UsageError for an unknown option (with the nearest) or a value outside its limits.
void set_option(Modifier& modifier, std::string_view option, std::string_view value);
// "cage lambda=5": a name, then options that differ from their defaults. parse_modifier(to_string(m)) == m.
Modifier parse_modifier(std::string_view text);
// Throws UsageError when options contradict each other.
void validate_modifier(const Modifier& modifier);

}  // namespace nibble
