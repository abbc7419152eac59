#!/usr/bin/env python3
"""Compare nibble's encoding of texts with that of Hugging Face's `tokenizers`, token by token.

usage: check_tokenizer.py PROGRAM TOKENIZER_DIR FILE...

PROGRAM is nibble. Each FILE (plain text) is one document. Where `transformers` is installed, AutoTokenizer loads the
folder too. Needs: pip install tokenizers [transformers]
"""
import array
import pathlib
import struct
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer


def shard_documents(folder):
    """The documents of a folder of shards, without their end-of-text tokens (docs/data.md has the format)."""
    for shard in sorted(folder.glob("*.shard")):
        data = shard.read_bytes()
        magic, version, width, _, _, end_of_text, count = struct.unpack_from("<8sIIQIIQ", data)
        assert (magic, version) == (b"nibbletk", 1), shard
        tokens = array.array("H" if width == 2 else "I", data[128:])
        assert len(tokens) == count, shard
        begin = 0
        for i, token in enumerate(tokens):
            if token == end_of_text:
                yield tokens[begin:i].tolist()
                begin = i + 1


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    program, folder, files = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # documents are plain text, whatever they contain
    with tempfile.TemporaryDirectory() as temporary:
        out = pathlib.Path(temporary) / "shards"
        subprocess.run([program, "tokenize", "--tokenizer", folder, "--out", out, *files], check=True, stdout=subprocess.DEVNULL)
        documents = list(shard_documents(out))
    texts = [pathlib.Path(file).read_bytes().decode("utf-8", "replace") for file in files]
    assert len(documents) == len(texts), f"{len(documents)} documents from {len(texts)} files"
    for file, text, ours in zip(files, texts, documents):
        theirs = tokenizer.encode(text, add_special_tokens=False).ids
        if ours != theirs:
            at = next(i for i, (a, b) in enumerate(zip(ours + [None], theirs + [None])) if a != b)
            sys.exit(f"{file}: token {at} differs: {ours[at:at + 8]} here, {theirs[at:at + 8]} there")
        if tokenizer.decode(ours, skip_special_tokens=False) != text:
            sys.exit(f"{file}: the tokens do not decode to the text")
        print(f"{file}: {len(ours)} tokens, equal")

    try:
        from transformers import AutoTokenizer
    except ImportError:
        return
    auto = AutoTokenizer.from_pretrained(folder)
    assert auto("It is a truth", add_special_tokens=False)["input_ids"] == tokenizer.encode("It is a truth", add_special_tokens=False).ids
    print(f"transformers: {type(auto).__name__}, {len(auto)} tokens, eos {auto.eos_token!r} = {auto.eos_token_id}")


main()
