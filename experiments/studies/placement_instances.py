"""Placement problems for solvers alone: experts, equal workers and the paper's linear costs, from a file or drawn."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from mosaic.core.checks import require
from mosaic.planning.schedulers.instance import Instance

REASONING_FRAC = 0.22
LIGHT_CALL_S, REASONING_CALL_S, LOAD_S = (0.05, 0.3), (1.0, 2.5), (38.0, 47.0)
NUM_CALLS = (100, 3000)
DRAWN_K = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementExpert:
    """An expert as the files have it."""

    name: str
    num_calls: int
    cost_per_call_s: float
    load_s: float
    max_replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementProblem:
    """Experts to be placed on equal workers."""

    label: str
    num_workers: int
    max_experts_per_worker: int
    experts: tuple[PlacementExpert, ...]

    @property
    def size(self) -> str:
        return f"{len(self.experts)} x {self.num_workers}"

    def to_json(self) -> dict[str, Any]:
        """Convert to what the files hold, and a label."""
        return asdict(self)

    def instance(self) -> Instance:
        """Price every expert alike on every worker."""
        number = self.num_workers
        places = tuple((worker,) for worker in range(number))
        return Instance(
            names=tuple(expert.name for expert in self.experts),
            num_calls=tuple(expert.num_calls for expert in self.experts),
            places=(places,) * len(self.experts),
            setup_s=tuple((expert.load_s,) * number for expert in self.experts),
            per_call_s=tuple((expert.cost_per_call_s,) * number for expert in self.experts),
            max_replicas=tuple(expert.max_replicas for expert in self.experts),
            cap_reasons=("the file's cap",) * len(self.experts),
            num_workers=number,
            max_experts_per_worker=self.max_experts_per_worker,
        )


def read_problem(path: Path) -> PlacementProblem:
    """Read a file with ``num_workers``, ``max_experts_per_worker`` and ``experts``.

    Raises
    ------
    ValueError
        If a key is missing or unknown.
    """
    values = json.loads(path.read_text())
    wanted = {"num_workers", "max_experts_per_worker", "experts"}
    require(set(values) == wanted, f"{path}: keys", f"exactly {sorted(wanted)}", sorted(values))
    try:
        experts = tuple(PlacementExpert(**expert) for expert in values["experts"])
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None
    return PlacementProblem(
        label=path.stem,
        num_workers=values["num_workers"],
        max_experts_per_worker=values["max_experts_per_worker"],
        experts=experts,
    )


def draw_problem(num_experts: int, num_workers: int, seed: int) -> PlacementProblem:
    """Draw a problem: about a fifth of the experts reason, and caps follow equation 8 of the paper."""
    random = Random(f"{num_experts} {num_workers} {seed}")
    experts = []
    for number in range(num_experts):
        num_calls = random.randint(*NUM_CALLS)
        load_s = round(random.uniform(*LOAD_S), 2)
        call_s = round(random.uniform(*(REASONING_CALL_S if random.random() < REASONING_FRAC else LIGHT_CALL_S)), 4)
        cap = min(num_workers, max(1, int(num_calls * call_s / load_s)))
        experts.append(
            PlacementExpert(
                name=f"expert{number:03d}",
                num_calls=num_calls,
                cost_per_call_s=call_s,
                load_s=load_s,
                max_replicas=cap,
            )
        )
    return PlacementProblem(
        label=f"drawn {seed}",
        num_workers=num_workers,
        max_experts_per_worker=DRAWN_K,
        experts=tuple(experts),
    )
