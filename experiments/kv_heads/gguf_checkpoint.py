"""A GGUF file of a Llama-type model as a checkpoint in Hugging Face's format, dequantised."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaic.core.checks import require

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names of tensors, without the layer."""
CONTROL = 3
"""GGUF's type of a token that is no text."""


def write_gguf_checkpoint(source: Path, folder: Path) -> None:
    """Write a folder that vLLM loads: config, weights in float32, tokenizer.

    Raises
    ------
    ValueError
        If the file is not of a Llama-type model with a byte-level BPE tokenizer.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    reader = GGUFReader(source)
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    require(fields["general.architecture"] == "llama", f"{source}: general.architecture", "llama", fields)
    require(fields["tokenizer.ggml.model"] == "gpt2", f"{source}: tokenizer.ggml.model", "gpt2", fields)
    config = _config(fields, {tensor.name for tensor in reader.tensors})
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for tensor in reader.tensors:
        layer, _, part = tensor.name.removeprefix("blk.").partition(".") if "blk." in tensor.name else ("", "", "")
        name = (part or tensor.name).removesuffix(".weight")
        values: NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if name in heads:
            values = _in_halves(values, heads[name])
        prefix = f"model.layers.{layer}." if part else ""
        tensors[f"{prefix}{NAMES[name]}.weight"] = np.ascontiguousarray(values)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", config)
    _write(folder / "tokenizer.json", _tokenizer(fields))
    tokens = fields["tokenizer.ggml.tokens"]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokens[config["eos_token_id"]]}
    _write(folder / "tokenizer_config.json", settings | {"chat_template": fields.get("tokenizer.chat_template")})


def _in_halves(weights: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Undo GGUF's order of a head's rows: pairs of one frequency, and not all first parts before all second ones."""
    rows, columns = weights.shape
    pairs = weights.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _config(fields: dict[str, Any], names: set[str]) -> dict[str, Any]:
    num_heads, hidden_size = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": num_heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": hidden_size // num_heads,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": "output.weight" not in names,
        "hidden_act": "silu",
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "dtype": "float32",
    }


def _tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """Write the tokenizer as Hugging Face's library reads it; digits stand alone, as SmolLM has them."""
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [
        {"id": number, "content": token, "special": True, **flags}
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == CONTROL
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = [{"type": "Digits", "individual_digits": True}] if fields["tokenizer.ggml.pre"] == "smollm" else []
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        "vocab": {token: number for number, token in enumerate(tokens)},
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*digits, byte_level]}, "post_processor": None,
        "decoder": byte_level, "model": model,
    }  # fmt: skip


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
