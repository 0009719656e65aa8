"""The simulated world: how long each call would really write."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mosaic.lengths import LengthDistribution
from mosaic.realization import Outcome, uniform
from mosaic.workload import Call, CallKey, ExpertName


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Maps a call to its outcome from hashed uniform numbers, so that every policy meets the same luck.

    The calibration world differs from the test world in its stream only: same distributions, other draws.
    """

    lengths: Mapping[ExpertName, LengthDistribution]
    root_seed: int
    stream: str = "test"
    recorded: Mapping[CallKey, int] = field(default_factory=dict)
    """True lengths known from a file or a log; they take precedence over the distributions."""

    def outcome(self, call: Call) -> Outcome:
        """Look up or draw the outcome of a call.

        Raises
        ------
        ValueError
            If the call's length is neither recorded nor has its expert a distribution.
        """
        recorded = self.recorded.get(call.key)
        if recorded is not None:
            return Outcome(recorded)
        distribution = self.lengths.get(call.expert)
        if distribution is None:
            raise ValueError(
                f"output_tokens must have a length distribution for expert {call.expert!r}, "
                f"got {sorted(self.lengths)}: "
                f"add workload.output_tokens.{call.expert} or pool.output_tokens.{call.expert}"
            )
        return Outcome(distribution.quantile(uniform(self.root_seed, self.stream, call.key)))
