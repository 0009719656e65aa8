"""What the paper leaves open of the simulated engine and world, as one value that any run can be given."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mosaic.core.lengths import ClippedLognormal
from mosaic.core.workload import Expert, ExpertName, Family

REASONING = ("LlamaR1", "QwenR1")
LIGHT_CAP = 4096
"""Symbolic-MoE's limit of the light experts' output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSet:
    """Parameters that match MMLU-Pro's round robin: fitted, or assumed and carried to the other benchmarks."""

    name: str
    engine: Mapping[str, float | int | None] = field(default_factory=dict)
    """Fields of ``sim.hardware.Hardware`` that are not as committed."""
    output_cap: int = 32_768
    """Most tokens that a reasoning expert writes."""
    reasoning_sigma: float
    light_sigma: float
    mean_by_expert: Mapping[ExpertName, float]
    questions_differ: bool = False
    """Whether a run's seed draws the questions and the profile anew, and not its luck alone."""

    def lengths(self, expert: Expert, scale: float = 1.0) -> ClippedLognormal:
        """Length distribution of an expert, its mean times a benchmark's scale."""
        reasons = expert.family is Family.REASONING
        return ClippedLognormal(
            mean=self.mean_by_expert[expert.name] * scale,
            sigma=self.reasoning_sigma if reasons else self.light_sigma,
            clip_tokens=self.output_cap if reasons else expert.max_output_tokens,
        )

    def with_mean(self, expert: ExpertName, mean: float) -> "ParameterSet":
        """Return the set with another mean length of an expert."""
        return replace(self, mean_by_expert={**self.mean_by_expert, expert: mean})

    def with_engine(self, **changes: float | None) -> "ParameterSet":
        """Return the set with other fields of the hardware."""
        return replace(self, engine={**self.engine, **changes})

    def overrides(self, scale: float = 1.0, merged: tuple[ExpertName, float] | None = None) -> list[str]:
        """Write the set as a run's overrides.

        Parameters
        ----------
        scale
            Multiplies every mean.
        merged
            The aggregator and the mean of what it writes; None: as committed.
        """
        found = [f"hardware.{key}={'null' if value is None else f'{value!r}'}" for key, value in self.engine.items()]
        found += [f"pool.experts.{name}.max_output_tokens={self.output_cap}" for name in REASONING]
        for name, mean in self.mean_by_expert.items():
            found += self._lognormal(f"world.output_tokens.{name}", name, mean)
        found.append(f"world.length_scale={{value:{scale!r},source:fitted}}")
        if merged is not None:
            found += self._lognormal(f"world.merged_tokens.{merged[0]}", *merged)
        return found

    def _lognormal(self, key: str, expert: ExpertName, mean: float) -> list[str]:
        reasons = expert in REASONING
        sigma, cap = (self.reasoning_sigma, self.output_cap) if reasons else (self.light_sigma, LIGHT_CAP)
        values = {"mean": mean, "sigma": sigma, "clip_tokens": cap}
        return [f"{key}.{name}.value={value!r}" for name, value in values.items()]

    def seeds(self, seed: int) -> list[str]:
        """Write the overrides of a run's luck."""
        return [f"seed={seed}", *([f"question_seed={seed}", f"profile.seed={seed}"] if self.questions_differ else [])]


def left_for(
    expert: ExpertName, total_per_call: float, means: Mapping[ExpertName, float], slots: Mapping[ExpertName, int]
) -> float:
    """Mean of one expert at which the average over all calls is ``total_per_call``."""
    others = sum(means[name] * count for name, count in slots.items() if name != expert)
    return (total_per_call * sum(slots.values()) - others) / slots[expert]
