"""Checkpoints without weights: all that an engine needs to run a model's shape with random ones."""

from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path

import yaml

from experiments.tiny_pool.prompts import SHAPE
from experiments.tiny_pool.tokenizer import write_tokenizer
from mosaic.core.checks import require
from mosaic.core.workload import ModelShape

SHAPES = Path(__file__).resolve().parent / "shapes"


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
    rule = "at least as many as the tokenizer's"
    require(shape.vocab_size >= SHAPE.vocab_size, "shape: vocab_size", rule, shape.vocab_size)
    require(shape.num_experts == 0, "shape: num_experts", "0: only dense models are measured here", shape.num_experts)
    # Importing transformers takes seconds, and shapes are read without it.
    from experiments.tiny_pool.model import llama_config

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, context_tokens)
    llama_config(shape, context_tokens, rope_theta=500_000.0).save_pretrained(folder)
