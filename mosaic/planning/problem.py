"""The input of a policy: experts, calls with predicted lengths, cluster, costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import NamedTuple, Protocol

from mosaic.core.checks import require_unique
from mosaic.core.cluster import Cluster, Worker, may_be_gang
from mosaic.core.plan import LengthPrediction
from mosaic.core.workload import Call, Expert, ExpertName
from mosaic.planning.costs import CostModel
from mosaic.planning.wrapped_costs import LoadedModels


class Request(NamedTuple):
    """A call as an engine receives it; its output length is assumed, for example from a sample."""

    prompt_tokens: int
    output_tokens: int


class SessionModel(Protocol):
    """Predicts a session by stepping its iterations, which is more precise than a closed form.

    Planning does not import engines: the caller passes in an object that steps them (the simulator does).
    """

    def serve_s(self, expert: Expert, requests: Sequence[Request], workers: Sequence[Worker]) -> float:
        """Predict the seconds from a ready engine to the end of the last request, all requests waiting at the start.

        Raises
        ------
        ValueError
            If the workers cannot hold the expert.
        """


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a scheduler is given. True lengths and answers are not in here.

    docs/how-to/scheduler.md prints one, field by field.
    """

    experts: tuple[Expert, ...]
    """The pool; some may have no calls."""
    calls: tuple[Call, ...]
    """In arrival order. A plan has each of them in exactly one session."""
    cluster: Cluster
    """The workers, and the kind of GPU that each is."""
    costs: CostModel
    """Predicts the seconds of loads and sessions, and what fits into memory."""
    lengths: Mapping[ExpertName, LengthPrediction]
    """Predicted output tokens of a call of each expert that has calls."""
    length_samples: Mapping[ExpertName, tuple[int, ...]] = field(default_factory=dict)
    """Output tokens of calibration calls, for the predictions; empty if a profile kept none."""
    held: LoadedModels = field(default_factory=LoadedModels)
    """Models that earlier sessions left loaded on the cluster."""
    session_model: SessionModel | None = None
    """Prices sessions by their iterations; None: only closed forms are known."""

    def __post_init__(self) -> None:
        require_unique((expert.name for expert in self.experts), "problem: expert name")
        require_unique((call.key for call in self.calls), "problem: call key")
        names = {expert.name for expert in self.experts}
        for call in self.calls:
            if call.expert not in names:
                raise ValueError(
                    f"call {call.key}: expert must be one of the pool {sorted(names)}, got {call.expert!r}"
                )
        for name in dict.fromkeys(call.expert for call in self.calls):
            if name not in self.lengths:
                raise ValueError(
                    f"problem: lengths must have a prediction for expert {name!r}, got {list(self.lengths)}"
                )

    def expert(self, name: ExpertName) -> Expert:
        """Find an expert of the pool by name."""
        for expert in self.experts:
            if expert.name == name:
                return expert
        raise ValueError(f"expert must be one of {[expert.name for expert in self.experts]}, got {name!r}")

    def calls_by_expert(self) -> dict[ExpertName, list[Call]]:
        """Group the calls by expert, in the order in which the questions first name them; none without calls."""
        groups: dict[ExpertName, list[Call]] = {}
        for call in self.calls:
            groups.setdefault(call.expert, []).append(call)
        return groups

    def gangs(self, expert: Expert) -> tuple[tuple[Worker, ...], ...]:
        """List the groups of workers on which an expert can run: aligned, each as large as its tensor-parallel degree.

        Groups never span two kinds of GPU or two machines. A group on which the model does not fit is left out.
        """
        workers = self.cluster.workers
        size = expert.tp_degree
        groups = (workers[start : start + size] for start in range(0, len(workers) - size + 1, size))
        return tuple(group for group in groups if may_be_gang(group) and self.costs.fits(expert, group))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what a plan must match: the calls with their experts, the experts' sizes and the cluster."""
        lines = [f"w{worker.id}|{worker.gpu.name}|{worker.gpu.usable_bytes}\n" for worker in self.cluster.workers]
        lines += [f"e{expert.name}|{expert.tp_degree}|{expert.known_shape.num_parameters}\n" for expert in self.experts]
        for call in self.calls:
            question, node, slot = call.key
            lines.append(f"c{question}/{node}/{slot}|{call.expert}|{call.prompt_tokens}|{call.ready_s}\n")
        return sha256("".join(lines).encode()).hexdigest()[:16]
