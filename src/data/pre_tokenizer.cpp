#include "data/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <new>

#include "core/error.h"
#include "data/quoted.h"
#include "data/utf8.h"

namespace nibble {

const char* const kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char* const kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

// A pattern longer than this is no pre-tokeniser; compiling it could take any time.
constexpr size_t kMaxPatternBytes = 16384;

std::string pcre2_message(int code) {
    PCRE2_UCHAR buffer[256];
    pcre2_get_error_message(code, buffer, sizeof buffer);
    return reinterpret_cast<const char*>(buffer);
}

// The length of an interval such as {1,3} at the front, or 0.
size_t interval_length(std::string_view text) {
    const size_t end = text.find_first_not_of("0123456789,", 1);
    return end != text.npos && end > 1 && text[end] == '}' ? end + 1 : 0;
}

// The Oniguruma pattern as PCRE2 has it.
std::string translated(const std::string& pattern) {
    std::string result;
    bool in_class = false;
    for (size_t i = 0; i < pattern.size();) {
        const char c = pattern[i];
        if (c == '\\' && i + 1 < pattern.size()) {
            const char escaped = pattern[i + 1];
            // PCRE2 counts U+180E as white space in \s, Unicode and Oniguruma do not.
            if (escaped == 's' || escaped == 'S') {
                result += escaped == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
                i += 2;
                continue;
            }
            require(escaped != 'h' && escaped != 'H' && escaped != 'K',
                    "the pattern {} has \\{}, which nibble does not read", Quoted{pattern}, escaped);
            size_t end = i + 2;
            if ((escaped == 'p' || escaped == 'P' || escaped == 'x') && end < pattern.size() &&
                pattern[end] == '{') {
                end = std::min(pattern.find('}', end), pattern.size() - 1) + 1;
            }
            result += pattern.substr(i, end - i);
            i = end;
            continue;
        }
        const bool nested = c == '[' && pattern.compare(i, 2, "[:") != 0;
        require(!in_class || (!nested && pattern.compare(i, 2, "&&") != 0),
                "the pattern {} has a class inside a class, which nibble does not read", Quoted{pattern});
        if (c == '[') in_class = true;
        if (c == ']' && pattern.compare(i - 1, 2, ":]") != 0) in_class = false;
        if (c == '{' && !in_class) {
            const size_t length = interval_length(std::string_view(pattern).substr(i));
            require(length == 0 || i + length >= pattern.size() || pattern[i + length] != '+',
                    "the pattern {} has a + after an interval, which means different things in different "
                    "engines",
                    Quoted{pattern});
        }
        result += c;
        ++i;
    }
    return result;
}

}  // namespace

struct PreTokenizer::Code {
    pcre2_code* code = nullptr;

    explicit Code(const std::string& pattern) {
        require(pattern.size() <= kMaxPatternBytes && is_utf8(pattern),
                "a pre-tokeniser pattern is longer than {} bytes or not UTF-8", kMaxPatternBytes);
        const std::string source = translated(pattern);
        const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
            pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
        if (!context) throw std::bad_alloc();
        pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
        pcre2_set_parens_nest_limit(context.get(), 100);
        int error = 0;
        size_t offset = 0;
        code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                             &offset, context.get());
        if (code == nullptr)
            fail("the pattern {} is no regular expression: {}", Quoted{pattern}, pcre2_message(error));
        // Without JIT (a system that forbids it) matching is slower and the same.
        pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    }
    ~Code() { pcre2_code_free(code); }
    Code(const Code&) = delete;
    Code& operator=(const Code&) = delete;
};

struct PreTokenizer::Scratch::Parts {
    pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
    pcre2_match_context* context = pcre2_match_context_create(nullptr);
    pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, 16 << 20, nullptr);

    Parts() {
        if (match == nullptr || context == nullptr) throw std::bad_alloc();
        if (stack != nullptr) pcre2_jit_stack_assign(context, nullptr, stack);
    }
    ~Parts() {
        pcre2_match_data_free(match);
        pcre2_match_context_free(context);
        pcre2_jit_stack_free(stack);
    }
    Parts(const Parts&) = delete;
    Parts& operator=(const Parts&) = delete;
};

PreTokenizer::Scratch::Scratch() : parts_(std::make_unique<Parts>()) {}
PreTokenizer::Scratch::~Scratch() = default;
PreTokenizer::Scratch::Scratch(Scratch&&) noexcept = default;

PreTokenizer::PreTokenizer(std::vector<std::string> patterns) : patterns_(std::move(patterns)) {
    for (const std::string& pattern : patterns_) codes_.push_back(std::make_unique<Code>(pattern));
}
PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;

void PreTokenizer::split(std::string_view text, Scratch& scratch,
                         const std::function<void(std::string_view)>& piece) const {
    if (!text.empty()) split_from(0, text, scratch, piece);
}

void PreTokenizer::split_from(size_t stage, std::string_view text, Scratch& scratch,
                              const std::function<void(std::string_view)>& piece) const {
    if (stage == codes_.size()) {
        piece(text);
        return;
    }
    const auto pass_on = [&](size_t begin, size_t end) {
        if (begin < end) split_from(stage + 1, text.substr(begin, end - begin), scratch, piece);
    };
    size_t done = 0, at = 0;
    while (at < text.size()) {
        const int count =
            pcre2_match(codes_[stage]->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                        PCRE2_NO_UTF_CHECK, scratch.parts_->match, scratch.parts_->context);
        if (count == PCRE2_ERROR_NOMATCH) break;
        if (count < 0)
            fail("the pattern {} failed on this text: {}", Quoted{patterns_[stage]}, pcre2_message(count));
        const size_t* range = pcre2_get_ovector_pointer(scratch.parts_->match);
        const size_t begin = range[0], end = range[1];
        pass_on(done, begin);
        pass_on(begin, end);
        done = end;
        at = end;
        if (begin == end && at < text.size()) next_code_point(text, at);
    }
    pass_on(done, text.size());
}

}  // namespace nibble
