"""What comes of trees of agents on few GPUs, as text and as bars."""

from collections.abc import Iterator, Sequence

from experiments.analysis.intervals import Estimate, estimate
from experiments.figures.saved import Bar
from experiments.studies.tree_runs import NUM_QUESTIONS, STAGES, WAYS, Point, Row, Times

PUBLISHED = (("tree", 0.62), ("overlap", 0.76), ("exit", 0.90))
"""Faster-MoA's maxima, cumulative (arXiv 2512.18126, normalised charts)."""
SHARING = {False: "without prefix sharing", True: "with prefix sharing"}
WHAT = f"""\
`all to all` is 9-9-1, `tree` 9-3-1 with a fan-in of 3, both with a barrier between their layers. `no barrier` starts
calls when what they read has ended, with plans that know each other (`pipeline.forecast=true`); `overlap`
(`pipeline.overlap=true`) lets them join sessions of their expert under way; `prefill ahead` prefills prompts while
later slots still run, which takes engines that share prefixes; `exit` is `exit=agreement`. Each is on top of the one
before it, but `overlap`, which replaces `no barrier`.

{NUM_QUESTIONS} questions of MMLU-Pro's lengths, six instruct models of 7 to 9B (`pool=instruct`), A100s, engines in
mixed order, the ILP with piecewise prices; lengths and answers are those of the simulated world, and loads count. Means
over paired seeds with 95% intervals.

Faster-MoA measured the latency of one question at a time, with three Qwen3-VL of 4B, 8B and 32B on six H200, a GPU for
prefill and one for decode of each. Here a batch is timed, so only direction and order can be compared, not sizes.
"""


def stages_of(times: Times, num_gpus: int, *, shares: bool) -> list[tuple[str, Estimate]]:
    """List what has been saved after each stage."""
    baseline = Point(kind="stage", name="all to all", num_gpus=num_gpus, shares=shares)
    made = [Point(kind="stage", name=name, num_gpus=num_gpus, shares=shares) for name in STAGES]
    return [(point.name, times.saved_frac(point, baseline)) for point in made[1:] if point in times]


def bars(rows: Sequence[Row]) -> list[tuple[str, list[Bar]]]:
    """Stack what was saved, by prefix sharing and number of GPUs, and what was published."""
    times, nums = Times(rows), _nums(rows)
    groups = [
        (f"{SHARING[shares]}, GPUs", [Bar(str(num), stages_of(times, num, shares=shares)) for num in nums])
        for shares in SHARING
    ]
    published = Bar("6 (latency)", [(name, Estimate(saved)) for name, saved in PUBLISHED])
    return [*groups, ("published", [published])]


def report(rows: Sequence[Row], command: str) -> str:
    """Write the tables."""
    times, nums = Times(rows), _nums(rows)
    num_seeds = len({row.seed for row in rows})
    lines = ["# Trees of agents on few GPUs", "", f"`{command}`, {num_seeds} seeds. Simulated.", "", WHAT]
    lines += ["![time saved](trees.png)", "", "## Time saved of all to all (%), cumulative", ""]
    lines += _stages(times, nums)
    lines += ["", "Published maxima: tree 62, with overlap 76, with early exit 90."]
    lines += ["", "## How layers follow each other (without prefix sharing)", ""]
    lines += [
        "Seconds end to end, and in brackets the time saved of the same topology with a barrier (%), with loads.",
        "",
    ]
    lines += _ways(times, nums)
    return "\n".join(lines) + "\n"


def _stages(times: Times, nums: Sequence[int]) -> Iterator[str]:
    names = [name for name in STAGES if name != "all to all"]
    yield f"| prefix sharing | GPUs | all to all (s) | {' | '.join(names)} | accuracy, change (pp) |"
    yield f"| --- | --- | --- | {' | '.join('---' for _ in names)} | --- |"
    for shares in SHARING:
        for num in nums:
            saved = dict(stages_of(times, num, shares=shares))
            baseline = Point(kind="stage", name="all to all", num_gpus=num, shares=shares)
            last = Point(kind="stage", name=[name for name in names if name in saved][-1], num_gpus=num, shares=shares)
            taken = estimate([row.end_to_end_s for row in times.of(baseline).values()])
            cells = [_percent(saved[name]) if name in saved else "" for name in names]
            changed = times.changed_pp(last, baseline)
            yield (
                f"| {'yes' if shares else 'no'} | {num} | {taken.mean:,.0f} | {' | '.join(cells)} | "
                f"{_span(changed, 1.0)} |"
            )


def _ways(times: Times, nums: Sequence[int]) -> Iterator[str]:
    yield f"| topology | GPUs | {' | '.join(WAYS)} |"
    yield f"| --- | --- | {' | '.join('---' for _ in WAYS)} |"
    for topology in ("tree", "all_to_all"):
        for num in nums:
            barrier, *others = [Point(kind=topology, name=name, num_gpus=num, shares=False) for name in WAYS]
            cells = [_seconds(times, barrier)]
            cells += [f"{_seconds(times, point)} ({_percent(times.saved_frac(point, barrier))})" for point in others]
            yield f"| {topology} | {num} | {' | '.join(cells)} |"


def _seconds(times: Times, point: Point) -> str:
    rows = times.of(point).values()
    taken = estimate([row.end_to_end_s for row in rows])
    loads = sum(row.num_loads for row in rows) / len(rows)
    return f"{taken.mean:,.0f}, {loads:.1f} loads"


def _percent(saved: Estimate) -> str:
    return _span(saved, 100.0)


def _span(value: Estimate, scale: float) -> str:
    span = value.shown()
    text = f"{scale * value.mean:.1f}"
    return text if span is None else f"{text} [{scale * span[0]:.1f}, {scale * span[1]:.1f}]"


def _nums(rows: Sequence[Row]) -> list[int]:
    return sorted({row.num_gpus for row in rows})
