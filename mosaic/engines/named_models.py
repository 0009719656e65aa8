"""Experts by name: shape, context and KV size are read from a checkpoint's config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mosaic.core.workload import Expert, Family, ModelShape
from mosaic.engines.checkpoints import CheckpointError, check_checkpoint, find_checkpoint, read_config, read_json

DEFAULT_TEMPERATURE = 0.7
MAX_OUTPUT_TOKENS = 4096
_VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def expert_of_checkpoint(
    *,
    checkpoint: str,
    name: str | None = None,
    checkpoints: str | None = None,
    temperature: float | None = None,
    max_output_tokens: int | None = None,
    context_tokens: int | None = None,
    tp_degree: int = 1,
    max_replicas: int | None = None,
) -> Expert:
    """Make an expert of a checkpoint that is on this machine.

    Its parameters are counted by the bytes of its weights, so that a quantized checkpoint takes the memory that it
    takes; where only config.json is there they follow from the dimensions.

    Parameters
    ----------
    checkpoint
        A folder, or a Hugging Face name that is in the local cache.
    name
        Of the expert; None: the last part of the checkpoint's.
    checkpoints
        Where checkpoints lie that are not named by path.
    temperature
        None: that of its generation_config.json, or 0.7.
    max_output_tokens
        None: 4096, or half the context where that is less.
    context_tokens
        None: as many as the model was made for.
    tp_degree, max_replicas
        As in ``Expert``.

    Raises
    ------
    CheckpointError
        If it is not there or cannot be read.
    """
    path = find_checkpoint(checkpoint, None if checkpoints is None else Path(checkpoints))
    found = check_checkpoint(path)
    config = read_config(path)
    text: Mapping[str, Any] = config.get("text_config", config)
    most = found.context_tokens
    if context_tokens is None and most is None:
        raise CheckpointError(
            f"checkpoint {path / 'config.json'}: max_position_embeddings must be there, or context_tokens be given"
        )
    context = context_tokens or most or 0
    return Expert(
        name=name or Path(checkpoint).name,
        checkpoint=str(path),
        shape=_shape(path, config, text, found.weight_bytes, found.vocab_size, found.head_dim),
        family=Family.REASONING if _opens_thinking(path) else Family.INSTRUCT,
        temperature=_temperature(path) if temperature is None else temperature,
        max_output_tokens=max_output_tokens or max(1, min(MAX_OUTPUT_TOKENS, context // 2)),
        context_tokens=context,
        tp_degree=tp_degree,
        max_replicas=max_replicas,
    )


def _shape(
    path: Path, config: Mapping[str, Any], text: Mapping[str, Any], weight_bytes: int, vocab_size: int, head_dim: int
) -> ModelShape:
    dtype = str(text.get("dtype") or text.get("torch_dtype") or config.get("torch_dtype") or "bfloat16")
    value_bytes = _VALUE_BYTES.get(dtype.removeprefix("torch."), 2)
    heads = _number(path, text, "num_attention_heads")
    hidden = _number(path, text, "hidden_size")
    tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    embeddings = vocab_size * hidden * (1 if tied else 2)
    return ModelShape(
        num_parameters=max(weight_bytes // value_bytes, embeddings + 1),
        num_layers=_number(path, text, "num_hidden_layers", "num_layers"),
        hidden_size=hidden,
        ffn_size=_number(path, text, "intermediate_size", "ffn_hidden_size"),
        num_query_heads=heads,
        num_kv_heads=text.get("num_key_value_heads") or text.get("multi_query_group_num") or heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        bytes_per_value=value_bytes,
        tied_embeddings=tied,
    )


def _number(path: Path, config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise CheckpointError(f"checkpoint {path / 'config.json'}: {names[0]} must be a whole number, got none")


def _opens_thinking(path: Path) -> bool:
    """Tell a model that reasons before it answers by its chat template."""
    files = (path / "chat_template.jinja", path / "tokenizer_config.json")
    return any(file.is_file() and "<think>" in file.read_text(encoding="utf-8", errors="replace") for file in files)


def _temperature(path: Path) -> float:
    file = path / "generation_config.json"
    if not file.is_file():
        return DEFAULT_TEMPERATURE
    value = read_json(file).get("temperature")
    return DEFAULT_TEMPERATURE if value is None else float(value)
