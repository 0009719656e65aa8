"""Describes OpenAI-compatible servers as engines: address, model, request form and time limits."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal
from urllib.parse import urlsplit

from mosaic.core.checks import AtLeast0, AtLeast1, Name, Positive, check_fields, checked, require
from mosaic.core.cluster import Worker
from mosaic.core.errors import BackendError, FatalEngineError
from mosaic.core.spending import TokenPrice
from mosaic.core.workload import Expert
from mosaic.engines.engine import EngineSpec
from mosaic.engines.requests import ServedExpert

ENDPOINT_ENGINE = "mosaic.engines.endpoint_engine"


class Api(StrEnum):
    """The interface of a server for texts; token ids always use completions."""

    CHAT = "chat"
    """The server applies the chat template of its checkpoint to the text."""
    COMPLETIONS = "completions"
    """The text is wrapped here, in the plain template that is used for checkpoints without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The server of a worker; its one expert is loaded."""

    base_url: Name
    """As OpenAI's clients expect it: ``http://localhost:8000/v1``."""
    expert: Name
    model: Name
    """The server's name of the expert."""
    api: Api = Api.CHAT
    is_vllm: bool = True
    """Request token ids, and disable the sampling defaults that vLLM takes from a checkpoint's generation_config.

    OpenAI's own servers refuse both fields.
    """
    opens_thinking: bool = False
    """The chat template opens the think tag, so responses start inside thinking; a server does not report this."""
    api_key_env: str | None = None
    """Name of the environment variable with the server's key; None: it needs none."""
    max_requests_per_min: AtLeast1 | None = None
    """Most requests per minute, retries included; None: no limit."""
    max_tokens_per_min: AtLeast1 | None = None
    """Most tokens per minute, read and written; None: no limit."""
    price: TokenPrice | None = None
    """None: not known."""
    limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How a request says how much may be written; OpenAI's reasoning models take the second alone."""

    def __post_init__(self) -> None:
        owner = f"endpoint of {self.expert!r}: "
        check_fields(self, owner)
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))
        _require_url(self.base_url, f"{owner}base_url")
        if self.api_key_env is not None:
            rule = "the name of an environment variable, and not a key itself"
            # The value is not repeated: a key that was written there must not appear in a log too.
            require(str(self.api_key_env).isidentifier(), f"{owner}api_key_env", rule, "...")

    def api_key(self) -> str | None:
        """Read the server's key.

        Raises
        ------
        FatalEngineError
            If the variable that should hold it is not set or not valid.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env)
        if not key or not key.isascii() or not key.isprintable():
            raise FatalEngineError(
                f"{self.expert} at {self.base_url}: environment variable {self.api_key_env} must hold its API key, "
                + ("it holds more than one line of ASCII" if key else "it is not set")
            )
        return key

    @property
    def request_form(self) -> tuple[str | bool, ...]:
        """Everything beside the call itself that a response depends on; the address is not part of it."""
        return (self.model, str(self.api), self.is_vllm, self.opens_thinking)


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("patience.")
class EndpointPatience:
    """How long a server may take, and how often a failed request is repeated.

    Requests are repeated after 408 or 5xx, a broken connection or no reply in time; others fail at once. After 429, and
    whenever a server names a time (Retry-After), nothing is sent before that time, and no retry is counted.
    """

    connect_timeout_s: Positive = 10.0
    reply_timeout_s: Positive = 900.0
    """Limit for a whole reply: the server's queue, the generation, and the transfer to its last byte."""
    max_retries: AtLeast0 = 4
    """Of each call."""
    first_wait_s: Positive = 0.5
    """Before the first retry; it doubles with each retry."""
    max_wait_s: Positive = 30.0
    """The longest pause if the server names no time. If it demands a longer one, other servers get its calls."""
    outage_timeout_s: Positive = 1800.0
    """How long to wait for a server that has served calls and no longer serves any."""

    def wait_s(self, num_retries: int) -> float:
        """Return how long to wait after so many retries.

        Examples
        --------
        >>> patience = EndpointPatience(first_wait_s=0.5, max_wait_s=3)
        >>> [patience.wait_s(number) for number in range(4)]
        [0.5, 1.0, 2.0, 3]
        """
        return min(self.max_wait_s, self.first_wait_s * 2.0 ** min(num_retries, 60))


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("endpoint.")
class EndpointEngines:
    """The server of each worker, in order; the settings of a worker's engine have only its own server."""

    endpoints: tuple[Endpoint, ...]
    patience: EndpointPatience = EndpointPatience()
    max_in_flight: AtLeast1 = 64
    """Most requests in progress at a server."""

    def served(self, expert: Expert) -> ServedExpert:
        """Return an expert as its servers have it; a server cuts a response off at the end of its context.

        Raises
        ------
        BackendError
            If no server has it.
        ValueError
            If two of its servers get their requests in different forms: the response must not depend on the server.
        """
        forms = [endpoint.request_form for endpoint in self.endpoints if endpoint.expert == expert.name]
        if not forms:
            known = sorted({endpoint.expert for endpoint in self.endpoints})
            raise BackendError(f"expert must be one that a server has, {known}, got {expert.name!r}")
        for form in forms:
            require(form == forms[0], f"endpoints of {expert.name!r}", f"called in one form, as {forms[0]}", form)
        return ServedExpert(
            expert=expert,
            context_tokens=expert.context_limit,
            vocab_size=None,
            decides=("endpoint", expert.checkpoint, *forms[0]),
        )

    def spec(self, expert: Expert, workers: Sequence[Worker]) -> EngineSpec:
        """Return the server that serves an expert.

        Raises
        ------
        BackendError
            If it is not the expert's server, or the session would have several workers.
        """
        if len(workers) > 1:
            raise BackendError(
                f"workers must be one, got {tuple(worker.id for worker in workers)}: a server is one worker, whatever "
                "GPUs it spans; set the expert's tp_degree to 1"
            )
        endpoint = self.endpoints[workers[0].id]
        if endpoint.expert != expert.name:
            raise BackendError(
                f"worker {workers[0].id} must serve {expert.name!r}, but {endpoint.base_url} serves "
                f"{endpoint.expert!r} and a server keeps its expert; plan with workers for it only"
            )
        return EngineSpec(
            expert=expert.name,
            num_workers=1,
            context_tokens=expert.context_limit,
            max_num_seqs=self.max_in_flight,
            settings=replace(self, endpoints=(endpoint,)),
            is_remote=True,
        )


def key_problems(endpoints: Iterable[Endpoint]) -> list[str]:
    """List the servers' keys that are missing."""
    found = []
    for endpoint in endpoints:
        try:
            endpoint.api_key()
        except FatalEngineError as error:
            found.append(str(error))
    return found


def _require_url(url: str, field: str) -> None:
    rule = "a URL such as http://localhost:8000/v1, without a user, a key or a query"
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    plain = known and "@" not in parts.netloc and not parts.query and not parts.fragment
    require(plain and url.isascii() and url.isprintable() and " " not in url, field, rule, url.rpartition("@")[2])
