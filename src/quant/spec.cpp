#include "quant/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <numeric>
#include <span>
#include <vector>

namespace nibble {
namespace {

// --- the words and their values; one table serves reading and writing ---

template <typename T>
struct Named {
    std::string_view text;
    T value;
};

constexpr Named<Element> kFp8Elements[] = {{"e4m3", Element::e4m3}, {"e5m2", Element::e5m2}};
constexpr Named<Block> kNvfp4Blocks[] = {{"1x16", Block::b1x16}, {"16x16", Block::b16x16}};
constexpr Named<Block> kMxBlocks[] = {{"1x32", Block::b1x32}, {"32x32", Block::b32x32}};
constexpr Named<Block> kFp8Blocks[] = {
    {"tensor", Block::tensor}, {"row", Block::row}, {"1x128", Block::b1x128}, {"128x128", Block::b128x128}};
constexpr Named<Block> kFp4Blocks[] = {
    {"row", Block::row}, {"tensor", Block::tensor}, {"32x32", Block::b32x32}};
constexpr Named<Block> kWideBlocks[] = {{"row", Block::row}, {"tensor", Block::tensor}};
constexpr Named<ScaleRule> kNvfp4Scales[] = {{"amax", ScaleRule::amax},
                                             {"four-six:mse", ScaleRule::four_six_mse},
                                             {"four-six:mae", ScaleRule::four_six_mae},
                                             {"four-six:amax", ScaleRule::four_six_amax}};
constexpr Named<ScaleRule> kMxfp4Scales[] = {{"floor", ScaleRule::floor},
                                             {"ceil", ScaleRule::ceil},
                                             {"rceil", ScaleRule::rceil},
                                             {"even", ScaleRule::even},
                                             {"three-quarters", ScaleRule::three_quarters},
                                             {"quest:std", ScaleRule::quest_std},
                                             {"quest:rms", ScaleRule::quest_rms}};
constexpr Named<ScaleRule> kMxfp8Scales[] = {{"rceil", ScaleRule::rceil},
                                             {"floor", ScaleRule::floor},
                                             {"ceil", ScaleRule::ceil},
                                             {"even", ScaleRule::even}};
constexpr Named<ScaleRule> kAmaxScale[] = {{"amax", ScaleRule::amax}};
constexpr Named<Rounding> kRoundings[] = {{"nearest", Rounding::nearest},
                                          {"nearest-away", Rounding::nearest_away},
                                          {"nearest-down", Rounding::nearest_down},
                                          {"stochastic", Rounding::stochastic}};
constexpr Named<Correction> kCorrections[] = {
    {"none", Correction::none}, {"eden", Correction::eden}, {"eden-block", Correction::eden_block}};
constexpr Named<ScaleRounding> kScaleRoundings[] = {{"nearest", ScaleRounding::nearest},
                                                    {"stochastic", ScaleRounding::stochastic}};
constexpr Named<TensorScale> kTensorScales[] = {{"current", TensorScale::current},
                                                {"delayed", TensorScale::delayed},
                                                {"posthoc", TensorScale::posthoc},
                                                {"none", TensorScale::none}};
constexpr Named<Rotation> kRotations[] = {
    {"hadamard", Rotation::hadamard}, {"rht", Rotation::rht}, {"rht2", Rotation::rht2}};
constexpr Named<Signs> kSigns[] = {
    {"call", Signs::call}, {"step", Signs::step}, {"run", Signs::run}, {"te", Signs::te}};

constexpr std::string_view kNvfp4Words[] = {"scale",       "cap",   "range", "correct",
                                            "scale-round", "round", "outer", "tensor",
                                            "rotate",      "signs", "out",   "arithmetic"};
constexpr std::string_view kMxfp4Words[] = {"scale", "round", "rotate", "signs",
                                            "out",   "mask",  "mult",   "arithmetic"};
constexpr std::string_view kMxfp8Words[] = {"scale", "round", "rotate", "signs", "out"};
constexpr std::string_view kFp32ScaleWords[] = {"scale", "round", "tensor", "rotate", "signs", "out"};
// Words of the grammar that this version does not execute.
constexpr std::string_view kLaterWords[] = {"outliers"};

// What a format has; the first of blocks, scales and elements is the default.
struct Grammar {
    Format format;
    std::string_view name;
    std::span<const Named<Block>> blocks = {};
    std::span<const Named<ScaleRule>> scales = {};
    std::span<const std::string_view> words = {};
    Element element = Element::e2m1;
    std::span<const Named<Element>> elements = {};  // where there is a choice
};
constexpr Grammar kGrammars[] = {
    {Format::nvfp4, "nvfp4", kNvfp4Blocks, kNvfp4Scales, kNvfp4Words},
    {Format::mxfp4, "mxfp4", kMxBlocks, kMxfp4Scales, kMxfp4Words},
    {Format::mxfp8, "mxfp8", kMxBlocks, kMxfp8Scales, kMxfp8Words, Element::e4m3, kFp8Elements},
    {Format::fp8, "fp8", kFp8Blocks, kAmaxScale, kFp32ScaleWords, Element::e4m3, kFp8Elements},
    {Format::fp4, "fp4", kFp4Blocks, kAmaxScale, kFp32ScaleWords},
    {Format::int4, "int4", kWideBlocks, kAmaxScale, kFp32ScaleWords, Element::int4},
    {Format::log4, "log4", kWideBlocks, kAmaxScale, kFp32ScaleWords, Element::log4},
    {Format::bf16, "bf16"},
    {Format::fp32, "fp32"},
};
const Grammar& grammar_of(Format format) {
    return *std::find_if(std::begin(kGrammars), std::end(kGrammars),
                         [&](const Grammar& grammar) { return grammar.format == format; });
}

constexpr Ratio kMax4Range = {2, 3};
constexpr Ratio kEdenRange = {1600, 1581};  // (16/17) / 0.93: the block maximum goes to 6.0721

template <typename T>
std::string_view name_in(std::span<const Named<T>> table, T value) {
    for (const auto& entry : table) {
        if (entry.value == value) return entry.text;
    }
    return "?";
}

template <typename T>
bool has(std::span<const Named<T>> table, T value) {
    return std::any_of(table.begin(), table.end(), [&](const auto& entry) { return entry.value == value; });
}

template <typename Range>
bool contains(const Range& range, std::string_view word) {
    return std::find(std::begin(range), std::end(range), word) != std::end(range);
}

template <typename T>
std::vector<std::string> texts_of(std::span<const Named<T>> table) {
    std::vector<std::string> texts;
    for (const auto& entry : table) texts.emplace_back(entry.text);
    return texts;
}

std::string listed(const std::vector<std::string>& texts) {
    return fmt::format("{}", fmt::join(texts, ", "));
}

float default_cap(const QuantSpec& spec) {
    if (spec.correct == Correction::eden_block) return 255.99f;  // as the authors' emulation
    const bool headroom = spec.correct == Correction::eden || is_four_six(spec.scale);
    return headroom ? 256.0f : 448.0f;
}

bool is_quest(ScaleRule rule) { return rule == ScaleRule::quest_std || rule == ScaleRule::quest_rms; }

// What is wrong with a spec, or nothing.
std::string problem_of(const QuantSpec& s) {
    if (!s.is_quantized()) {
        QuantSpec plain;
        plain.format = s.format;
        return s == plain ? "" : "a format that is not quantised takes no block and no words";
    }
    const bool nvfp4 = s.format == Format::nvfp4;
    const Grammar& grammar = grammar_of(s.format);
    if (!has(grammar.blocks, s.block)) {
        return fmt::format("{} has blocks {}", grammar.name, listed(texts_of(grammar.blocks)));
    }
    if (grammar.elements.empty() ? s.element != grammar.element : !has(grammar.elements, s.element)) {
        return fmt::format("{} has other elements", grammar.name);
    }
    if (!has(grammar.scales, s.scale)) return "scale= takes a rule of another format";
    const double range = static_cast<double>(s.range.numerator) / s.range.denominator;
    if (s.range.numerator < 1 || s.range.denominator < 1 || range < 0.25 || range > 2.0) {
        return "range= must lie between 1/4 and 2";
    }
    if (!(s.cap >= 1.0f && s.cap <= 448.0f))
        return "cap= must lie between 1 and 448, the largest E4M3 number";
    if (!(s.mult >= 0.01f && s.mult <= 100.0f)) return "mult= must lie between 0.01 and 100";
    if (!nvfp4 && (s.range != Ratio{} || s.cap != QuantSpec{}.cap || s.correct != Correction::none ||
                   s.scale_round != ScaleRounding::nearest || s.outer_1x128)) {
        return "range=, cap=, correct=, scale-round= and outer= belong to nvfp4";
    }
    if (s.is_mx() && s.tensor != TensorScale::current) return "tensor= needs a format with a tensor scale";
    if (!nvfp4 && !s.is_mx() && s.tensor != TensorScale::current &&
        (s.block != Block::tensor || s.tensor != TensorScale::delayed)) {
        return "tensor= is current, or with block tensor delayed";
    }
    if (s.element != Element::e2m1 && s.round != Rounding::nearest && s.round != Rounding::stochastic) {
        return "round=nearest-away and nearest-down are for elements e2m1";
    }
    if (s.outer_1x128 && s.is_square()) return "outer=1x128 needs block 1x16";
    if (s.outer_1x128 && s.tensor != TensorScale::current) {
        return "outer=1x128 takes the place of the tensor scale; it goes without tensor=";
    }
    if (is_quest(s.scale) && s.is_square())
        return "scale=quest takes the spread of a row; it needs block 1x32";
    if (!is_quest(s.scale) && s.mask_clip) return "mask=clip needs scale=quest:std or quest:rms";
    if (!is_quest(s.scale) && s.mult != 1.0f) return "mult= needs scale=quest:std or quest:rms";

    if (s.correct != Correction::none && s.is_square()) {
        return "correct= gives every group of 16 its own scale; it needs block 1x16";
    }
    if (s.correct == Correction::eden_block && !s.rotates_columns()) {
        return "correct=eden-block has one factor for a rotation block; it needs rotate= without @rows";
    }
    if (s.correct == Correction::eden_block && s.tensor == TensorScale::posthoc) {
        return "tensor=posthoc goes with correct=eden, not with eden-block";
    }
    if (is_four_six(s.scale) && s.tensor == TensorScale::posthoc) {
        return "tensor=posthoc cannot go with scale=four-six, which needs the tensor scale to choose";
    }
    if (s.scale_round == ScaleRounding::stochastic && s.correct == Correction::none &&
        s.tensor != TensorScale::posthoc) {
        return "scale-round=stochastic needs correct= or tensor=posthoc, which round scales after the "
               "elements";
    }

    if (s.rotation == Rotation::none) {
        if (s.rotation_size != 0) return "rotate= names a size but no transform";
        if (s.out_bf16) return "out=bf16 rounds rotated values; it needs rotate=";
        if (s.rotation_of_rows) return "@rows says what rotate= rotates, but it names no transform";
    } else if (s.rotation_size != 16 && s.rotation_size != 32 && s.rotation_size != 64 &&
               s.rotation_size != 128) {
        return "rotate= takes sizes 16, 32, 64 and 128";
    }
    if (s.emulation && s.tensor != TensorScale::current && s.tensor != TensorScale::delayed) {
        return "arithmetic=emulation makes the tensor scale from the amax; it needs tensor=current or "
               "delayed";
    }
    if (s.emulation && s.outer_1x128)
        return "arithmetic=emulation has no second level of scales; drop outer=";
    if (s.emulation && !nvfp4 && s.rotation == Rotation::none) {
        return "arithmetic=emulation of mxfp4 is that of its rotation; it needs rotate=";
    }
    if (!s.has_signs() && s.signs != Signs::by_gemm) return "signs= needs rotate=rht:N or rht2:N";
    if (s.signs == Signs::te && (s.rotation != Rotation::rht || s.rotation_size != 16))
        return "signs=te are 16 fixed signs; they need rotate=rht:16";
    return "";
}

// --- parsing ---

class Parser {
  public:
    explicit Parser(std::string_view text) {
        constexpr std::string_view blank = " \t\r\n\v\f";
        for (size_t at = text.find_first_not_of(blank); at != text.npos;
             at = text.find_first_not_of(blank, at)) {
            const size_t end = std::min(text.find_first_of(blank, at), text.size());
            words_.push_back(text.substr(at, end - at));
            at = end;
        }
        text_ = fmt::format("{}", fmt::join(words_, " "));
        if (text_.size() > 200) text_ = text_.substr(0, 197) + "...";
    }

