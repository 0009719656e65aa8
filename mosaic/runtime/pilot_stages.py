"""The stages of a pilot, one after the other: what was asked and how it ran.

What lost workers leave is taken over by the others, so that a stage always ends with all its calls: gone through again
after an interruption it is the same, and so are the stages behind it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mosaic.core.commands import Command
from mosaic.core.events import Event, Finished, Started
from mosaic.core.plan import Plan, Session, unpriced_plan
from mosaic.core.results import CallRecord, CallStatus, RunResult, SessionRecord
from mosaic.core.workload import Call, CallKey, Workload
from mosaic.runtime.controller import Controller, View
from mosaic.runtime.job import Job
from mosaic.runtime.loop import drive
from mosaic.runtime.site import Prompts
from mosaic.runtime.static_plan import plan_commands
from mosaic.runtime.sweep import StopWhenFailing, of_questions
from mosaic.runtime.unpriced import spread_anew

MAX_FAILURES = 4
"""A pilot stops where so many calls fail in a row: its batch would fare no better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Sessions that run before the plan, one stage after the other."""

    name: str
    """Of its journal."""
    plan: Plan
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """What a pilot asked, and what came of it."""

    stages: tuple[Stage, ...] = ()
    """None: nothing of the batch was asked before it was planned."""
    records: Mapping[CallKey, CallRecord] = field(default_factory=dict)
    """Of the calls that finished. Those that failed are planned with the batch."""
    sessions: tuple[SessionRecord, ...] = ()
    """Of all stages."""

    @property
    def num_sessions(self) -> int:
        """They are the run's first."""
        return sum(len(stage.plan.sessions) for stage in self.stages)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the journals that hold it."""
        return tuple(stage.name for stage in self.stages)

    def whole_questions(self, workload: Workload, first_calls: Sequence[Call]) -> Workload:
        """Cut the batch down to the questions whose calls of the first layer have all finished here."""
        open_ = {call.key.question for call in first_calls if call.key not in self.records}
        questions = tuple(question for question in workload.questions if question.id not in open_)
        return of_questions(workload, questions)


class InTurn:
    """A controller that runs the stages of a pilot one after the other; those that have ended are told, not run."""

    reacts = True

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = list(stages)
        self.opened: Mapping[int, Session] = {}
        """All sessions of the run so far."""

    @property
    def is_left(self) -> bool:
        """Whether a stage has yet to begin."""
        return bool(self._stages)

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Begin the next stage when no call of the one before it is left."""
        self.opened = view.opened
        if view.running or not self._stages or not isinstance(event, Started | Finished):
            return ()
        stage = self._stages.pop(0)
        return plan_commands(stage.plan, {call.key: call for call in stage.calls}, view.next_session())


def run_stage(
    job: Job, prompts: Prompts, pilot: Pilot, stage: Stage, shown: Sequence[Controller]
) -> tuple[RunResult, Stage]:
    """Run the next stage of a pilot, on the clock and in the world of the run; gives its sessions as they were, too."""
    in_turn = InTurn((*pilot.stages, stage))
    experts = [*job.experts, *job.graph.experts]
    anew = spread_anew(experts, job.site, job.cluster.num_workers)
    stop = StopWhenFailing("pilot", len(stage.calls), max_in_a_row=MAX_FAILURES, may_lose=True)
    everybody: tuple[Controller, ...] = (in_turn, anew, stop, *shown)
    known = {question.id: question for question in job.workload.questions}
    backend = job.site.backend(known, prompts, name=stage.name, after=pilot.names)
    result = drive(backend, everybody, num_workers=job.cluster.num_workers, log=job.site.command_log())
    return result, _as_it_ran(stage, pilot.num_sessions, in_turn.opened, result)


def with_stage(pilot: Pilot, stage: Stage, result: RunResult) -> Pilot:
    """Add a stage that has run; its calls that failed are not of the pilot any more."""
    records = {record.key: record for record in result.calls if record.status is CallStatus.FINISHED}
    sessions = tuple(
        replace(session, shard=tuple(key for key in session.shard if key in records)) for session in stage.plan.sessions
    )
    calls = tuple(call for call in stage.calls if call.key in records)
    kept = replace(stage, plan=replace(stage.plan, sessions=sessions), calls=calls)
    return replace(pilot, stages=(*pilot.stages, kept), records=records, sessions=result.sessions)


def _as_it_ran(stage: Stage, first: int, opened: Mapping[int, Session], result: RunResult) -> Stage:
    """Put the sessions into a stage that took over what lost workers left of others."""
    mine = {number: session for number, session in opened.items() if number >= first}
    served_in = {record.key: record.session for record in result.calls if record.session in mine}
    shards: dict[int, list[CallKey]] = {number: [] for number in mine}
    for session in stage.plan.sessions:
        for key in session.shard:
            shards[served_in.get(key, session.id + first)].append(key)
    sessions = tuple(
        replace(session, id=number - first, shard=tuple(shards[number]), after=tuple(n - first for n in session.after))
        for number, session in mine.items()
    )
    return replace(stage, plan=unpriced_plan(sessions, num_workers=result.num_workers))
