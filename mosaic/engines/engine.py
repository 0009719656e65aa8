"""The interface of an engine in a worker process, with its inputs and outputs as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from mosaic.core.chat import Chat, Sampling
from mosaic.core.workload import CallKey, ExpertName

Prompt: TypeAlias = str | Chat | tuple[int, ...]
"""The input of an expert: a text or messages, to which its checkpoint's chat template is applied, or token ids."""
MORE_ROOM = "shorten the prompt, or raise context_tokens up to the checkpoint's limit"
"""Advice for a prompt that is too long for its expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """All data for loading an expert on its workers. Equal specs are one engine, which need not be loaded twice."""

    expert: ExpertName
    num_workers: int
    """The tensor-parallel degree."""
    context_tokens: int
    max_num_seqs: int
    """Largest number of requests in its batch."""
    settings: Any
    """Settings for the engine's module."""
    is_remote: bool = False
    """The model is on a server: nothing is loaded here, and its computations are not known."""
    has_served: bool = field(default=False, compare=False)
    """It is known to serve calls, so an error may be temporary."""


class Request(NamedTuple):
    """One generation: the input of an engine, and the data that its worker needs to record its end.

    A named tuple: it is made, changed and sent once per call.
    """

    key: CallKey
    """Unique among the running requests of an engine."""
    prompt: Prompt
    seed: int
    temperature: float
    max_output_tokens: int
    """The response is cut off there, tokens generated before included, or earlier where the context ends."""
    output_tokens: int | None = None
    """Replay: write exactly so many in all, any tokens; None: the model decides."""
    generated: tuple[int, ...] = ()
    """Tokens that the engine of an earlier session has written, to continue from."""
    is_beginning: bool = False
    """Compute the beginning of a call's prompt ahead of the call; it replaces an earlier one of the call.

    The prompt continues after its last message, which is incomplete: no template text follows it.
    """
    sampling: Sampling | None = None
    """Sampling parameters beside temperature, seed and limit; None: none."""
    with_confidence: bool = False
    """Whether to return the probabilities of its tokens."""
    fingerprint: str = ""
    """Hash of everything that the response depends on."""
    prompt_tokens: int = 0
    """The call's estimate; the record has the engine's count."""
    queued_ts: float = 0.0
    """When it arrived, or was submitted."""
    cut_tokens: int | None = None
    """The request ends, with its tokens so far, when it has written so many."""
    attempt: int = 0
    wasted_tokens: int = 0
    """Computed in earlier sessions, and to be computed again."""
    max_requests: int | None = None
    """The most that a server may get for it, retries included; None: as often as its patience says."""


class Output(NamedTuple):
    """The state of a request, finished or not; instants are seconds of the machine's monotonic clock."""

    key: CallKey
    token_ids: tuple[int, ...] = ()
    """Written so far, tokens generated before first; empty if the engine does not count them."""
    text: str | None = None
    """None: without a tokenizer there is no text."""
    finish_reason: str | None = None
    """None: it was aborted."""
    prompt_tokens: int | None = None
    """Without tokens generated before; None: not known, for example for a failed call."""
    cached_tokens: int = 0
    num_preemptions: int = 0
    scheduled_ts: float | None = None
    first_token_ts: float | None = None
    """Of the tokens that this engine wrote; None: not known."""
    last_token_ts: float | None = None
    """None: it was aborted."""
    visible_tokens: int | None = None
    """Of the text without its thinking; None: not known."""
    thinking_opened: bool = False
    output_tokens: int | None = None
    """For engines that count tokens without returning them; None: the number of ``token_ids``."""
    error: str | None = None
    """Why the call failed, in one line."""
    num_retries: int = 0
    """Failed tries before the last one."""
    confidence: float | None = None
    """Geometric mean of the probabilities of the tokens that this engine wrote; None: not requested, or not known."""

    @property
    def num_written(self) -> int:
        """Number of tokens written."""
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
        """Run one iteration and return the requests that ended in it.

        Raises
        ------
        FatalEngineError
            If no call of the run will ever be served.
        """

    def abort(self, key: CallKey) -> Output:
        """Drop a submitted request that has not finished; returns its tokens so far."""

    def progress(self) -> Mapping[CallKey, int]:
        """Count the tokens of each running request; empty if the engine does not count them."""


class EngineModule(Protocol):
    """A module that makes engines; the fork server imports it once for all its workers."""

    def prepare(self, settings: Any) -> None:
        """Import slow modules; leave no device in use, since worker processes are forked afterwards."""

    def open_engine(self, spec: EngineSpec) -> Engine:
        """Load an expert."""

    def is_device_lost(self, error: Exception) -> bool:
        """Return whether an error means that the worker is broken, and not only the session."""