    QuantSpec parse() {
        if (words_.empty()) fail_usage("an empty spec; write a format, such as \"nvfp4 1x16 scale=amax\"");
        parse_format(words_[0]);
        size_t next = 1;
        if (next < words_.size() && words_[next].find('=') == std::string_view::npos)
            parse_block(words_[next++]);
        for (; next < words_.size(); ++next) parse_word(words_[next]);
        finish();
        const std::string problem = problem_of(spec_);
        if (!problem.empty()) fail_here("{}", problem);
        return spec_;
    }

  private:
    template <typename... Args>
    [[noreturn]] void fail_here(fmt::format_string<Args...> format, Args&&... args) const {
        fail_usage("{}: {}", text_, fmt::format(format, std::forward<Args>(args)...));
    }

    // "; nearest is ..." or the whole list where nothing is near.
    static std::string advice(std::string_view word, const std::vector<std::string>& choices) {
        const std::string nearest = nearest_name(word, choices);
        if (!nearest.empty()) return fmt::format("nearest is \"{}\"", nearest);
        return fmt::format("choose from {}", listed(choices));
    }

    template <typename T>
    T value_of(std::string_view word, std::string_view value, std::span<const Named<T>> table) const {
        for (const auto& entry : table) {
            if (entry.text == value) return entry.value;
        }
        fail_here("unknown value \"{}\" of {}=; {}", value, word, advice(value, texts_of(table)));
    }

