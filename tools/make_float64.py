#!/usr/bin/env python3
"""Writes tests/data/float64: logits in float64 by an independent numpy model, for the reference device to agree with to 1e-10.

usage: make_float64.py NP_BAMBA_DIR DATA_DIR

NP_BAMBA_DIR holds np_bamba.py (load, forward); DATA_DIR is tests/data. For every checkpoint tiny-* there, NAME.safetensors gets the logits of some rows, at the
edges of chunks and key blocks. The checkpoints `tied` and `mamba`, with random weights, are written here too: they have what the tiny ones lack.
"""
import json
import os
import struct
import sys

import numpy as np

ROWS = [0, 1, 2, 31, 32, 33, 63, 64, 65, 76, 127, 128, 256, 500, 529]
DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.float64): "F64", np.dtype(np.int64): "I64"}
TIED = dict(vocab_size=97, hidden_size=32, intermediate_size=40, num_hidden_layers=3, attn_layer_indices=[1], num_attention_heads=4, num_key_value_heads=4,
            mamba_n_heads=8, mamba_d_head=8, mamba_expand=2, mamba_d_state=12, mamba_n_groups=4, mamba_d_conv=2, mamba_conv_bias=True, mamba_proj_bias=False,
            attention_bias=True, mlp_bias=False, tie_word_embeddings=True, time_step_limit=[0.02, 0.2], rms_norm_eps=1e-3, rope_theta=500.0)
MAMBA = dict(TIED, attn_layer_indices=[], num_hidden_layers=2, mamba_n_groups=1, mamba_d_conv=5, mamba_conv_bias=False, mamba_proj_bias=True, mlp_bias=True,
             tie_word_embeddings=False, time_step_limit=[0.0, 0.1], rms_norm_eps=1e-6)


def save(path, tensors):
    header, offset = {}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": DTYPES[x.dtype], "shape": list(x.shape), "data_offsets": [offset, offset + x.nbytes]}
        offset += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(np.ascontiguousarray(x).tobytes() for x in tensors.values()))


def random_weights(c, random):
    """Weights in which every parameter matters."""
    dim, ffn, inner, heads = c["hidden_size"], c["intermediate_size"], c["mamba_n_heads"] * c["mamba_d_head"], c["mamba_n_heads"]
    conv_dim = inner + 2 * c["mamba_n_groups"] * c["mamba_d_state"]
    kv_dim = dim // c["num_attention_heads"] * c["num_key_value_heads"]
    w = {}

    def linear(name, rows, columns, bias):
        w[name + ".weight"] = random.normal(size=(rows, columns)) / np.sqrt(columns)
        if bias:
            w[name + ".bias"] = random.normal(size=rows) * 0.1

    def norm(name, size):
        w[name] = random.uniform(0.5, 1.5, size)

    w["model.embed_tokens.weight"] = random.normal(size=(c["vocab_size"], dim))
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        norm(layer + "input_layernorm.weight", dim)
        if i in c["attn_layer_indices"]:
            for name, rows in (("q", dim), ("k", kv_dim), ("v", kv_dim), ("o", dim)):
                linear(f"{layer}self_attn.{name}_proj", rows, dim, c["attention_bias"])
        else:
            linear(layer + "mamba.in_proj", inner + conv_dim + heads, dim, c["mamba_proj_bias"])
            w[layer + "mamba.conv1d.weight"] = random.normal(size=(conv_dim, 1, c["mamba_d_conv"])) * 0.5
            if c["mamba_conv_bias"]:
                w[layer + "mamba.conv1d.bias"] = random.normal(size=conv_dim) * 0.1
            w[layer + "mamba.dt_bias"] = random.uniform(-5, -1, heads)
            w[layer + "mamba.A_log"] = np.log(random.uniform(1, 16, heads))
            w[layer + "mamba.D"] = random.uniform(0.5, 1.5, heads)
            norm(layer + "mamba.norm.weight", inner)
            linear(layer + "mamba.out_proj", dim, inner, c["mamba_proj_bias"])
        norm(layer + "pre_ff_layernorm.weight", dim)
        linear(layer + "feed_forward.gate_proj", ffn, dim, c["mlp_bias"])
        linear(layer + "feed_forward.up_proj", ffn, dim, c["mlp_bias"])
        linear(layer + "feed_forward.down_proj", dim, ffn, c["mlp_bias"])
    norm("model.final_layernorm.weight", dim)
    if not c["tie_word_embeddings"]:
        w["lm_head.weight"] = random.normal(size=(c["vocab_size"], dim)) / np.sqrt(dim)
    return {name: x.astype(np.float32) for name, x in w.items()}


def main():
    sys.path.insert(0, sys.argv[1])
    data, out = sys.argv[2], os.path.join(sys.argv[2], "float64")
    import np_bamba

    def judge(config, weights, ids, path, keep_ids):
        rows = np.array([r for r in ROWS if r < ids.shape[1]])
        logits = np.stack([np_bamba.forward(config, weights, row)[0][rows] for row in ids])
        save(path, {"logits": logits, "rows": rows} | ({"input_ids": ids} if keep_ids else {}))

    os.makedirs(out, exist_ok=True)
    for name in sorted(n for n in os.listdir(data) if n.startswith("tiny-")):
        directory = os.path.join(data, name)
        with open(os.path.join(directory, "config.json")) as f:
            config = json.load(f)
        ids = np_bamba.load(os.path.join(directory, "goldens.safetensors"))["input_ids"]
        judge(config, np_bamba.load(os.path.join(directory, "model.safetensors")), ids, os.path.join(out, name + ".safetensors"), False)

    random = np.random.default_rng(64)
    for name, config in (("tied", TIED), ("mamba", MAMBA)):
        directory = os.path.join(out, name)
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, "config.json"), "w") as f:
            json.dump({"architectures": ["BambaForCausalLM"], "model_type": "bamba", "hidden_act": "silu"} | config, f, indent=2)
            f.write("\n")
        weights, ids = random_weights(config, random), random.integers(0, config["vocab_size"], (2, 77))
        save(os.path.join(directory, "model.safetensors"), weights)
        judge(config, weights, ids, os.path.join(out, name + ".safetensors"), True)


main()
