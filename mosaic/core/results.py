"""Records of a run: one per call and per session, the same for every backend."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from mosaic.core.commands import Action
from mosaic.core.workload import PROPOSE, Call, CallKey, ExpertName, NodeName


class CallStatus(StrEnum):
    """How a call ended."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    CUT = "cut"
    """The call reached its token limit before its answer: it has no answer, and no call reads it."""


SERVED = frozenset({CallStatus.FINISHED, CallStatus.CUT})
"""Calls whose tokens were generated and used."""
STOPPED = frozenset({CallStatus.CANCELLED, CallStatus.CUT})
"""Calls that the run stopped before their answer."""


class TextFile(Protocol):
    """A file with texts of responses."""

    def text_at(self, start: int, num_bytes: int) -> str:
        """Read the text of a record from its first byte and its number of bytes."""


class StoredText(msgspec.Struct, frozen=True, gc=False):
    """Position of a text on disk: the texts of a large batch would not fit into the driver's memory."""

    file: TextFile
    start: int
    num_bytes: int


class Response(NamedTuple):
    """The response of a real engine, beside the counts; a simulated call has none."""

    content: str | StoredText | None = None
    """The text, or its position on disk in the records of a run's result. None: no tokenizer, so no text."""
    token_ids: tuple[int, ...] = ()
    """In a journal only; the records of a run's result have none."""
    finish_reason: str | None = None
    """As the engine reports it: stop, or length if the limit cut the response off."""
    thinking_opened: bool = False
    """The prompt's template opened the think tag."""
    error: str | None = None
    """Why the call failed."""
    fingerprint: str = ""
    """Hash of all inputs that the response depends on: a finished record with the same one replaces the call."""

    @property
    def text(self) -> str | None:
        """The text, read from disk if it is stored there."""
        content = self.content
        return content.file.text_at(content.start, content.num_bytes) if isinstance(content, StoredText) else content


class CallRecord(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A call that ended, with its last attempt. Instants are seconds on the run's clock, zero at its start.

    A run makes one per call. A frozen dataclass of this width takes ten times as long to build.
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
    """Tokens computed again after a preemption or a move, or discarded by a cancellation."""
    status: CallStatus = CallStatus.FINISHED
    answer: str | None = None
    """Extracted from the response; None: no answer could be extracted."""
    visible_tokens: int | None = None
    """Tokens of the response without its thinking, as an aggregator reads it; None: not known."""
    response: Response | None = None
    confidence: float | None = None
    """Geometric mean of the probabilities of the response's tokens, 0 to 1; None: not requested, or not known.

    Simulated: the probability with which its expert gives this answer.
    """


class PrefillRecord(NamedTuple):
    """The beginning of a prompt that was prefilled ahead of its call, or was dropped before it was complete."""

    key: CallKey
    expert: ExpertName
    session: int
    prompt_tokens: int
    """Of the beginning."""
    cached_tokens: int
    """Of these, the tokens found in the KV cache."""
    computed_tokens: int
    """Of these, the tokens computed: the cost for the engine."""
    queued_ts: float
    finished_ts: float


Inputs: TypeAlias = Mapping[CallKey, CallRecord]
"""Records of the calls in a call's ``after``."""


def inputs_of(call: Call, *known: Inputs) -> dict[CallKey, CallRecord]:
    """Return the known records of the calls in a call's ``after``; of two records the last one counts."""
    if not call.after:
        return {}
    return {key: records[key] for key in call.after for records in known if key in records}


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """The session of one expert on its workers, from load to unload."""

    session: int
    expert: ExpertName
    node: NodeName
    """Node of the calls that it was planned for."""
    workers: tuple[int, ...]
    load_start_ts: float
    load_s: float
    """0 if the expert was still loaded from the session before."""
    start_ts: float
    """End of the load and start of generation."""
    end_ts: float
    num_calls: int
    output_tokens: int
    cpu_s: float | None = None
    """Processor time from the load's start to the end; None: not known, or simulated.

    If it is far below the wall time, other processes used the core.
    """
    num_interruptions: int = 0
    """Number of times that it was restarted."""


SESSION_COLUMNS = tuple(
    name for name in SessionRecord.__dataclass_fields__ if name not in ("cpu_s", "num_interruptions")
)
"""Columns of tables of sessions, the same for simulated and real engines."""


class Resumption(NamedTuple):
    """A stopped run was resumed. Loads and calls that were in progress were repeated on the run's clock."""

    ts: float
    """On the run's clock, which did not advance during the pause."""
    pause_s: float | None
    """Wall seconds since the last saved event. None: not known."""


class LostWorker(NamedTuple):
    """A worker that was lost before the end of the run, and did not join again."""

    ts: float
    worker: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """All results of a run; partial after a failure."""

    calls: tuple[CallRecord, ...]
    """By session, and within a session in the order of their ends."""
    sessions: tuple[SessionRecord, ...]
    num_workers: int
    lower_bound_s: float | None = None
    """No schedule can serve the first layer's calls with their true lengths in less time (None: not known)."""
    actions: tuple[Action, ...] = ()
    """The log of commands; empty for a simulation without reacting controllers, which follows from its plans."""
    resumptions: tuple[Resumption, ...] = ()
    """Empty: it ran from its start to its end without a stop."""
    lost_workers: tuple[LostWorker, ...] = ()
    """Workers lost since the run was last resumed."""
    prefills: tuple[PrefillRecord, ...] = ()
    """Prefills ahead of calls; they are no answers."""
    num_pilot_sessions: int = 0
    """Number of the first sessions that ran before the plan, to price it."""
    first_nodes: tuple[NodeName, ...] = (PROPOSE,)
    """Nodes of the first layer: their calls read no other calls."""

    def after_pilot(self) -> "RunResult":
        """Return the part of the run after its plan."""
        if not self.num_pilot_sessions:
            return self
        is_later = lambda record: not 0 <= record.session < self.num_pilot_sessions  # noqa: E731
        return replace(self, calls=tuple(filter(is_later, self.calls)), sessions=tuple(filter(is_later, self.sessions)))