    void parse_format(std::string_view word) {
        const std::string_view name = word.substr(0, word.find(':'));
        grammar_ = std::find_if(std::begin(kGrammars), std::end(kGrammars),
                                [&](const Grammar& grammar) { return grammar.name == name; });
        if (grammar_ == std::end(kGrammars)) {
            std::vector<std::string> names;
            for (const Grammar& grammar : kGrammars) names.emplace_back(grammar.name);
            fail_here("unknown format \"{}\"; {}", name, advice(name, names));
        }
        spec_.format = grammar_->format;
        spec_.element = grammar_->element;
        if (spec_.is_quantized()) {
            spec_.block = grammar_->blocks.front().value;
            spec_.scale = grammar_->scales.front().value;
        }
        if (name != word) parse_element(word, word.substr(name.size() + 1));
    }

    void parse_element(std::string_view word, std::string_view element) {
        for (const auto& entry : grammar_->elements) {
            if (entry.text != element) continue;
            spec_.element = entry.value;
            return;
        }
        const bool only_e2m1 = spec_.is_quantized() && spec_.element == Element::e2m1;
        if (only_e2m1 && element == "e2m1") return;
        fail_here("unknown element in \"{}\"; {} has {}", word, grammar_->name,
                  !grammar_->elements.empty() ? listed(texts_of(grammar_->elements))
                  : only_e2m1                 ? "only e2m1"
                                              : "none to name");
    }

