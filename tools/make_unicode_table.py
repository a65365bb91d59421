#!/usr/bin/env python3
"""Writes src/text/unicode_table.inc: the character classes that the regular expressions of tokenizer.json files test.

usage: make_unicode_table.py CLASSES.txt > src/text/unicode_table.inc

CLASSES.txt has lines "CLASS FIRST LAST" (hex, inclusive) for the classes L, N and S. The fourth class, the word characters that an added token
with "single_word" may not touch, is asked of the `tokenizers` package, one code point at a time.
"""
import json
import sys

from tokenizers import Tokenizer

LETTER, NUMBER, SPACE, WORD = 1, 2, 4, 8
PAGE = 256


def word_characters():
    """A single_word token is found in `x` + c exactly if c is no word character."""
    file = {
        "added_tokens": [{"id": 1, "content": "x", "single_word": True, "lstrip": False, "rstrip": False, "normalized": False, "special": False}],
        "model": {"type": "BPE", "vocab": {"y": 0}, "merges": []},
    }
    tokenizer = Tokenizer.from_str(json.dumps(file))
    code_points = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF and c not in (ord("x"), ord("y"))]
    for start in range(0, len(code_points), 1 << 14):
        block = code_points[start : start + (1 << 14)]
        for c, found in zip(block, tokenizer.encode_batch(["x" + chr(c) for c in block])):
            if not found.ids:
                yield c
    yield from b"xy"


def main():
    classes = bytearray(0x110000)
    for line in open(sys.argv[1]):
        if line.startswith("#"):
            continue
        name, first, last = line.split()
        for c in range(int(first, 16), int(last, 16) + 1):
            classes[c] |= {"L": LETTER, "N": NUMBER, "S": SPACE}[name]
    for c in word_characters():
        classes[c] |= WORD

    pages, index = {}, []
    for start in range(0, len(classes), PAGE):
        page = bytes(classes[start : start + PAGE])
        index.append(pages.setdefault(page, len(pages)))

    print("// Written by tools/make_unicode_table.py. kPageOf[code point / 256] is a row of kPages; a row holds the class bits of 256 code points, each as the character '0' + bits.")
    print(f"constexpr uint8_t kPageOf[{len(index)}] = {{")
    for i in range(0, len(index), 64):
        print("    " + ", ".join(map(str, index[i : i + 64])) + ",")
    print("};")
    print(f"constexpr char kPages[{len(pages)}][{PAGE + 1}] = {{")
    for page in pages:
        text = "".join(chr(ord("0") + c) for c in page)
        print(f'    "{text[:128]}"\n    "{text[128:]}",')
    print("};")


main()
