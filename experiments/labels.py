"""Name what differs between runs: by the configuration keys that vary, and no more of them than needed."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from experiments.run_points import RunPoint

POLICY_GROUPS = ("scheduler", "costs", "plan", "gate", "aggregator", "profile")
"""Groups that a policy may choose. All others make the world in which policies meet."""


def label_cases(runs: Sequence[RunPoint]) -> list[str]:
    """Name each run's world: its workload, and whatever else of the world varies among the runs of that workload."""
    keys = _varying(runs, lambda run: run.workload, lambda key: not _is_policy(key))
    return [_label(run.workload, run, keys) for run in runs]


def label_policies(runs: Sequence[RunPoint]) -> list[str]:
    """Name each run's policy: its scheduler, and the settings that vary among the runs of that scheduler."""
    keys = _varying(runs, lambda run: (run.workload, run.scheduler), _is_policy)
    return [_label(run.scheduler, run, keys) for run in runs]


def shared_settings_agree(left: RunPoint, right: RunPoint) -> bool:
    """Tell whether two runs agree in the policy settings outside the scheduler itself, such as costs."""
    shared = (left.leaves.keys() & right.leaves.keys()) - {"scheduler"}
    return all(
        repr(left.leaves[key]) == repr(right.leaves[key])
        for key in shared
        if _is_policy(key) and not key.startswith("scheduler.")
    )


def _is_policy(key: str) -> bool:
    return key.split(".")[0] in POLICY_GROUPS


def _varying(
    runs: Sequence[RunPoint], group_of: Callable[[RunPoint], Hashable], eligible: Callable[[str], bool]
) -> list[str]:
    """List the keys that take several values inside some group; of each configuration group the fewest that tell."""
    every = sorted({key for run in runs for key in run.leaves})
    groups: defaultdict[Hashable, list[RunPoint]] = defaultdict(list)
    for run in runs:
        groups[group_of(run)].append(run)
    varying: defaultdict[str, list[str]] = defaultdict(list)
    for key in every:
        follows_seed = all(run.leaves.get(key) == run.seed for run in runs)
        varies = any(len({_value(run, key) for run in members}) > 1 for members in groups.values())
        if eligible(key) and key != "seed" and varies and not follows_seed:
            varying[key.split(".")[0]].append(key)
    return [key for keys in varying.values() for key in _fewest(runs, keys)]


def _value(run: RunPoint, key: str) -> str:
    return repr(run.leaves.get(key, ...))


def _fewest(runs: Sequence[RunPoint], keys: Sequence[str]) -> list[str]:
    """Pick keys greedily until they tell apart all that the full set does; a name goes first."""

    def num_told_apart(chosen: Sequence[str]) -> int:
        return len({tuple(_value(run, key) for key in chosen) for run in runs})

    left = sorted(keys, key=lambda key: (not key.endswith(".name"), not key.endswith("._target_"), key))
    chosen: list[str] = []
    while num_told_apart(chosen) < num_told_apart(keys):
        best = max(left, key=lambda key: num_told_apart([*chosen, key]))  # the first of equals
        chosen.append(best)
        left.remove(best)
    return chosen


def _label(name: str, run: RunPoint, keys: Sequence[str]) -> str:
    tails = [key.split(".")[-1] for key in keys]
    parts = [name]
    for key, tail in zip(keys, tails, strict=True):
        if key not in run.leaves:
            continue  # the setting belongs to another scheduler
        names_its_group = tail in ("name", "_target_")
        short = key.rsplit(".", 1)[0] if names_its_group else key if tails.count(tail) > 1 else tail
        parts.append(f"{short}={_show(run.leaves[key], tail)}")
    return " ".join(parts)


def _show(value: Any, tail: str) -> str:
    if value is None:
        return "null"
    return str(value).rsplit(".", 1)[-1] if tail == "_target_" else str(value)
