// What cannot be executed is refused here, with the reason; what can but surprises becomes a note.
#include "recipe/recipe.h"
#include "recipe/text.h"

namespace nibble {

namespace {

// The rotation of an operand along the contraction of its product, in words; empty if there is none.
// A same-bits operand was rotated, if at all, along the other dimension.
std::string rotation_text(const OperandSpec& operand, Signs by_gemm) {
    const QuantSpec& spec = operand.spec;
    if (!spec.rotates_columns() || operand.source == Source::same_bits) return {};
    if (spec.rotation == Rotation::hadamard) return fmt::format("hadamard:{}", spec.rotation_size);
    const char* const words[] = {"", "call", "step", "run", "te"};
    const Signs signs = spec.signs == Signs::by_gemm ? by_gemm : spec.signs;
    return fmt::format("{}:{} signs={}", spec.rotation == Rotation::rht2 ? "rht2" : "rht", spec.rotation_size,
                       words[static_cast<int>(signs)]);
}

class Checker {
  public:
    explicit Checker(const Recipe& recipe) : r_(recipe) {}

    void check() const {
        check_names();
        check_originals();
        check_rotations("fprop.x", "fprop.w", Signs::step);
        check_rotations("dgrad.dy", "dgrad.w", Signs::step);
        check_rotations("wgrad.dy", "wgrad.x", Signs::call);
        check_forward_signs();
        check_same_bits("dgrad.w", "fprop.w");
        check_same_bits("wgrad.x", "fprop.x");
        check_mask("fprop.x", "dgrad.w", finish_dx(r_));
        check_mask("fprop.w", "wgrad.x", finish_dw(r_));
        for (const std::string_view name : kOutputNames) check_output(name);
        check_rotated_rows();
        if (r_.outliers) check_outliers(*r_.outliers);
        if (r_.wgrad_factor) check_dge(*r_.wgrad_factor);
        check_modifiers();
    }

  private:
    template <typename... Args>
    [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
        throw UsageError(
            fmt::format("recipe '{}': {}", r_.name, fmt::format(format, std::forward<Args>(args)...)));
    }

    void check_names() const {
        if (r_.name.empty() || r_.name.find_first_of(" \t\r\n/\\") != std::string::npos) {
            refuse("a name is one word");
        }
        if (r_.title.find('\n') != std::string::npos || r_.source.find('\n') != std::string::npos) {
            refuse("title and source are one line each");
        }
        for (const double amount : {r_.keep_first, r_.keep_last}) {
            if (!detail::is_valid_kept(amount))
                refuse("kept blocks are a whole number or a share below 100%");
        }
        if (r_.lm_head != "bf16" && r_.lm_head != "fp8")
            refuse("lm_head = \"{}\" cannot be executed; it is \"bf16\" or \"fp8\"", r_.lm_head);
    }

    void check_originals() const {
        for (const std::string_view name : {"fprop.x", "fprop.w", "dgrad.dy", "wgrad.dy"}) {
            const Source source = operand(r_, name).source;
            if (source != Source::original) {
                refuse("{} is made from the original; only dgrad.w and wgrad.x can be made from '{}'", name,
                       name_of(source));
            }
        }
    }

    void check_rotations(std::string_view a, std::string_view b, Signs by_gemm) const {
        const std::string rotation_a = rotation_text(operand(r_, a), by_gemm);
        const std::string rotation_b = rotation_text(operand(r_, b), by_gemm);
        if (rotation_a == rotation_b) return;
        const auto shown = [](const std::string& text) { return text.empty() ? "not rotated" : text; };
        refuse("the rotations of {} ({}) and {} ({}) do not cancel; both operands of a product need the same",
               a, shown(rotation_a), b, shown(rotation_b));
    }

    void check_forward_signs() const {
        for (const std::string_view name : {"fprop.x", "fprop.w"}) {
            const QuantSpec& spec = operand(r_, name).spec;
            if (spec.has_signs() && spec.signs == Signs::call) {
                refuse("{} has signs=call, but the weight is quantised once a step; use step or run", name);
            }
        }
    }

    void check_same_bits(std::string_view backward, std::string_view forward) const {
        const OperandSpec &b = operand(r_, backward), &f = operand(r_, forward);
        if (b.source != Source::same_bits) return;
        if (!f.spec.is_quantized() || !(f.spec.is_square() || f.spec.block == Block::tensor)) {
            refuse("{} cannot have the same bits as {} ({}): that needs square blocks or one for the tensor",
                   backward, forward, to_string(f.spec));
        }
        if (b.spec != f.spec) {
            refuse("{} has the same bits as {}, so its spec is {} too, not {}", backward, forward,
                   to_string(f.spec), to_string(b.spec));
        }
    }

    void check_mask(std::string_view forward, std::string_view backward, const Finish& finish) const {
        const OperandSpec &f = operand(r_, forward), &b = operand(r_, backward);
        if (b.spec.mask_clip && b.source != Source::same_bits) {
            refuse("{} has mask=clip, which only operands of the forward can have", backward);
        }
        const std::string_view other = backward == "dgrad.w" ? "dgrad.dy" : "wgrad.dy";
        if (operand(r_, other).spec.mask_clip) {
            refuse("{} has mask=clip, which only operands of the forward can have", other);
        }
        if (finish.mask && f.spec.rotation != Rotation::none && !finish.unrotate) {
            refuse("the mask of {} is in its rotated space, so {} has to be made from 'forward'", forward,
                   backward);
        }
    }

    void check_rotated_rows() const {
        for (const std::string_view name : kOperandNames) {
            if (!operand(r_, name).spec.rotates_rows() || name == "dgrad.dy" || name == "wgrad.dy") continue;
            refuse("{} has rotate=...@rows; only dgrad.dy and wgrad.dy, whose results are turned back, can",
                   name);
        }
    }

