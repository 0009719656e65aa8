"""Runs a pilot: calls of the batch itself that price the others; their answers belong to the batch."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b

from mosaic.core.errors import DisturbedSweepError
from mosaic.core.results import CallRecord
from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from mosaic.planning.profiles import Profile
from mosaic.runtime.controller import Log
from mosaic.runtime.job import Job, ProfileSource, Reaction
from mosaic.runtime.profiling import fit_entry
from mosaic.runtime.stages import Pilot, Stage, Stages
from mosaic.runtime.sweep import measured_calls
from mosaic.runtime.unpriced import sessions_in_thirds

MAX_TRIES = 2
"""Tries if an expert's sessions are interrupted: each sends more calls of the batch; counts stages of one start."""


def why_not(job: Job, first_calls: Sequence[Call]) -> str | None:
    """Return why the batch's own calls cannot or may not be measured; None: they can."""
    if job.profile_source is ProfileSource.CALIBRATION:
        return "profile.source=calibration"
    if job.profile_source is ProfileSource.AUTO and job.site.kind != "measured":
        return f"{job.site.kind} calls are not sent to a model"
    reason = why_not_kept(job)
    if reason is not None:
        return reason
    counts = Counter(call.expert for call in first_calls)
    for expert, num_calls in wanted_calls(job, first_calls).items():
        if counts[expert] < num_calls:
            return f"a price of {expert} takes {num_calls:,} calls, and the batch has {counts[expert]:,} for it"
    if len(choose_calls(job, first_calls)) == len(first_calls):
        return f"a pilot would take all of the batch's {len(first_calls):,} calls"
    return None


def why_not_kept(job: Job) -> str | None:
    """Return why answers of a pilot could not be used for the batch; None: they can."""
    if job.plans:
        return "a saved plan places every call of the batch"
    if Reaction.QUORUM in job.reactions:
        return "a quorum cancels calls that a pilot would have sent"
    if job.graph.rule.is_exit:
        return "an early exit cancels calls that a pilot would have sent"
    if job.reactions & {Reaction.OVERLAP, Reaction.MOVES}:
        return "calls of all layers go where there is room from the start"
    if job.graph.budgets:
        return "calls have budgets that a pilot would not keep"
    if job.graph.prefill_order is not None:
        return "prompts read in the order of lengths that a pilot does not know"
    if any(node.leaves_one_out for node in job.graph.nodes):
        return "the aggregator also answers without each response"
    if Reaction.NO_BARRIER in job.reactions:
        return "without a barrier the calls of all layers are planned at the start"
    return None


def wanted_calls(job: Job, first_calls: Sequence[Call]) -> dict[ExpertName, int]:
    """Return the number of each expert's calls for pricing: a share of its calls, at most the sweep's number."""
    return {expert: sweep.num_calls for expert, sweep in job.sweep.by_expert(first_calls, job.max_batch_frac).items()}


def choose_calls(job: Job, first_calls: Sequence[Call], taken: Iterable[CallKey] = ()) -> tuple[Call, ...]:
    """Choose the calls of a job's pilot; see `choose`."""
    wanted = wanted_calls(job, first_calls)
    num_whole = measured_calls(len(job.workload.questions), job.max_batch_frac) or max(wanted.values())
    return choose(first_calls, wanted, num_whole, taken)


def choose(
    first_calls: Sequence[Call],
    wanted: Mapping[ExpertName, int],
    num_whole: int,
    taken: Iterable[CallKey] = (),
    *,
    seed: int = 0,
) -> tuple[Call, ...]:
    """Choose calls of a batch for a pilot.

    Questions are ordered by a hash of their ids, so that a batch sorted by subject gives a fair sample, fixed before
    any answer. Whole questions are chosen first; they show what a gate skips. Then single calls are added for experts
    that these questions call too rarely.

    Parameters
    ----------
    first_calls
        Calls of the batch's first layer.
    wanted
        Least number of calls per expert.
    num_whole
        Number of questions of which all calls are sent.
    taken
        Calls that were sent before.
    seed
        Of the order.
    """
    left = set(taken)
    by_question: dict[str, list[Call]] = {}
    for call in first_calls:
        if call.key not in left:
            by_question.setdefault(call.key.question, []).append(call)
    order = sorted(by_question, key=lambda name: blake2b(f"pilot|{seed}|{name}".encode(), digest_size=8).digest())
    chosen = [call for question in order[:num_whole] for call in by_question[question]]
    lacking = Counter(wanted) - Counter(call.expert for call in chosen)
    for call in (call for question in order[num_whole:] for call in by_question[question]):
        if lacking[call.expert] > 0:
            lacking[call.expert] -= 1
            chosen.append(call)
    return tuple(chosen)


def price_by_pilot(
    job: Job, experts: Sequence[Expert], pilot: Pilot, source: str, log: Log
) -> Stages[tuple[Pilot, Profile | None]]:
    """Run some of the batch's calls, and price the experts of the first layer by them.

    Parameters
    ----------
    job, experts
        The batch, and the experts with calls of the first layer.
    pilot
        What a quote has answered.
    source
        Source to be written into the profile.
    log
        Receives lines for the user.

    Returns
    -------
    tuple[Pilot, Profile | None]
        The answers, and the prices; None: sessions were interrupted too often.
    """
    first_calls = job.graph.first_calls(job.workload)
    num_tries = 0
    while True:
        calls = choose_calls(job, first_calls, pilot.records)
        pilot = yield Stage("pilot", sessions_in_thirds(calls, experts, job.site.places), calls)
        num_tries += not pilot.is_resumed
        try:
            return pilot, profile_of(job, experts, pilot, source)
        except DisturbedSweepError as error:
            is_over = num_tries >= MAX_TRIES or len(pilot.records) + len(calls) >= len(first_calls)
            log(f"{error}; {'it is given up' if is_over else 'more calls of the batch are sent'}")
            if is_over:
                return pilot, None


def profile_of(job: Job, experts: Sequence[Expert], pilot: Pilot, source: str) -> Profile:
    """Price the experts of the first layer by the calls of a pilot, or of another stage.

    Raises
    ------
    DisturbedSweepError
        If interrupted sessions or failed calls leave fewer than two sizes of an expert's sessions.
    """
    upper = {node.name for node in job.graph.upper_nodes}
    finished: dict[ExpertName, list[CallRecord]] = {}
    for record in pilot.records.values():
        if record.key.node not in upper:
            finished.setdefault(record.expert, []).append(record)
    served = [session for session in pilot.sessions if session.num_calls and session.node not in upper]
    measured = [expert for expert in experts if expert.name in finished]
    entries = (fit_entry(expert, job.cluster, finished[expert.name], served) for expert in measured)
    return Profile(source=source, entries=tuple(entries))
