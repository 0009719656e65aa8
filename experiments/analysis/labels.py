"""Name what differs between runs: by the configuration keys that vary, and no more of them than needed."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from experiments.analysis.run_points import RunPoint

POLICY_GROUPS = ("scheduler", "costs", "plan", "gate", "aggregator", "profile")
"""Groups that a policy may choose. All others make the world in which policies meet."""
SECOND_STAGE = ("gate", "aggregator")


def label_cases(runs: Sequence[RunPoint]) -> list[str]:
    """Name each run's world: its workload, and whatever else of the world varies among the runs of that workload."""
    keys = _varying(runs, lambda run: run.workload, lambda key: not _is_policy(key))
    return [_label(run.workload, run, keys, _digits(runs, keys)) for run in runs]


def label_policies(runs: Sequence[RunPoint]) -> list[str]:
    """Name each run's policy: its scheduler, and the settings that vary among the runs of that scheduler.

    The second stage's settings count as varying when they differ between schedulers too: a gate that one
    scheduler alone was run with would else pass for that scheduler's merit.
    """
    keys = [
        *_varying(runs, lambda run: (run.workload, run.scheduler), lambda key: _is_policy(key) and not _is_late(key)),
        *_varying(runs, lambda run: run.workload, _is_late),
    ]
    return [_label(run.scheduler, run, keys, _digits(runs, keys)) for run in runs]


def settings_agree(left: RunPoint, right: RunPoint, *, outside: str) -> bool:
    """Tell whether two runs agree in the policy settings that both have, those of one group set aside."""
    return all(
        repr(left.leaves[key]) == repr(right.leaves[key])
        for key in left.leaves.keys() & right.leaves.keys()
        if _is_policy(key) and _group(key) != outside
    )


def _is_policy(key: str) -> bool:
    return _group(key) in POLICY_GROUPS


def _is_late(key: str) -> bool:
    return _group(key) in SECOND_STAGE


def _group(key: str) -> str:
    return key.split(".")[0]


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
            varying[_group(key)].append(key)
    return [key for keys in varying.values() for key in _fewest(runs, keys)]


def _value(run: RunPoint, key: str) -> str:
    return repr(run.leaves.get(key, ...))


def _fewest(runs: Sequence[RunPoint], keys: Sequence[str]) -> list[str]:
    """Pick the group's name, then keys greedily until they tell apart all that the full set does."""

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


def _digits(runs: Sequence[RunPoint], keys: Sequence[str]) -> dict[str, int]:
    """Choose per key how many digits its fractions need, from 3, to look as different as they are."""
    digits = {}
    for key in keys:
        values = {value for run in runs if isinstance(value := run.leaves.get(key), float)}
        enough = (n for n in range(3, 17) if len({f"{value:.{n}g}" for value in values}) == len(values))
        digits[key] = next(enough, 17)
    return digits


def _label(name: str, run: RunPoint, keys: Sequence[str], digits: Mapping[str, int]) -> str:
    tails = [key.split(".")[-1] for key in keys]
    parts = [name]
    for key, tail in zip(keys, tails, strict=True):
        if key not in run.leaves:
            continue  # the setting belongs to another scheduler
        names_its_group = tail in ("name", "_target_")
        short = key.rsplit(".", 1)[0] if names_its_group else key if tails.count(tail) > 1 else tail
        parts.append(f"{short}={_show(run.leaves[key], tail, digits[key])}")
    return " ".join(parts)


def _show(value: Any, tail: str, digits: int) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return str(value).rsplit(".", 1)[-1] if tail == "_target_" else str(value)
