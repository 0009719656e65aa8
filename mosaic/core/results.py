"""What happened: one record per call and per session, the same from every backend."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from mosaic.core.workload import CallKey, ExpertName, Role


class CallStatus(StrEnum):
    """How a call ended."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class CallRecord(NamedTuple):
    """One attempt at a call. Instants are seconds on the run's clock, zero at its start.

    A named tuple and not a frozen dataclass: a run makes one per call, and a frozen dataclass
    of this width costs four times as long to build.
    """

    key: CallKey
    expert: ExpertName
    session: int
    workers: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    queued_ts: float
    admitted_ts: float | None
    first_token_ts: float | None
    finished_ts: float | None
    num_preemptions: int = 0
    attempt: int = 0
    cached_tokens: int = 0
    """Prompt tokens whose KV entries were reused."""
    wasted_tokens: int = 0
    """Tokens computed again after a preemption, or thrown away by a cancellation."""
    status: CallStatus = CallStatus.FINISHED
    answer: str | None = None
    """Extracted from the response; None: nothing could be extracted."""
    visible_tokens: int | None = None
    """Tokens of the response without its thinking, which is what an aggregator reads; None: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """One expert's stay on its workers."""

    session: int
    expert: ExpertName
    role: Role
    workers: tuple[int, ...]
    load_start_ts: float
    load_s: float
    """0 where the expert was still resident from the session before."""
    start_ts: float
    """Load finished, generation starts."""
    end_ts: float
    num_calls: int
    output_tokens: int


class Action(NamedTuple):
    """What a listener did, when and why it could: enough to replay a run that reacted."""

    ts: float
    kind: str
    call: CallKey
    detail: str = ""


class Cancel(NamedTuple):
    """Stop a call that has not finished; its record gets the status cancelled."""

    key: CallKey


class Listener(Protocol):
    """Watches a run and may react before it ends."""

    def on_finish(self, record: CallRecord) -> Sequence[Cancel]:
        """Observe a finished call; return the calls to cancel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Everything a run left behind; partial after a failure."""

    calls: tuple[CallRecord, ...]
    sessions: tuple[SessionRecord, ...]
    num_workers: int
    lower_bound_s: float | None = None
    """No schedule can serve these calls at their true lengths in less (None: the backend cannot tell)."""
    actions: tuple[Action, ...] = ()
