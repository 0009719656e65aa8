"""The interface of an engine in a worker process, and the plain values that go in and out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from mosaic.core.chat import Chat, Sampling
from mosaic.core.workload import CallKey, ExpertName

Prompt: TypeAlias = str | Chat | tuple[int, ...]
"""What an expert reads: a text or messages, which its checkpoint's chat template wraps, or token ids as they are."""
MORE_ROOM = "shorten the prompt, or raise context_tokens up to the checkpoint's limit"
"""What to do about a prompt that is too long for its expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One expert on its workers: all that loading it needs. Equal specs are one engine, which need not load twice."""

    expert: ExpertName
    num_workers: int
    """The tensor-parallel degree."""
    context_tokens: int
    max_num_seqs: int
    """Requests that its batch holds."""
    settings: Any
    """What the engine's module understands."""
    is_remote: bool = False
    """The model is a server's: nothing is loaded here, and what it computes is not known."""
    has_served: bool = field(default=False, compare=False)
    """It is known to serve calls, so what stops it may pass."""


class Request(NamedTuple):
    """One generation: what an engine reads, and what its worker needs to record how it ended.

    A named tuple: it is made, changed and sent once per call.
    """

    key: CallKey
    """No two requests under way in an engine have the same."""
    prompt: Prompt
    seed: int
    temperature: float
    max_output_tokens: int
    """The response is cut off there, what is already generated included, and before where the context ends."""
    output_tokens: int | None = None
    """Replay: write exactly so many in all, whatever they are; None: the model decides."""
    generated: tuple[int, ...] = ()
    """What the engine of an earlier session has written already, to go on from."""
    is_beginning: bool = False
    """Compute the beginning of a call's prompt ahead of the call, in the place of an earlier one of the call.

    The prompt goes on behind its last message, which is not whole: nothing that a template writes follows it.
    """
    sampling: Sampling | None = None
    """What is set beside temperature, seed and limit, which stand above; None: nothing."""
    with_confidence: bool = False
    """Give how probable its tokens were."""
    fingerprint: str = ""
    """Of all that decides the response."""
    prompt_tokens: int = 0
    """As the call says; the record has what the engine counted."""
    queued_ts: float = 0.0
    """When it arrived, or was submitted."""
    cut_tokens: int | None = None
    """It ends with what it has once it has written so many."""
    attempt: int = 0
    wasted_tokens: int = 0
    """Computed in earlier sessions, and to be computed again."""
    max_requests: int | None = None
    """The most that a server may get for it, retries included; None: as often as its patience says."""


class Output(NamedTuple):
    """What a request has come to, finished or not; instants are seconds of the machine's monotonic clock."""

    key: CallKey
    token_ids: tuple[int, ...] = ()
    """Written so far, what was already generated first; empty where the engine does not count them."""
    text: str | None = None
    """None: without a tokenizer there is no text."""
    finish_reason: str | None = None
    """None: it was aborted."""
    prompt_tokens: int | None = None
    """Without what was already generated; None: not known, as of a call that failed."""
    cached_tokens: int = 0
    num_preemptions: int = 0
    scheduled_ts: float | None = None
    first_token_ts: float | None = None
    """Of those that this engine wrote; None: not known."""
    last_token_ts: float | None = None
    """None: it was aborted."""
    visible_tokens: int | None = None
    """Of the text without its thinking; None: not known."""
    thinking_opened: bool = False
    output_tokens: int | None = None
    """Where an engine counts tokens and does not name them; None: as many as ``token_ids``."""
    error: str | None = None
    """The call failed for this reason, in one line."""
    num_retries: int = 0
    """Tries that failed before the one that counts."""
    confidence: float | None = None
    """Geometric mean of the probabilities of the tokens that this engine wrote; None: not wanted, or not known."""

    @property
    def num_written(self) -> int:
        """How many tokens it has written."""
        return len(self.token_ids) if self.output_tokens is None else self.output_tokens


class Engine(Protocol):
    """A loaded model that serves requests with continuous batching."""

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises
        ------
        ValueError
            If this request cannot be served; the engine stays usable.
        """

    def step(self) -> Sequence[Output]:
        """Run one iteration and return what ended in it.

        Raises
        ------
        FatalEngineError
            If no call of the run will ever be served.
        """

    def abort(self, key: CallKey) -> Output:
        """Drop a request that was submitted and has not finished; gives what it has written."""

    def progress(self) -> Mapping[CallKey, int]:
        """Count the tokens of each running request; empty where the engine does not count them."""


class EngineModule(Protocol):
    """A module that makes engines; named to the fork server, which imports it once for all its workers."""

    def prepare(self, settings: Any) -> None:
        """Import whatever takes long; leave no device in use, since worker processes are forked afterwards."""

    def open_engine(self, spec: EngineSpec) -> Engine:
        """Load an expert."""

    def is_device_lost(self, error: Exception) -> bool:
        """Say whether an error means that the worker is broken, and not the session."""
