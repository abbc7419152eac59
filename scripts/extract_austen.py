#!/usr/bin/env python3
"""Write Jane Austen's six novels as plain text, one file each, out of the unpacked Debian package r-cran-janeaustenr.

usage: extract_austen.py PACKAGE_DIR OUT_DIR

The package keeps each novel as an R character vector of lines in a lazy-load data base: records of a 4-byte
big-endian length and a zlib stream that unpacks to one object in R's XDR serialisation (R Internals, section 1.8).
"""
import hashlib
import pathlib
import re
import struct
import sys
import zlib

DATABASE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
# Of the novels in the order of the data base, each followed by three line ends (version 1.0.0).
TEXT_SHA256 = "c9fb55340f00e818b44ef6ef4bb3a9e76dfbc2d27ffefdcedde5d4a2d5febcca"


def records(data):
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        stream = zlib.decompressobj()
        unpacked = stream.decompress(data[at + 4 :])
        if len(unpacked) != length:
            raise ValueError(f"the record at byte {at} has {len(unpacked)} bytes, not {length}")
        yield unpacked
        at = len(data) - len(stream.unused_data)


class LineVectors:
    """The character vectors of one serialised object."""

    STRING, STRINGS, LIST, PAIRLIST, SYMBOL, REFERENCE, NULL = 9, 16, 19, 2, 1, 255, 254
    INTEGERS, LOGICALS, REALS = 13, 10, 14

    def __init__(self, data):
        if data[:2] != b"X\n":
            raise ValueError("a record is not in R's XDR serialisation")
        self.data = data
        self.at = 2
        self.found = []
        version = self.integer()
        self.skip(8)  # versions of R
        if version == 3:
            self.skip(self.integer())  # name of the encoding
        self.item()

    def integer(self):
        (value,) = struct.unpack_from(">i", self.data, self.at)
        self.at += 4
        return value

    def skip(self, size):
        self.at += size

    def item(self):
        flags = self.integer()
        kind, has_attributes, has_tag = flags & 255, flags & 0x200, flags & 0x400
        if kind == self.NULL:
            return None
        if kind == self.REFERENCE:
            return None if flags >> 8 else self.integer()
        if kind == self.SYMBOL:
            return self.item()
        if kind == self.STRING:
            length = self.integer()
            if length < 0:
                return None  # NA
            self.skip(length)
            return self.data[self.at - length : self.at].decode("utf-8")
        if kind == self.PAIRLIST:
            for present in (has_attributes, has_tag, True, True):
                if present:
                    self.item()
            return None
        if kind == self.STRINGS:
            self.found.append([self.item() for _ in range(self.integer())])
        elif kind == self.LIST:
            for _ in range(self.integer()):
                self.item()
        elif kind in (self.INTEGERS, self.LOGICALS):
            self.skip(4 * self.integer())
        elif kind == self.REALS:
            self.skip(8 * self.integer())
        else:
            raise ValueError(f"R type {kind} at byte {self.at} is not known here")
        if has_attributes:
            self.item()
        return None


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    package, out = map(pathlib.Path, sys.argv[1:])
    novels = ["\n".join(max(LineVectors(r).found, key=len)) for r in records((package / DATABASE).read_bytes())]
    digest = hashlib.sha256("".join(novel + "\n\n\n" for novel in novels).encode()).hexdigest()
    if digest != TEXT_SHA256:
        print("note: the text is not that of janeaustenr 1.0.0; figures measured on it will differ a little", file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    for novel in novels:
        title = novel.split("\n", 1)[0]
        name = re.sub(r"[^a-z]+", "-", title.lower()).strip("-") + ".txt"
        (out / name).write_text(novel + "\n", encoding="utf-8")
        print(f"{out / name}: {title}, {len(novel.encode()) + 1} bytes")


main()
