// Cuts text into the pieces that byte-pair merges never cross, with regular expressions (PCRE2).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

// The pattern of GPT-2: contractions, letters, digits and other characters, each with a space in front.
extern const char* const kGpt2Pattern;
// The pattern of Llama 3 (and, but for the case of contractions and the digits, GPT-4): at most three digits
// together, line ends apart from other white space.
extern const char* const kLlama3Pattern;

// Several patterns are applied one inside the other. Matches and what lies between them are both pieces
// ("Isolated" in tokenizer.json). Patterns mean what they mean in Hugging Face's tokenizers (Oniguruma, Ruby
// syntax): \s is Unicode's White_Space. Letters and digits are those of the Unicode version that the PCRE2
// library was built with.
class PreTokenizer {
  public:
    // Throws Error when a pattern does not compile or would mean something else than in Oniguruma.
    explicit PreTokenizer(std::vector<std::string> patterns);
    ~PreTokenizer();
    PreTokenizer(PreTokenizer&&) noexcept;
    PreTokenizer& operator=(PreTokenizer&&) noexcept;

    const std::vector<std::string>& patterns() const { return patterns_; }

    // What one thread needs to match.
    class Scratch {
      public:
        Scratch();
        ~Scratch();
        Scratch(Scratch&&) noexcept;

      private:
        friend class PreTokenizer;
        struct Parts;
        std::unique_ptr<Parts> parts_;
    };

    // Calls `piece` for the non-empty pieces of `text` (UTF-8) from left to right; together they are the
    // text.
    void split(std::string_view text, Scratch& scratch,
               const std::function<void(std::string_view)>& piece) const;

  private:
    void split_from(size_t stage, std::string_view text, Scratch& scratch,
                    const std::function<void(std::string_view)>& piece) const;

    struct Code;
    std::vector<std::string> patterns_;
    std::vector<std::unique_ptr<Code>> codes_;
};

}  // namespace nibble