    void check_outliers(const Outliers& outliers) const {
        if (!(outliers.quantile > 0.5 && outliers.quantile < 1))
            refuse("[outliers] quantile = {} must lie between 0.5 and 1", outliers.quantile);
        if (outliers.product.is_quantized())
            refuse("[outliers] product is \"bf16\" or \"fp32\", not {}", to_string(outliers.product));
        if (!r_.fprop_x.spec.is_quantized())
            refuse("[outliers] are kept from the quantiser of fprop.x, but it is {}",
                   to_string(r_.fprop_x.spec));
        if (r_.wgrad_x.source != Source::original) {
            refuse(
                "wgrad.x is made from '{}', which lacks what [outliers] cut off; make it from the original",
                name_of(r_.wgrad_x.source));
        }
    }

    void check_dge(const Dge& dge) const {
        if (!(dge.k >= 1 && dge.k <= 100)) refuse("wgrad.factor k = {} must lie between 1 and 100", dge.k);
        if (!(dge.cap > 0 && dge.cap <= 1e6)) refuse("wgrad.factor cap = {} must be positive", dge.cap);
        const QuantSpec& w = r_.fprop_w.spec;
        if (w.format != Format::fp4 || w.block != Block::row || w.rotation != Rotation::none) {
            refuse(
                "wgrad.factor is the slope of fprop.w's quantiser, which has to be fp4 row, not rotated; it "
                "is {}",
                to_string(w));
        }
    }

    void check_output(std::string_view name) const {
        const QuantSpec& spec = output(r_, name);
        if (spec == QuantSpec{}) return;
        const bool is_plain = spec.is_quantized() && spec.rotation == Rotation::none &&
                              !spec.is_stochastic() && !spec.mask_clip && spec.tensor != TensorScale::delayed;
        if (!is_plain) {
            refuse(
                "{} cannot be {}: a result is bf16 or quantised without rotate=, stochastic rounding, "
                "mask= and tensor=delayed",
                name, to_string(spec));
        }
    }

    void check_modifiers() const {
        for (size_t i = 0; i < r_.modifiers.size(); ++i) {
            const Modifier& modifier = r_.modifiers[i];
            const std::string_view name = name_of(modifier);
            for (size_t j = 0; j < i; ++j) {
                if (name_of(r_.modifiers[j]) == name) refuse("the modifier {} stands twice", name);
            }
            validate_modifier(modifier);
            if (std::holds_alternative<SmoothSwiglu>(modifier)) {
                check_smooth_swiglu();
            } else {
                check_quantized_weight(name);
            }
            if (std::holds_alternative<OsciReset>(modifier) && r_.fprop_w.spec.rotation != Rotation::none) {
                refuse("oscireset sets single weights, which the rotation of fprop.w ({}) mixes",
                       to_string(r_.fprop_w.spec));
            }
            if (std::holds_alternative<Qema>(modifier) && !has_e2m1_neighbours(r_.fprop_w.spec)) {
                refuse("qema chooses between neighbours of nvfp4 and mxfp4 with their own scales, not of {}",
                       to_string(r_.fprop_w.spec));
            }
            if (std::holds_alternative<Qema>(modifier) && r_.fprop_w.spec.correct != Correction::none) {
                refuse("qema rounds again below scales that fprop.w ({}) has corrected for its own rounding",
                       to_string(r_.fprop_w.spec));
            }
        }
    }

    // What quant/round_towards.h executes.
    static bool has_e2m1_neighbours(const QuantSpec& spec) {
        return spec.has_scale_bytes() && spec.element == Element::e2m1 && !spec.has_fp32_scales();
    }

    // cage, qema and oscireset are about Q(w), the forward's weight.
    void check_quantized_weight(std::string_view modifier) const {
        const QuantSpec& spec = r_.fprop_w.spec;
        if (!spec.is_quantized()) {
            refuse("{} needs a quantised fprop.w, which is {}; modifiers = [] leaves it out", modifier,
                   to_string(spec));
        }
        if (spec.is_stochastic()) {
            refuse("{} needs an fprop.w without coins, not {}", modifier, to_string(spec));
        }
    }

    // The down projection is quantised in each micro-batch, under other column scales.
    void check_smooth_swiglu() const {
        for (const std::string_view name : kOperandNames) {
            if (operand(r_, name).spec.is_quantized() &&
                operand(r_, name).spec.tensor == TensorScale::delayed) {
                refuse("smooth-swiglu scales by each micro-batch, {} by the step before (tensor=delayed)",
                       name);
            }
        }
        if (r_.modifiers.size() > 1) {
            refuse(
                "smooth-swiglu changes Q(w) of the down projection in each micro-batch: it is not combined "
                "with other modifiers, which are about one Q(w)");
        }
    }

    const Recipe& r_;
};

}  // namespace

void validate(const Recipe& recipe) { Checker(recipe).check(); }

std::vector<std::string> recipe_notes(const Recipe& recipe) {
    std::vector<std::string> notes;
    for (const std::string_view name : kOperandNames) {
        const QuantSpec& spec = operand(recipe, name).spec;
        if (spec.is_quantized() && is_four_six(spec.scale) && spec.round == Rounding::stochastic) {
            notes.push_back(
                fmt::format("{} picks the better of two scales after its coins fell, so it is biased", name));
        }
        if (spec.correct != Correction::none && !spec.has_signs()) {
            notes.push_back(fmt::format("{} corrects without a random rotation, so it is biased", name));
        }
    }
    return notes;
}

}  // namespace nibble
