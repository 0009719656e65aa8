"""Worlds of one group of the configuration: of the test stream and of calibration, kept with what was drawn in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mosaic.core.lengths import LengthDistribution
from mosaic.core.realization import question_uniforms
from mosaic.core.workload import Expert, ExpertName, Family, Workload
from sim.world.answer_model import AnswerModel
from sim.world.world import World

MOST_WORLDS = 12
"""That are kept with what was drawn in them, so that points of a sweep share it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedWorld:
    """Lengths and answers, before any luck."""

    lengths: Mapping[ExpertName, LengthDistribution]
    merged_lengths: Mapping[ExpertName, LengthDistribution]
    """Of experts that merge answers."""
    answers: AnswerModel | None
    """None: calls have lengths only."""
    question_seed: int = 0
    """Of the data set's one draw."""
    visible_tokens: int = 0
    """Most that a reasoning expert's response has after its thinking."""
    _worlds: dict[tuple[object, ...], tuple[Workload, World]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def test(self, workload: Workload, experts: tuple[Expert, ...], seed: int) -> World:
        """Give the world that a run meets."""
        return self._world(workload, experts, "test", seed)

    def calibration(self, workload: Workload, experts: tuple[Expert, ...], seed: int, length_error: float) -> World:
        """Give a world of other luck and the same distributions, or of means that are off if an error is asked for."""
        return self._world(workload, experts, "calibration", seed, length_error)

    def _world(
        self, workload: Workload, experts: tuple[Expert, ...], stream: str, seed: int, length_error: float = 1.0
    ) -> World:
        reasoning = tuple(expert.name for expert in experts if expert.family is Family.REASONING)
        key = (id(workload), reasoning, stream, seed, length_error)  # the workload is kept, and with it its id
        if key not in self._worlds:
            if len(self._worlds) == MOST_WORLDS:
                del self._worlds[next(iter(self._worlds))]
            is_test = stream == "test"
            self._worlds[key] = (
                workload,
                World(
                    lengths=mistaken_lengths(self.lengths, length_error, seed=seed),
                    root_seed=seed,
                    question_seed=self.question_seed,
                    stream=stream,
                    recorded=(workload.output_tokens or {}) if is_test else {},
                    answers=self.answers,
                    questions={question.id: question for question in workload.questions},
                    aggregator_lengths={**self.lengths, **self.merged_lengths},
                    thinking=dict.fromkeys(reasoning, self.visible_tokens),
                ),
            )
        return self._worlds[key][1]


def mistaken_lengths(
    lengths: Mapping[ExpertName, LengthDistribution], error: float, *, seed: int
) -> Mapping[ExpertName, LengthDistribution]:
    """Multiply each expert's mean by a factor between 1/error and error, log-uniform.

    The factor follows from the seed, the expert and the error alone, and grows away from 1 with the error.

    Raises
    ------
    ValueError
        If a mean leaves its limits.
    """
    if error == 1:
        return lengths
    mistaken = {}
    for name, entry in lengths.items():
        (u,) = question_uniforms(seed, "length error", name, 1)
        try:
            mistaken[name] = entry.scaled(error ** (2 * u - 1))
        except ValueError as out_of_range:
            raise ValueError(f"profile.length_error={error!r}, expert {name}: {out_of_range}") from None
    return mistaken