    void parse_block(std::string_view word) {
        if (!spec_.is_quantized()) fail_here("unexpected \"{}\"; {} takes no block", word, words_[0]);
        for (const auto& entry : grammar_->blocks) {
            if (entry.text == word) {
                spec_.block = entry.value;
                return;
            }
        }
        fail_here("unknown block \"{}\"; {} has {}", word, words_[0], listed(texts_of(grammar_->blocks)));
    }

    void parse_word(std::string_view text) {
        const size_t equals = text.find('=');
        if (equals == std::string_view::npos)
            fail_here("unexpected \"{}\"; words look like scale=amax", text);
        const std::string_view word = text.substr(0, equals), value = text.substr(equals + 1);
        if (contains(kLaterWords, word)) fail_here("{}= is not available in this version", word);
        if (!spec_.is_quantized()) fail_here("unexpected \"{}\"; {} takes no words", text, words_[0]);
        const auto known = grammar_->words;
        if (!contains(known, word)) {
            const bool is_of_other =
                std::any_of(std::begin(kGrammars), std::end(kGrammars),
                            [&](const Grammar& other) { return contains(other.words, word); });
            if (is_of_other) fail_here("{}= does not go with {}", word, words_[0]);
            fail_here("unknown word \"{}\"; {}", word, advice(word, {known.begin(), known.end()}));
        }
        if (contains(seen_, word)) fail_here("{}= is given twice", word);
        seen_.push_back(word);
        if (value.empty()) fail_here("{}= has no value", word);
        set(word, value);
    }

