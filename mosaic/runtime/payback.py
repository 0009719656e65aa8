"""How much is measured before a batch: no more than the batch can pay back."""

from collections.abc import Mapping, Sequence

from mosaic.core.workload import Call, ExpertName, Question, Workload
from mosaic.runtime.sweep import Sweep

MIN_CALLS = 8
"""The least that is measured: sessions of 1, 2 and 5 calls, the two points that a line needs and one to spare."""


def paid_back(num_calls: int, max_batch_frac: float | None) -> int | None:
    """Say how many calls may be measured before a batch has so many; None: as many as anybody likes.

    Examples
    --------
    >>> [paid_back(num_calls, 0.1) for num_calls in (20, 300, 25600)], paid_back(20, None)
    ([8, 30, 2560], None)
    """
    return None if max_batch_frac is None else max(MIN_CALLS, int(max_batch_frac * num_calls))


def sweep_within(sweep: Sweep, num_calls: int | None) -> Sweep:
    """Shrink a sweep to so many calls: by its repeats first, and then to three sessions, each twice the one before.

    Few large sessions tell more of a large batch than many small ones, and one of them may be interrupted.

    Examples
    --------
    >>> sweep = Sweep(shard_sizes=(128, 384, 768), num_repeats=2)
    >>> [sweep_within(sweep, num_calls) for num_calls in (1500, 30)]
    [Sweep(shard_sizes=(128, 384, 768), num_repeats=1), Sweep(shard_sizes=(4, 8, 18), num_repeats=1)]
    """
    size = sum(sweep.shard_sizes)
    if num_calls is None or size * sweep.num_repeats <= num_calls:
        return sweep
    if size <= num_calls:
        return Sweep(shard_sizes=sweep.shard_sizes, num_repeats=num_calls // size)
    small, middle = num_calls // 7, 2 * num_calls // 7
    return Sweep(shard_sizes=(small, middle, num_calls - small - middle))


def sweeps_within(sweep: Sweep, calls: Sequence[Call], max_batch_frac: float | None) -> dict[ExpertName, Sweep]:
    """Give the sweep of each expert that a batch calls, by how often it does."""
    counts: dict[ExpertName, int] = {}
    for call in calls:
        counts[call.expert] = counts.get(call.expert, 0) + 1
    return {expert: sweep_within(sweep, paid_back(count, max_batch_frac)) for expert, count in counts.items()}


def first_questions(workload: Workload, num_questions: int | None) -> Workload:
    """Cut a workload down to its first questions; None: to none less."""
    if num_questions is None or num_questions >= len(workload.questions):
        return workload
    questions: tuple[Question, ...] = workload.questions[:num_questions]
    kept = {question.id for question in questions}
    calls = tuple(call for call in workload.calls if call.key.question in kept)
    return Workload(name=workload.name, questions=questions, calls=calls)


def announcement(what: str, num_calls: Mapping[ExpertName, int], why: str, instead: str) -> str:
    """Say what is sent before the batch, why, and what spares it.

    Examples
    --------
    >>> announcement("profiling", {"Qwen": 2560, "GLM": 8}, "to price it", "profile.path=FILE spares them")
    'profiling: 2,568 calls that are not the batch (Qwen 2,560, GLM 8), to price it; profile.path=FILE spares them'
    """
    listed = ", ".join(f"{expert} {count:,}" for expert, count in num_calls.items())
    return f"{what}: {sum(num_calls.values()):,} calls that are not the batch ({listed}), {why}; {instead}"


def pilot_announcement(what: str, num_calls: Mapping[ExpertName, int], num_batch_calls: int) -> str:
    """Say how many calls of the batch are sent before it is planned, and why they cost nothing.

    Examples
    --------
    >>> pilot_announcement("pilot", {"Qwen": 120, "GLM": 60}, 1800)
    "pilot: 180 of the batch's own 1,800 calls (Qwen 120, GLM 60), to price the others; their answers are kept"
    """
    listed = ", ".join(f"{expert} {count:,}" for expert, count in num_calls.items())
    own = f"{sum(num_calls.values()):,} of the batch's own {num_batch_calls:,} calls ({listed})"
    return f"{what}: {own}, to price the others; their answers are kept"
