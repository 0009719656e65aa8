"""A random Llama of two layers over bytes, written by hand: what it says is noise, and the same for the same seed."""

import json
import math
from pathlib import Path

import numpy as np

from mosaic.core.workload import Expert, Family, ModelShape

HIDDEN, LAYERS, HEADS, HEAD_DIM, FFN, VOCAB, CONTEXT = 128, 2, 4, 32, 256, 256, 512
END_OF_TEXT = "\u0100"
"""Byte 0, in the alphabet that byte-level tokenizers write bytes in."""
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD_DIM,
    "vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "hidden_act": "silu", "bos_token_id": None, "eos_token_id": 0, "dtype": "float32",
}  # fmt: skip


def byte_alphabet() -> list[str]:
    """Return the character of each byte: printable bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def tokenizer_json() -> dict[str, object]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    special = {"id": 0, "content": END_OF_TEXT, "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [{**special, **flags}],
        "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "merges": [],
            "vocab": {character: byte for byte, character in enumerate(byte_alphabet())},
        },
    }  # fmt: skip


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header, at = {}, 0
    tensors = {name: values.astype("<f4") for name, values in tensors.items()}
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(values.tobytes() for values in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def random_weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        return rng.normal(0.0, gain / math.sqrt(columns), (rows, columns))

    weights = {"model.embed_tokens.weight": matrix(VOCAB, HIDDEN), "lm_head.weight": matrix(VOCAB, HIDDEN, gain=3.0)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{at}.self_attn.{name}.weight"] = matrix(HEADS * HEAD_DIM, HIDDEN)
        weights[f"{at}.mlp.gate_proj.weight"] = matrix(FFN, HIDDEN)
        weights[f"{at}.mlp.up_proj.weight"] = matrix(FFN, HIDDEN)
        weights[f"{at}.mlp.down_proj.weight"] = matrix(HIDDEN, FFN)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}.{name}.weight"] = np.ones(HIDDEN)
    weights["model.norm.weight"] = np.ones(HIDDEN)
    return weights


def write_tiny_checkpoint(path: Path, *, seed: int = 0, chat_template: str | None = None) -> Path:
    """Write config, weights and tokenizer of an expert into a folder."""
    path.mkdir(parents=True, exist_ok=True)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT, "model_max_length": CONTEXT}
    if chat_template is not None:
        settings["chat_template"] = chat_template
    for name, content in (("config", CONFIG), ("tokenizer", tokenizer_json()), ("tokenizer_config", settings)):
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    write_safetensors(path / "model.safetensors", random_weights(seed))
    return path


def tiny_shape() -> ModelShape:
    return ModelShape(
        num_parameters=2 * VOCAB * HIDDEN + LAYERS * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN + 2 * HIDDEN) + HIDDEN,
        num_layers=LAYERS, hidden_size=HIDDEN, ffn_size=FFN, num_query_heads=HEADS, num_kv_heads=HEADS,
        head_dim=HEAD_DIM, vocab_size=VOCAB, bytes_per_value=4,
    )  # fmt: skip


def tiny_expert(name: str, checkpoint: Path | str, *, tp_degree: int = 1, max_output_tokens: int = 48) -> Expert:
    return Expert(
        name=name,
        checkpoint=str(checkpoint),
        shape=tiny_shape(),
        family=Family.INSTRUCT,
        max_output_tokens=max_output_tokens,
        context_tokens=CONTEXT,
        tp_degree=tp_degree,
    )