    void set(std::string_view word, std::string_view value) {
        if (word == "scale") set_scale(value);
        if (word == "cap") spec_.cap = number(word, value);
        if (word == "mult") spec_.mult = number(word, value);
        if (word == "range") spec_.range = ratio(value);
        if (word == "correct") spec_.correct = value_of<Correction>(word, value, kCorrections);
        if (word == "scale-round") spec_.scale_round = value_of<ScaleRounding>(word, value, kScaleRoundings);
        if (word == "round") spec_.round = value_of<Rounding>(word, value, kRoundings);
        if (word == "tensor") spec_.tensor = value_of<TensorScale>(word, value, kTensorScales);
        if (word == "outer") {
            if (value != "1x128") fail_here("unknown value \"{}\" of outer=; only 1x128 is one", value);
            spec_.outer_1x128 = true;
        }
        if (word == "rotate") set_rotation(value);
        if (word == "signs") spec_.signs = value_of<Signs>(word, value, kSigns);
        if (word == "out") {
            if (value != "bf16") fail_here("unknown value \"{}\" of out=; only bf16 is one", value);
            spec_.out_bf16 = true;
        }
        if (word == "mask") {
            if (value != "clip") fail_here("unknown value \"{}\" of mask=; only clip is one", value);
            spec_.mask_clip = true;
        }
        if (word == "arithmetic") {
            if (value != "emulation") {
                fail_here("unknown value \"{}\" of arithmetic=; only emulation is one", value);
            }
            spec_.emulation = true;
        }
    }

    void set_scale(std::string_view value) {
        const bool nvfp4 = spec_.format == Format::nvfp4;
        if (nvfp4 && (value == "eden" || value == "max4")) {
            shorthand_ = value;
            return;
        }
        for (const auto& entry : grammar_->scales) {
            if (entry.text == value) {
                spec_.scale = entry.value;
                return;
            }
        }
        std::vector<std::string> choices = texts_of(grammar_->scales);
        if (nvfp4) choices.insert(choices.end(), {"max4", "eden"});
        const bool is_of_other =
            value == "eden" || value == "max4" ||
            std::any_of(std::begin(kGrammars), std::end(kGrammars),
                        [&](const Grammar& other) { return contains(texts_of(other.scales), value); });
        if (is_of_other) {
            fail_here("scale={} does not go with {}, which takes {}", value, words_[0], listed(choices));
        }
        fail_here("unknown value \"{}\" of scale=; {}", value, advice(value, choices));
    }

    void set_rotation(std::string_view value) {
        if (value == "none") return;
        if (const size_t at = value.find('@'); at != std::string_view::npos) {
            if (value.substr(at) != "@rows")
                fail_here("rotate={}: after '@' comes \"rows\", the other dimension", value);
            spec_.rotation_of_rows = true;
            value = value.substr(0, at);
        }
        const size_t colon = value.find(':');
        const std::string_view name = value.substr(0, colon);
        spec_.rotation = value_of<Rotation>("rotate", name, kRotations);
        if (colon == std::string_view::npos)
            fail_here("rotate={} needs a size, such as rotate={}:16", name, name);
        const std::string_view size = value.substr(colon + 1);
        spec_.rotation_size = size == "16"    ? 16
                              : size == "32"  ? 32
                              : size == "64"  ? 64
                              : size == "128" ? 128
                                              : 0;
        if (spec_.rotation_size == 0) fail_here("size \"{}\" of rotate=; it must be 16, 32, 64 or 128", size);
    }

    float number(std::string_view word, std::string_view value) const {
        float result = 0.0f;
        const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), result);
        if (error != std::errc() || end != value.data() + value.size()) {
            fail_here("value \"{}\" of {}= is not a number", value, word);
        }
        return result;
    }

