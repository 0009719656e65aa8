"""What happened: one record per call and per session, the same from every backend."""

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
    """It had written as much as it may before it came to its answer: it has none, and no call reads it."""


SERVED = frozenset({CallStatus.FINISHED, CallStatus.CUT})
"""Of calls whose tokens an engine wrote for a run that wanted them."""
STOPPED = frozenset({CallStatus.CANCELLED, CallStatus.CUT})
"""Of calls that a run stopped before they came to their answer."""


class TextFile(Protocol):
    """A file that holds texts of responses."""

    def text_at(self, start: int, num_bytes: int) -> str:
        """Read the text of a record: its first byte, and how many there are."""


class StoredText(msgspec.Struct, frozen=True, gc=False):
    """Where a text is on the disk: the memory of a driver does not hold those of a large batch."""

    file: TextFile
    start: int
    num_bytes: int


class Response(NamedTuple):
    """What a real engine said, beside the counts; a simulated call has none."""

    content: str | StoredText | None = None
    """Its text; the records of a run's result have where it is. None: without a tokenizer there is no text."""
    token_ids: tuple[int, ...] = ()
    """In a journal; the records of a run's result have none."""
    finish_reason: str | None = None
    """As the engine says: stop, or length where the limit cut the response off."""
    thinking_opened: bool = False
    """The prompt's template opened the think tag."""
    error: str | None = None
    """Why it failed."""
    fingerprint: str = ""
    """Of all that decides the response: who finds a finished record with it need not run the call."""

    @property
    def text(self) -> str | None:
        """The text, read from the disk if it is there."""
        content = self.content
        return content.file.text_at(content.start, content.num_bytes) if isinstance(content, StoredText) else content


class CallRecord(NamedTuple):
    """A call that ended, with the attempt that counts. Instants are seconds on the run's clock, zero at its start.

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
    """Tokens computed again after a preemption or a move, or thrown away by a cancellation."""
    status: CallStatus = CallStatus.FINISHED
    answer: str | None = None
    """Extracted from the response; None: nothing could be extracted."""
    visible_tokens: int | None = None
    """Tokens of the response without its thinking, which is what an aggregator reads; None: not known."""
    response: Response | None = None
    confidence: float | None = None
    """Geometric mean of the probabilities of the response's tokens, 0 to 1; simulated, the probability with which its
    expert gives this answer. None: not wanted, or not known to the engine."""


class PrefillRecord(NamedTuple):
    """The beginning of a prompt that was prefilled ahead of its call, or was dropped before it was whole."""

    key: CallKey
    expert: ExpertName
    session: int
    prompt_tokens: int
    """Of the beginning."""
    cached_tokens: int
    """Of these, found in the KV cache."""
    computed_tokens: int
    """Of these, computed: what it cost the engine."""
    queued_ts: float
    finished_ts: float


Inputs: TypeAlias = Mapping[CallKey, CallRecord]
"""Records of the calls that a call comes after."""


def inputs_of(call: Call, *known: Inputs) -> dict[CallKey, CallRecord]:
    """Give the records of the calls that a call comes after, where known; of two records the last counts."""
    if not call.after:
        return {}
    return {key: records[key] for key in call.after for records in known if key in records}


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """One expert's stay on its workers."""

    session: int
    expert: ExpertName
    node: NodeName
    """Of the calls that it was planned for."""
    workers: tuple[int, ...]
    load_start_ts: float
    load_s: float
    """0 where the expert was still resident from the session before."""
    start_ts: float
    """Load finished, generation starts."""
    end_ts: float
    num_calls: int
    output_tokens: int
    cpu_s: float | None = None
    """Processor time from the load's start to the end: far below the wall time, others were using the core.

    None: not known, or simulated.
    """
    num_interruptions: int = 0
    """Times that it was begun again."""


SESSION_COLUMNS = tuple(
    name for name in SessionRecord.__dataclass_fields__ if name not in ("cpu_s", "num_interruptions")
)
"""What tables of sessions hold: the same of a simulation and of real engines."""


class Resumption(NamedTuple):
    """A run that had stopped went on. Loads, and calls that were under way, were done again on the run's clock."""

    ts: float
    """On the run's clock, which stood still since."""
    pause_s: float | None
    """Wall seconds since the last thing that was kept. None: not known."""


class LostWorker(NamedTuple):
    """A worker that was gone for good before the run was over."""

    ts: float
    worker: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Everything a run left behind; partial after a failure."""

    calls: tuple[CallRecord, ...]
    """By session, and within a session in the order in which they ended."""
    sessions: tuple[SessionRecord, ...]
    num_workers: int
    lower_bound_s: float | None = None
    """No schedule can serve the first layer's calls at their true lengths in less (None: not known)."""
    actions: tuple[Action, ...] = ()
    """The log of commands; empty of a simulation in which nothing reacts, as it follows from the plans."""
    resumptions: tuple[Resumption, ...] = ()
    """None: it ran from its start to its end in one go."""
    lost_workers: tuple[LostWorker, ...] = ()
    """Since the run last went on."""
    prefills: tuple[PrefillRecord, ...] = ()
    """Work ahead of calls; none of it is an answer."""
    num_pilot_sessions: int = 0
    """The first sessions, which ran before the plan, to price it."""
    first_nodes: tuple[NodeName, ...] = (PROPOSE,)
    """Nodes of the first layer: their calls need no other's answer."""

    def after_pilot(self) -> "RunResult":
        """Give what the run did after its plan."""
        if not self.num_pilot_sessions:
            return self
        is_later = lambda record: not 0 <= record.session < self.num_pilot_sessions  # noqa: E731
        return replace(self, calls=tuple(filter(is_later, self.calls)), sessions=tuple(filter(is_later, self.sessions)))
