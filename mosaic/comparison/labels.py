"""Names the differences between runs: by the configuration keys that vary, and only as many as needed."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from mosaic.comparison.run_points import RunPoint

POLICY_GROUPS = ("scheduler", "costs", "plan", "gate", "exit", "aggregator", "pipeline", "topology", "profile")
"""Groups that a policy may choose. All other groups define the world in which policies are compared."""
SECOND_STAGE = ("gate", "exit", "aggregator", "pipeline", "topology")
CLUSTER = "cluster"


class Labels(NamedTuple):
    """Names of one run. A setting that is null is not set, and so not written."""

    world: str
    """Its workload, and all else of the world that varies among the runs of that workload, without the machines."""
    case: str
    """The world with its machines."""
    policy: str
    """Its scheduler, and the settings that vary among the runs of that scheduler.

    Settings of the second stage are included if they differ between schedulers. Otherwise the effect of a gate that
    only one scheduler had would look like an effect of the scheduler.
    """
    second_stage: str
    beside_scheduler: str
    """Settings that vary, without the scheduler's own."""
    beside_gate: str


def label_runs(runs: Sequence[RunPoint]) -> list[Labels]:
    """Name each run among the others."""

    def varying(group_of: Callable[[RunPoint], Hashable], *groups: str, others: bool = False) -> list[str]:
        return _varying(runs, group_of, lambda key: (_group(key) in groups) is not others)

    def of_workload(run: RunPoint) -> Hashable:
        return run.workload

    world = varying(of_workload, *POLICY_GROUPS, CLUSTER, others=True)
    machines = varying(of_workload, CLUSTER)
    early = [group for group in POLICY_GROUPS if group not in SECOND_STAGE]
    own = varying(lambda run: (run.workload, run.scheduler), *early)
    late = varying(of_workload, *SECOND_STAGE)
    beside = varying(of_workload, *early[1:])
    write = _writer(runs)
    return [
        Labels(
            world=write(run.workload, run, world),
            case=write(run.workload, run, [*world, *machines]),
            policy=write(run.scheduler, run, [*own, *late]),
            second_stage=write("", run, late),
            beside_scheduler=write("", run, [*beside, *late]),
            beside_gate=write("", run, [*own, *(key for key in late if _group(key) != "gate")]),
        )
        for run in runs
    ]


def _group(key: str) -> str:
    return key.split(".")[0]


def _varying(
    runs: Sequence[RunPoint], group_of: Callable[[RunPoint], Hashable], eligible: Callable[[str], bool]
) -> list[str]:
    """List the keys with several values inside some group; of each configuration group the fewest that suffice."""
    groups: defaultdict[Hashable, list[RunPoint]] = defaultdict(list)
    for run in runs:
        groups[group_of(run)].append(run)
    varying: defaultdict[str, list[str]] = defaultdict(list)
    for key in sorted({key for run in runs for key in run.leaves if eligible(key) and key != "seed"}):
        follows_seed = all(run.leaves.get(key) == run.seed for run in runs)
        if not follows_seed and any(len({_value(run, key) for run in members}) > 1 for members in groups.values()):
            varying[_group(key)].append(key)
    return [key for keys in varying.values() for key in _fewest(runs, keys)]


def _value(run: RunPoint, key: str) -> str:
    return repr(run.leaves.get(key))


def _fewest(runs: Sequence[RunPoint], keys: Sequence[str]) -> list[str]:
    """Pick the group's name, then keys greedily until they distinguish all that the full set does."""

    def num_told_apart(chosen: Sequence[str]) -> int:
        return len({tuple(_value(run, key) for key in chosen) for run in runs})

    left = sorted(keys, key=lambda key: (not key.endswith(".name"), not key.endswith("._target_"), key))
    chosen = [key for key in left if key == f"{_group(key)}.name"]
    left = [key for key in left if key not in chosen]
    while num_told_apart(chosen) < num_told_apart(keys):
        best = max(left, key=lambda key: num_told_apart([*chosen, key]))  # the first of equals
        chosen.append(best)
        left.remove(best)
    return chosen


def _writer(runs: Sequence[RunPoint]) -> Callable[[str, RunPoint, Sequence[str]], str]:
    """Make a function that writes a name with its settings."""

    def show(value: Any, key: str) -> str:
        if isinstance(value, float):  # with 3 digits or more, as many as its values need to be distinguished
            values = {other for run in runs if isinstance(other := run.leaves.get(key), float)}
            enough = (n for n in range(3, 17) if len({f"{other:.{n}g}" for other in values}) == len(values))
            return f"{value:.{next(enough, 17)}g}"
        return str(value).rsplit(".", 1)[-1] if key.endswith("._target_") else str(value)

    def write(name: str, run: RunPoint, keys: Sequence[str]) -> str:
        tails = [key.split(".")[-1] for key in keys]
        parts = [name] if name else []
        for key, tail in zip(keys, tails, strict=True):
            if (value := run.leaves.get(key)) is not None:
                names_its_group = tail in ("name", "_target_")
                is_unique = tails.count(tail) == 1 and tail != "path"
                short = key.rsplit(".", 1)[0] if names_its_group else tail if is_unique else key
                parts.append(f"{short}={show(value, key)}")
        return " ".join(parts)

    return write