    Ratio ratio(std::string_view value) const {
        const size_t slash = value.find('/');
        const auto part = [&](std::string_view digits) {
            int result = 0;
            const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), result);
            const bool whole = error == std::errc() && end == digits.data() + digits.size();
            if (!whole || result < 1 || result > 65535) {
                fail_here("value \"{}\" of range= is not a fraction such as 16/17 (parts up to 65535)",
                          value);
            }
            return result;
        };
        return {part(value.substr(0, slash)), slash == value.npos ? 1 : part(value.substr(slash + 1))};
    }

    // Shorthands and defaults that depend on other words.
    void finish() {
        if (shorthand_ == "max4") {
            if (contains(seen_, "range")) fail_here("scale=max4 means range=2/3; leave one of them out");
            spec_.range = kMax4Range;
        }
        if (shorthand_ == "eden") {
            if (contains(seen_, "correct")) fail_here("scale=eden means correct=eden; leave one of them out");
            spec_.correct = Correction::eden;
            if (!contains(seen_, "range")) spec_.range = kEdenRange;
            if (!contains(seen_, "scale-round")) spec_.scale_round = ScaleRounding::stochastic;
        }
        if (spec_.format == Format::nvfp4 && !contains(seen_, "cap")) spec_.cap = default_cap(spec_);
    }

    std::vector<std::string_view> words_;
    std::string text_;
    const Grammar* grammar_ = nullptr;
    QuantSpec spec_;
    std::vector<std::string_view> seen_;
    std::string_view shorthand_;
};

}  // namespace

int QuantSpec::block_size() const {
    switch (block) {
        case Block::b1x32:
        case Block::b32x32:
            return 32;
        case Block::b1x128:
        case Block::b128x128:
            return 128;
        default:
            return 16;
    }
}

int64_t QuantSpec::padding() const {
    if (!is_quantized()) return 1;
    const int cols = outer_1x128 ? 128 : block_size();
    return rotates_columns() ? std::lcm(cols, rotation_size) : cols;
}

void validate_spec(const QuantSpec& spec) {
    const std::string problem = problem_of(spec);
    if (!problem.empty()) fail_usage("{}: {}", to_string(spec), problem);
}

QuantSpec parse_spec(std::string_view text) { return Parser(text).parse(); }

std::string to_string(const QuantSpec& s) {
    const Grammar& grammar = grammar_of(s.format);
    std::string text(grammar.name);
    if (!s.is_quantized()) return text;
    const auto add = [&](std::string_view word, std::string_view value) {
        text += fmt::format(" {}={}", word, value);
    };
    const bool nvfp4 = s.format == Format::nvfp4;
    if (!grammar.elements.empty()) text += fmt::format(":{}", name_in(grammar.elements, s.element));
    text += fmt::format(" {}", name_in(grammar.blocks, s.block));
    if (nvfp4) {
        const bool amax = s.scale == ScaleRule::amax;
        const bool eden = amax && s.correct == Correction::eden && s.range == kEdenRange &&
                          s.scale_round == ScaleRounding::stochastic;
        const bool max4 = amax && !eden && s.range == kMax4Range;
        if (eden) add("scale", "eden");
        if (max4) add("scale", "max4");
        if (!amax) add("scale", name_in<ScaleRule>(kNvfp4Scales, s.scale));
        if (s.cap != default_cap(s)) add("cap", fmt::format("{}", s.cap));
        if (!eden && !max4 && s.range != Ratio{}) {
            add("range", fmt::format("{}/{}", s.range.numerator, s.range.denominator));
        }
        if (!eden && s.correct != Correction::none)
            add("correct", name_in<Correction>(kCorrections, s.correct));
        if (!eden && s.scale_round != ScaleRounding::nearest) add("scale-round", "stochastic");
    } else if (s.scale != grammar.scales.front().value) {
        add("scale", name_in(grammar.scales, s.scale));
    }
    if (s.mult != 1.0f) add("mult", fmt::format("{}", s.mult));
    if (s.round != Rounding::nearest) add("round", name_in<Rounding>(kRoundings, s.round));
    if (s.outer_1x128) add("outer", "1x128");
    if (s.tensor != TensorScale::current) add("tensor", name_in<TensorScale>(kTensorScales, s.tensor));
    if (s.rotation != Rotation::none) {
        add("rotate", fmt::format("{}:{}{}", name_in<Rotation>(kRotations, s.rotation), s.rotation_size,
                                  s.rotation_of_rows ? "@rows" : ""));
    }
    if (s.signs != Signs::by_gemm) add("signs", name_in<Signs>(kSigns, s.signs));
    if (s.out_bf16) add("out", "bf16");
    if (s.mask_clip) add("mask", "clip");
    if (s.emulation) add("arithmetic", "emulation");
    return text;
}

std::string_view caution_of(const QuantSpec& spec) {
    if (is_four_six(spec.scale) && spec.round == Rounding::stochastic) {
        return "four-six chooses between stochastic candidates: the result is biased";
    }
    return "";
}

}  // namespace nibble
