"""Checkpoints without weights: all that an engine needs to run a model's shape with random ones."""

import json
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import yaml

from experiments.tiny_pool.fast_tokenizer import write_tokenizer
from experiments.tiny_pool.tokenizer import tiny_tokenizer
from mosaic.core.checks import require
from mosaic.core.workload import ModelShape

SHAPES = Path(__file__).resolve().parent / "shapes"
_DTYPES = {2: "bfloat16", 4: "float32"}


def read_shape(name: str) -> ModelShape:
    """Read a shape by the name of a file in ``shapes``, or by a path.

    Raises
    ------
    ValueError, TypeError
        If there is none, or it is none.
    """
    path = Path(name) if Path(name).suffix else SHAPES / f"{name}.yaml"
    known = sorted(file.stem for file in SHAPES.glob("*.yaml"))
    require(path.is_file(), "shape", f"one of {known} or a YAML file", name)
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"shape must be a YAML file, got {name!r}") from error
    known_fields = ModelShape.__dataclass_fields__
    needed = {key for key, field in known_fields.items() if field.default is MISSING}
    rule = (
        f"a file that gives {', '.join(sorted(needed))}; {', '.join(sorted(known_fields.keys() - needed))} if need be"
    )
    is_complete = isinstance(fields, Mapping) and needed <= fields.keys() <= known_fields.keys()
    require(is_complete, "shape", rule, name)
    return ModelShape(**fields)


def write_dummy_checkpoint(folder: Path, shape: ModelShape, context_tokens: int) -> None:
    """Write the configuration of a Llama of this shape, and a tokenizer for those who want to talk to it.

    NOTE: the architecture is Llama's whatever the model was. Qwen2.5's differs by a bias on queries, keys and values,
    whose time is that of a few thousand additions.
    """
    tokenizer = tiny_tokenizer()
    rule = "at least as many as the tokenizer's"
    require(shape.vocab_size >= 260 + len(tokenizer.words), "shape: vocab_size", rule, shape.vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, tokenizer, context_tokens)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": None,
        "dtype": _DTYPES[shape.bytes_per_value],
        "eos_token_id": tokenizer.end_id,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.ffn_size,
        "max_position_embeddings": context_tokens,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.num_query_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "pad_token_id": tokenizer.pad_id,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"},
        "tie_word_embeddings": shape.tied_embeddings,
        "vocab_size": shape.vocab_size,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
