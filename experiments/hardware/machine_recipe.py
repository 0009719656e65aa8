"""Defines the measurements of a machine: every difference between a GPU and a CPU is here."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.hardware.dummy_checkpoint import read_shape, write_dummy_checkpoint
from experiments.hardware.replayed_batch import BatchSize
from experiments.hardware.sweep import SweepSize
from mosaic.core.checks import require, require_unique
from mosaic.core.engine_options import Device, EngineOptions, ModelLoading
from mosaic.core.workload import Expert, Family

HOST_SHAPE = "tiny"
"""So small that a step of it is the host's time; swept beside the shapes that are given."""
CAPTURED_SEQS = 512
"""Largest batch that vLLM captures as a CUDA graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to measure."""

    shapes: tuple[str, ...]
    """Files of ``experiments/hardware/shapes`` by name, or paths; their sweeps are validated by a batch."""
    options: EngineOptions
    context_tokens: int
    sweep: SweepSize
    batch: BatchSize
    num_replays: int = 2

    def __post_init__(self) -> None:
        require(len(self.shapes) > 0, "shape", "given at least once", 0)
        require_unique(map(_stem, self.shapes), "shape")
        require(HOST_SHAPE not in map(_stem, self.shapes), "shape", "another: this one is always swept", HOST_SHAPE)
        least = max(64, 2 * self.options.block_size)
        require(self.context_tokens >= least, "context_tokens", f"at least {least}", self.context_tokens)

    @property
    def device(self) -> Device:
        """What workers are."""
        return self.options.loading.device

    @property
    def by_cpu(self) -> bool:
        """Whether sessions count by processor time, which other work on the machine does not lengthen as much."""
        return self.device is Device.CPU

    @property
    def identity(self) -> dict[str, Any]:
        """All that must be equal for measurements to belong together; there may be more of them."""
        known = asdict(self)
        del known["sweep"]["num_rounds"], known["num_replays"]
        return known

    @property
    def graph_max_seqs(self) -> int:
        """Largest decode batch that is padded to a captured size; 0: none is captured."""
        return 0 if self.options.loading.enforce_eager else CAPTURED_SEQS

    def experts(self, folder: Path) -> tuple[Expert, ...]:
        """Write the checkpoints; gives an expert for each shape, the host's first."""
        value_bytes = 4 if self.options.loading.dtype == "float32" else 2
        made = []
        for name in (HOST_SHAPE, *self.shapes):
            shape = replace(read_shape(name), bytes_per_value=value_bytes)
            checkpoint = folder / _stem(name)
            write_dummy_checkpoint(checkpoint, shape, self.context_tokens)
            made.append(
                Expert(
                    name=_stem(name),
                    checkpoint=str(checkpoint.resolve()),
                    shape=shape,
                    family=Family.INSTRUCT,
                    max_output_tokens=self.context_tokens,
                    context_tokens=self.context_tokens,
                )
            )
        return tuple(made)


def recipe_for(
    device: Device,
    *,
    shapes: Sequence[str] = (),
    num_rounds: int = 3,
    num_requests: int | None = None,
    max_num_seqs: int | None = None,
    context_tokens: int | None = None,
    enforce_eager: bool = False,
) -> Recipe:
    """Give the recipe of a device, with given options in place of its own choices.

    Raises
    ------
    ValueError, TypeError
        If a choice is out of range.
    """
    if device is Device.GPU:
        context = 16384 if context_tokens is None else context_tokens
        return Recipe(
            shapes=tuple(shapes) or ("llama3_8b", "qwen2_5_7b"),
            options=EngineOptions(
                max_num_seqs=256 if max_num_seqs is None else max_num_seqs,
                max_num_batched_tokens=8192,
                enable_prefix_caching=False,
                loading=ModelLoading(device=device, dtype="bfloat16", load_format="dummy", enforce_eager=enforce_eager),
            ),
            context_tokens=context,
            sweep=SweepSize(num_rounds=num_rounds, longest_prompt=max(64, context // 2)),
            batch=BatchSize(
                num_requests=512 if num_requests is None else num_requests, prompt_tokens=400, output_tokens=400
            ),
        )
    context = 1024 if context_tokens is None else context_tokens
    return Recipe(
        shapes=tuple(shapes) or ("small",),
        options=EngineOptions(
            max_num_seqs=16 if max_num_seqs is None else max_num_seqs,
            max_num_batched_tokens=4096,
            block_size=32,
            kv_cache_memory_bytes=256 * 2**20,
            enable_prefix_caching=False,
            loading=ModelLoading(device=device, dtype="float32", load_format="dummy", enforce_eager=True),
        ),
        context_tokens=context,
        sweep=SweepSize(num_rounds=num_rounds, decode_steps=32, longest_prompt=max(64, context // 2), most_tokens=4096),
        batch=BatchSize(num_requests=64 if num_requests is None else num_requests, prompt_tokens=60, output_tokens=60),
    )


def _stem(shape: str) -> str:
    return Path(shape).stem
