#!/usr/bin/env python3
"""Record how Hugging Face's `tokenizers` trains, encodes and decodes: the reference of tests/data.

usage: record_tokenizer_cases.py        writes tests/golden/tokenizers/. Needs: pip install tokenizers==0.23.3
"""
import json
import pathlib

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

OUT = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "tokenizers"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The opening of Pride and Prejudice (public domain), and lines for what English prose lacks.
CORPUS = """It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a
wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth
is so well fixed in the minds of the surrounding families, that he is considered as the rightful property of some one or
other of their daughters. "My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield Park is
let at last?" Mr. Bennet replied that he had not. "But it is," returned she; "for Mrs. Long has just been here, and she
told me all about it." Mr. Bennet made no answer. "Do not you want to know who has taken it?" cried his wife impatiently.
"You want to tell me, and I have no objection to hearing it." This was invitation enough.

Prices rose from 1234567 to 1234890 in 2024; it's 12 % more, isn't it? We'll see. I'VE SAID IT'S LOUD.
    if (x == y) {\n\t\treturn x;\n    }\n\n\n
Größe und Straße, Köln. Été, français, où. Привет, мир, мир. 日本語のテキスト、日本語。 한국어 한국어. 🙂🙂 👍🏽 naïve naïve
aaaaaaaaaaaaaaaa abababababab aaaa aaaa
"""

TEXTS = [
    "",
    " ",
    "a",
    "It is a truth universally acknowledged",
    "the daughters of the neighbourhood, and the wife.",
    CORPUS,
    # white space
    "  two  spaces   and    more     ",
    "\n\n\nlines\n\n  indented\n\t\ttabs\t \t mixed\r\n\r\nwindows\r\nold mac\rend\n",
    " \n \n  \n",
    "trailing   \n",
    "vertical\x0btab form\x0cfeed",
    "\u00a0no-break\u00a0\u00a0space \u2003em\u2003space \u3000ideographic\u3000",
    "next\u0085line line\u2028separator paragraph\u2029separator",
    "mongolian\u180evowel separator, zero\u200bwidth, bom\ufeff",
    "\u1680ogham\u205fmath\u202fnarrow",
    # letters, digits, contractions
    "it's IT'S it'S I'll I'LL we've WE'VE they'd I'm you're don't 'sup 'Tis '",
    "it\u2019s it'\u017f IT'\u017fX rock'n'roll O'Reilly",
    "1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 0x7f 1e-5",
    "٣٤٥٦ ½ Ⅷ ⅷ ² ₃ ①② 𝟘𝟙 १२३४",
    "Größe STRASSE ﬁ ﬀ Ǆ ǅ İ ı ẞ",
    "e\u0301 e\u0301e\u0301 \u0301alone n\u0303",
    "Привет, мир! Ελλάδα שלום العالم हिन्दी नमस्ते ไทย 日本語 中文字符 한국어 𐍈 𝒳 ꙮ",
    "🙂 🙂🙂 👍🏽 👨‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ 🏳️‍🌈",
    "\u0000\u0001\u001f\u007f\u0080\u009f\u00ad\ufffd\ue000\ufffe\U0010ffff\U000e0001",
    # punctuation and code
    "!!! ... --- ??? !? (a) [b] {c} <d> «e» “f” … — –",
    "def f(x):\n    return x**2 + 1  # comment\n\nprint(f(3))\n",
    "https://example.org/a?b=c&d=%20#e user@example.org C++ C# a_b __init__",
    "end.\nStart !\n\n?\r\n\r\n;",
    # repeats and long pieces
    "a" * 300,
    "ab" * 150 + "a",
    " " * 100 + "x" + "\n" * 50,
    "na" * 20 + "🙂" * 20,
    # added tokens
    "<|endoftext|>",
    "one<|endoftext|>two<|endoftext|>",
    " <|endoftext|> <|endoftext|>\n<|endoftext|>",
    "<|endoftext|<|endoftext|>|>",
    "<|endo", "<|pad|><|pad|>x<|padded|>",
    "thinking <think> hard </think> <thinks>",
    "<|END_OF_TEXT|>",
]
# Bytes that are not UTF-8: nibble reads them as Python's decode("utf-8", "replace") does.
ILL_FORMED = [
    b"\xff", b"a\x80b", b"\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x28\xa1", b"\xf0\x9f\x99", b"\xf0\x9f\x99 x",
    b"\xed\xa0\x80\xed\xb0\x80", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf8\x88\x80\x80\x80", b"\xf4\x90\x80\x80",
    b"ok \xf0\x9f\x99\x82 \xf0\x9f\x99\x82\xf0", b"\xef\xbf\xbe\xef\xbf",
]


def trained(pre_tokenizer, size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [CORPUS],
        trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def sequence(*parts):
    return pre_tokenizers.Sequence(list(parts))


def description(name):
    """The four kinds of tokenizer.json, as text."""
    if name == "plain":  # what nibble's own trainer should make of the corpus
        return trained(sequence(pre_tokenizers.Split(Regex(LLAMA3), "isolated"), byte_level(False)), 410).to_str(pretty=True)
    if name == "llama3":  # added tokens behind the vocabulary, merges as pairs, whole pieces looked up first
        root = json.loads(trained(sequence(pre_tokenizers.Split(Regex(LLAMA3), "isolated"), byte_level(False)), 400).to_str())
        root["model"]["ignore_merges"] = True
        root["model"]["vocab"]["Ġuniversally"] = 400  # no merge makes it
        tokenizer = Tokenizer.from_str(json.dumps(root))
        tokenizer.add_special_tokens([AddedToken("<|pad|>", normalized=False), AddedToken("<|end_of_text|>", normalized=False)])
        tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
        return tokenizer.to_str()
    if name == "gpt2":  # the older form: no type, merges as texts, the regular expression inside ByteLevel
        root = json.loads(trained(byte_level(True), 380).to_str())
        model = root["model"]
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
        del model["type"], model["ignore_merges"], model["byte_fallback"]
        model["continuing_subword_prefix"] = model["end_of_word_suffix"] = ""
        del root["pre_tokenizer"]["use_regex"]
        return json.dumps(root, ensure_ascii=True)
    return trained(sequence(pre_tokenizers.Digits(individual_digits=True), byte_level(True)), 380).to_str()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "corpus.txt").write_text(CORPUS, encoding="utf-8")
    record = {"made by": f"tokenizers {tokenizers.__version__}", "cases": {}}
    for name in ("plain", "llama3", "gpt2", "digits"):
        text = description(name)
        (OUT / f"{name}.json").write_text(text, encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
        rows = []
        for data in [text.encode() for text in TEXTS] + ILL_FORMED:
            text = data.decode("utf-8", "replace")
            tokenizer.encode_special_tokens = False
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            tokenizer.encode_special_tokens = True
            as_text = tokenizer.encode(text, add_special_tokens=False).ids
            decoded = tokenizer.decode(ids, skip_special_tokens=True)
            rows.append({"bytes": data.hex(), "tokens": ids, "as_text": as_text, "decoded_without_special": decoded})
        record["cases"][name] = rows
    (OUT / "cases.json").write_text(json.dumps(record, ensure_ascii=True), encoding="utf-8")


main()
