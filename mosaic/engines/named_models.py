"""Experts by name: shape, context and KV size are read from a checkpoint's config.json."""

from pathlib import Path

from mosaic.core.workload import Expert, Family, ModelShape
from mosaic.engines.checkpoints import CheckpointError, check_checkpoint, find_checkpoint, read_json

DEFAULT_TEMPERATURE = 0.7
MAX_OUTPUT_TOKENS = 4096


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
    rule = "max_position_embeddings must be there, or context_tokens be given"
    context = _known(path, context_tokens or found.context_tokens, rule)
    hidden_size = _known(path, found.hidden_size, "hidden_size must be a whole number above 0")
    embeddings = found.vocab_size * hidden_size * (1 if found.tied_embeddings else 2)
    shape = ModelShape(
        num_parameters=max(found.weight_bytes // found.value_bytes, embeddings + 1),
        num_layers=found.num_layers,
        hidden_size=hidden_size,
        ffn_size=_known(path, found.ffn_size, "intermediate_size must be a whole number above 0"),
        num_query_heads=found.num_query_heads,
        num_kv_heads=found.num_kv_heads,
        head_dim=found.head_dim,
        vocab_size=found.vocab_size,
        bytes_per_value=found.value_bytes,
        tied_embeddings=found.tied_embeddings,
    )
    return Expert(
        name=name or Path(checkpoint).name,
        checkpoint=str(path),
        shape=shape,
        family=Family.REASONING if _opens_thinking(path) else Family.INSTRUCT,
        temperature=_temperature(path) if temperature is None else temperature,
        max_output_tokens=max_output_tokens or max(1, min(MAX_OUTPUT_TOKENS, context // 2)),
        context_tokens=context,
        tp_degree=tp_degree,
        max_replicas=max_replicas,
    )


def _known(path: Path, value: int | None, rule: str) -> int:
    if type(value) is not int or value < 1:
        raise CheckpointError(f"checkpoint {path / 'config.json'}: {rule}, got {value!r}")
    return value


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
