"""Makes experts by name: shape, context and KV size are read from a checkpoint's config.json."""

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
    """Make an expert from a checkpoint on this machine.

    Its parameters are counted by the bytes of its weights, so that a quantized checkpoint has its real memory size. If
    only config.json exists, they are computed from the dimensions.

    Parameters
    ----------
    checkpoint
        A folder, or a Hugging Face name in the local cache.
    name
        Name of the expert; None: the last part of the checkpoint's.
    checkpoints
        Folder of checkpoints that are not given by path.
    temperature
        None: that of its generation_config.json, or 0.7.
    max_output_tokens
        None: 4096, or half the context if that is less.
    context_tokens
        None: as many as the model was made for.
    tp_degree, max_replicas
        As in ``Expert``.

    Raises
    ------
    CheckpointError
        If it does not exist or cannot be read.
    """
    path = find_checkpoint(checkpoint, None if checkpoints is None else Path(checkpoints))
    found = check_checkpoint(path)
    context, config = context_tokens or found.context_tokens, found.config
    if type(context) is not int or context < 1:
        rule = "max_position_embeddings must be there, or context_tokens be given"
        raise CheckpointError(f"checkpoint {path / 'config.json'}: {rule}, got {context!r}")
    hidden_size, is_tied = config.whole("hidden_size"), bool(config.get("tie_word_embeddings"))
    embeddings = found.vocab_size * hidden_size * (1 if is_tied else 2)
    shape = ModelShape(
        num_parameters=max(found.weight_bytes // config.value_bytes, embeddings + 1),
        num_layers=config.whole("num_hidden_layers"),
        hidden_size=hidden_size,
        ffn_size=config.whole("intermediate_size"),
        num_query_heads=config.num_query_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=found.head_dim,
        vocab_size=found.vocab_size,
        bytes_per_value=config.value_bytes,
        tied_embeddings=is_tied,
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


def _opens_thinking(path: Path) -> bool:
    """Detect by its chat template a model that reasons before it answers."""
    files = (path / "chat_template.jinja", path / "tokenizer_config.json")
    return any(file.is_file() and "<think>" in file.read_text(encoding="utf-8", errors="replace") for file in files)


def _temperature(path: Path) -> float:
    file = path / "generation_config.json"
    if not file.is_file():
        return DEFAULT_TEMPERATURE
    value = read_json(file).get("temperature")
    return DEFAULT_TEMPERATURE if value is None else float(value)
