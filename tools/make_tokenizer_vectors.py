#!/usr/bin/env python3
"""Writes small tokenizers that use every supported part of tokenizer.json, and what the `tokenizers` package (0.23.3) makes of difficult texts.

usage: make_tokenizer_vectors.py DIRECTORY        (tests/data/tokenizers: NAME.json, NAME.jsonl)
"""
import json
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer

STAND_INS = [chr(c) for c in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144)]]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FRAGMENTS = ["'s", "'S", "'\u017f", "'re", "'lL", "'x", "''", " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u0085", "\x1c", "a", "the", "Hello", "I'LL",
             "1", "1234", "٣", "½", "Ⅷ", "é", "e\u0301", "中文字", "😀", "!", "?!\n", "<s>", "</s>", " <s> ", "aab", " aab ", "<|x|>", "<|xy|>", "_", "\x00",
             "\u200d", "\ufffd", "ß", "ab", "abab", "aaaaaaaa"]
ADDED = ["<s>", "</s>", "aab", "<|x|>", "<|xy|>", " b", "中文", "a a", "x x "]
FLAGS = ["single_word", "lstrip", "rstrip", "normalized", "special"]
rng = random.Random(20)


def byte_level(prefix=False, regex=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def split(pattern, behavior, invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


def model(as_pairs):
    vocab, merges = {c: i for i, c in enumerate(STAND_INS)}, []
    while len(merges) < 60:
        left = rng.choice([*list(vocab)[-40:], "a", "b", "Ġ", "t", "h", "e", "l", "Ã", "ä"])
        right = rng.choice(["a", "b", "Ġ", "e", "h", "l", "ab", "o", "Ċ", "©", "1", "2"])
        if right in vocab and left + right not in vocab and left + right not in ADDED:
            vocab[left + right] = len(vocab)
            merges.append([left, right])
    for word in ["Hello", "the", "123", "..."]:  # reached by ignore_merges alone
        vocab.setdefault(word, len(vocab))
    return {"type": "BPE", "ignore_merges": as_pairs, "vocab": vocab, "merges": merges if as_pairs else [" ".join(m) for m in merges]}


def template(token, token_id, after):
    special, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {"type": "TemplateProcessing", "single": [special, text] + [special] * after, "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}}}


def text():
    return "".join(rng.choice(FRAGMENTS) if rng.random() < 0.9 else rng.choice("abc \n") * rng.randint(1, 90) for _ in range(rng.randint(0, 14)))


def case(tokenizer):
    s = text()
    tokenizer.encode_special_tokens = True
    plain = tokenizer.encode(s, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = False
    ids = tokenizer.encode(s, add_special_tokens=False).ids
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    return {"text": s, "ids": ids, "ids_bos": tokenizer.encode(s).ids, "ids_nospecial": plain, "decoded": decoded,
            "decoded_skip": tokenizer.decode(ids, skip_special_tokens=True)}


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    kinds = {"gpt2": byte_level(regex=True), "gpt2-prefix": byte_level(True, True), "llama3": sequence(split(LLAMA3, "Isolated"), byte_level()),
             "gpt4o": sequence(split(GPT4O, "Isolated"), byte_level()), "digits": sequence(split(r"\p{N}", "Isolated"), byte_level(True))}
    for behavior in ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]:
        kinds[behavior] = sequence(split(" ", behavior, kind="String"), split(r"a+|\s*", behavior), byte_level())
        kinds[behavior + "-inverted"] = sequence(split(r"\P{L}|[^\p{N}b]$", behavior, True), byte_level())
    for i, (name, pre_tokenizer) in enumerate(kinds.items()):
        m = model(i % 2 == 0)
        first = len(m["vocab"])
        added = [{"id": first + k, "content": c, **{flag: rng.random() < 0.35 for flag in FLAGS}} for k, c in enumerate(ADDED)]
        post = template("<s>", first, i % 3 == 0)
        if i % 4 == 1:
            post = {"type": "Sequence", "processors": [byte_level(), post]}
        file = {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": post, "decoder": byte_level(), "model": m}
        (out / f"{name}.json").write_text(json.dumps(file, ensure_ascii=False, separators=(",", ":")) + "\n")
        tokenizer = Tokenizer.from_str(json.dumps(file))
        (out / f"{name}.jsonl").write_text("".join(json.dumps(case(tokenizer)) + "\n" for _ in range(40)))


main()
